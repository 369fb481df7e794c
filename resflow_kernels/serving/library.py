"""The compiled CPU kernels for NumPy arrays, and the tables that they gather from."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..core import build


class Table(NamedTuple):
    """A catalog's rows: the items' part of all first layers (:mod:`resflow_kernels.serving.catalog`)."""

    rows: NDArray[Any]  # [M, plan.table_width_of(Di)] float32, int8, or bfloat16 as bits in uint16
    scales: NDArray[np.float32]  # [M] for int8, else [0]


def compiled() -> ModuleType:
    """The compiled library, ``resflow_kernels._runtime``.

    Raises:
        ImportError: it is not built or cannot be loaded; the message says how to build it.
    """
    try:
        return import_module("resflow_kernels._runtime")
    except ImportError as error:
        raise ImportError(
            f"resflow_kernels' compiled library cannot be loaded: {build.why_no_runtime()} ({error})"
        ) from error


def as_rows(value: ArrayLike) -> NDArray[Any]:
    """Rows as the library takes them: contiguous elements at any row stride, numbers of other types as float32."""
    rows = np.asarray(value)
    if rows.dtype.kind in "fi" and rows.dtype != np.float32:  # float64 is what pandas gives
        rows = rows.astype(np.float32)
    if rows.ndim != 2 or rows.shape[1] <= 1 or rows.strides[1] == rows.itemsize:
        return rows
    # NumPy may give an empty array strides of 0; a slice of one row has that row's strides.
    return np.ascontiguousarray(rows) if len(rows) else np.empty((1, rows.shape[1]), rows.dtype)[:0]


def as_int64(value: ArrayLike) -> NDArray[Any]:
    """Ids or offsets; smaller integers as int64."""
    places = np.asarray(value)
    return places.astype(np.int64) if places.dtype.kind == "i" else places
