"""Comparisons of results."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def same_bits(a: Iterable[Tensor], b: Iterable[Tensor]) -> bool:
    """Whether all are bitwise equal, NaN included."""
    return all(
        u.dtype == v.dtype and torch.equal(u.view(_INTEGERS[u.itemsize]), v.view(_INTEGERS[v.itemsize]))
        for u, v in zip(a, b, strict=True)
    )
