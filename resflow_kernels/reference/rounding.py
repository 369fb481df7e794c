"""Rounding to the precisions of kernels and tables, in PyTorch, in any dtype; int8 as in ``csrc/core/quantize.h``."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..contract import PRECISION_ROWS, complete

INT8_STEPS = 127


class Format(NamedTuple):
    """A precision in PyTorch."""

    packed: torch.dtype  # the type of matrices in packed weights
    rounded: Callable[[Tensor, int], Tensor]  # rounds values along a dimension; their dtype stays


def int8_rows(values: Tensor, dim: int = -1) -> tuple[Tensor, Tensor]:
    """Round values to bytes with one scale per line along ``dim``.

    Returns:
        Bytes from -127 to 127 in the shape of ``values``, int8; and scales, without ``dim``: the line's largest
        magnitude over 127, NaN if a value is NaN or infinite. If a scale is 0 or NaN, its bytes are 0.
    """
    largest = values.abs().amax(dim, keepdim=True) if values.shape[dim] else values.sum(dim, keepdim=True)
    # Division by a tensor: on GPUs a division by a number is a multiplication by its reciprocal.
    scales = torch.where(largest.isfinite(), largest / torch.full_like(largest, INT8_STEPS), float("nan"))
    steps = torch.where(scales > 0, torch.round(values / scales), 0.0).clamp(-INT8_STEPS, INT8_STEPS)
    return steps.to(torch.int8), scales.squeeze(dim)


def _tensorfloat32(values: Tensor) -> Tensor:
    """Float32 with 10 bits of mantissa: rounds to nearest, ties away from zero; infinities and NaN are unchanged."""
    bits = values.contiguous().view(torch.int32)
    nearest = ((bits + 0x1000) & ~0x1FFF).view(torch.float32)
    return torch.where(values.isfinite(), nearest, values)


def _through(dtype: torch.dtype) -> Callable[[Tensor, int], Tensor]:
    return lambda values, dim: values.to(dtype).to(values.dtype)


def _int8(values: Tensor, dim: int) -> Tensor:
    steps, scales = int8_rows(values, dim)
    return steps.to(values.dtype) * scales.unsqueeze(dim)


FORMATS: dict[str, Format] = complete(
    "precision",
    tuple(PRECISION_ROWS),
    {
        "float32": Format(torch.float32, lambda values, dim: values),
        "bfloat16": Format(torch.bfloat16, _through(torch.bfloat16)),
        "int8": Format(torch.uint8, _int8),
        "float16": Format(torch.float16, _through(torch.float16)),
        "tensorfloat32": Format(torch.float32, lambda values, dim: _tensorfloat32(values.float()).to(values.dtype)),
    },
)


def rounded(values: Tensor, precision: str, dim: int = -1) -> Tensor:
    """``values`` rounded to a precision; int8 has one scale per line along ``dim``."""
    return FORMATS[precision].rounded(values, dim)
