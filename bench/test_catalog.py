"""The catalog form: one request of random ids, compared with baselines that score the same rows in the dense form."""

from __future__ import annotations

from collections.abc import Callable

from bench.cases import Case
from resflow_kernels.benchmark.baselines import Implementation


def cases(quick: bool) -> list[Case]:
    """8192 ids of a million items, and how cost grows with the catalog."""
    series = (10_000, 1_000_000) if quick else (10_000, 100_000, 1_000_000)
    return [
        Case("catalog", "prerank3", 8192, catalog=items, compiled=not quick and items == 1_000_000) for items in series
    ]


def test_catalog(run_case: Callable[..., None], case: Case, implementation: type[Implementation], way: str) -> None:
    run_case(case, implementation, way)
