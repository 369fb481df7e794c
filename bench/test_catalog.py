"""The catalog form: one request of random ids out of a catalog, beside peers that score the same rows dense."""

from __future__ import annotations

from collections.abc import Callable

from bench.cases import Case
from resflow_kernels.benchmark.peers import Contestant


def cases(quick: bool) -> list[Case]:
    """8192 ids of a million items, and how cost grows with the catalog."""
    series = (10_000, 1_000_000) if quick else (10_000, 100_000, 1_000_000)
    return [
        Case("catalog", "prerank3", 8192, catalog=items, compiled=not quick and items == 1_000_000) for items in series
    ]


def test_catalog(take_part: Callable[..., None], case: Case, contestant: type[Contestant], way: str) -> None:
    take_part(case, contestant, way)
