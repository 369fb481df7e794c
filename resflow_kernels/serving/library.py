"""The compiled CPU kernels for NumPy arrays, and the tables that they gather from."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

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
