"""Array operations that rankings need, for NumPy and for tensors on any device. Imports torch only for tensors."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

# An ndarray or a tensor; `unified` decides which of the two all arrays of a call are.
Array = Any


def unified(*values: Any) -> tuple[Array, ...]:
    """All values as tensors on the first tensor's device or, if none is a tensor, as NumPy arrays."""
    tensors = [value for value in values if is_tensor(value)]
    if not tensors:
        return tuple(np.asarray(value) for value in values)
    return tuple(_torch().as_tensor(value, device=tensors[0].device).detach() for value in values)


def is_tensor(value: Any) -> bool:
    """Does not import torch: a caller that has a tensor has imported it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def library(array: Array) -> Any:
    """The module whose functions accept ``array``."""
    return _torch() if is_tensor(array) else np


def doubles(array: Array) -> Array:
    """The array in float64."""
    return array.double() if is_tensor(array) else array.astype(np.float64)


def longs(array: Array) -> Array:
    """The array in int64."""
    return array.long() if is_tensor(array) else array.astype(np.int64)


def is_integral(array: Array) -> bool:
    """Whether the dtype is an integer type (bool is not)."""
    if is_tensor(array):
        torch = _torch()
        return not (array.is_floating_point() or array.is_complex() or array.dtype == torch.bool)
    return bool(np.issubdtype(array.dtype, np.integer))


def places(array: Array) -> Array:
    """``0..n-1`` on the device of an array of length ``n``."""
    if is_tensor(array):
        return _torch().arange(len(array), device=array.device)
    return np.arange(len(array))


def zero_place(array: Array) -> Array:
    """The index 0 as an array of one element, on the device of ``array``."""
    return _torch().zeros(1, dtype=_torch().int64, device=array.device) if is_tensor(array) else np.zeros(1, np.int64)


def sorted_rows(array: Array) -> Array:
    """Each row of a matrix in ascending order."""
    return array.sort(1).values if is_tensor(array) else np.sort(array, 1)


def stable_argsort(array: Array) -> Array:
    """Indices in ascending order of values; equal values keep their order, NaN comes last (as in both libraries)."""
    if is_tensor(array):
        return array.argsort(stable=True)
    return np.argsort(array, kind="stable")


def repeat(array: Array, counts: Array) -> Array:
    """Each element repeated as often as its count says."""
    if is_tensor(array):
        return _torch().repeat_interleave(array, counts)
    return np.repeat(array, counts)


def segment_sums(values: Array, offsets: Array) -> Array:
    """Sums ``[R]`` of float64 ``values [N]`` from each offset to the next; 0 for an empty segment."""
    if is_tensor(values):
        return _torch().segment_reduce(values, "sum", lengths=offsets.diff(), unsafe=True)
    owners = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    return np.bincount(owners, values, minlength=len(offsets) - 1)


def _torch() -> Any:
    import torch

    return torch
