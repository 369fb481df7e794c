"""Tile sizes."""

from __future__ import annotations

from typing import NamedTuple


class Config(NamedTuple):
    """How much a program takes at a time; none of it depends on the number of candidates."""

    block_m: int  # candidates
    block_k: int  # inputs
    warps: int
    stages: int  # of loads ahead of products
    block_n: int = 64  # columns, in the forest and project kernels

    @property
    def options(self) -> dict[str, int]:
        return {"num_warps": self.warps, "num_stages": self.stages}
