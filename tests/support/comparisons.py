"""Comparisons of results."""

from __future__ import annotations

import torch
from torch import Tensor


def same_bits(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    """Equal to the bit, NaN included."""
    pairs = zip(a, b, strict=True)
    return all(torch.equal(u.contiguous().view(torch.uint8), v.contiguous().view(torch.uint8)) for u, v in pairs)
