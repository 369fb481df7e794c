"""The request form: ours against each baseline on joined rows (the joining is not timed) and with the split by hand."""

from __future__ import annotations

from collections.abc import Callable

from bench.cases import Case
from resflow_kernels.benchmark.baselines import Implementation


def cases(quick: bool) -> list[Case]:
    """Requests and their candidates; quick: one workload, without torch.compile."""
    if quick:
        return [
            Case("request", "prerank3", 1024, 1, compiled=False),
            Case("request", "prerank3", 8192, 1, compiled=False),
            Case("request", "prerank3", 1024, 8, compiled=False),
        ]
    sizes = [(1, 128), (1, 1024), (1, 2048), (1, 8192), (8, 128), (8, 1024), (8, 8192), (64, 128), (64, 1024)]
    several = [Case("request", "prerank3", candidates, requests) for requests, candidates in sizes]
    others = [Case("request", workload, 1024, 1) for workload in ("ecomm2", "video5", "progressive9", "wide3")]
    return [*several, *others]


def test_requests(run_case: Callable[..., None], case: Case, implementation: type[Implementation], way: str) -> None:
    run_case(case, implementation, way)
