"""How cost grows with candidates (of one request, the user's part computed once), tasks and input width.

torch.compile is left out: it compiles again for each size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from bench.cases import Case
from resflow_kernels.benchmark.baselines import Implementation


def cases(quick: bool) -> list[Case]:
    """Three series; quick: fewer sizes."""
    series = partial(Case, "growth", "prerank3", compiled=False)
    counts = (128, 1024, 8192, 65536, 1 << 18, 1 << 20)
    candidates = (128, 2048, 32768) if quick else counts
    tasks = (1, 4, 16) if quick else (1, 2, 4, 8, 16)
    features = (64, 512, 2048) if quick else (64, 128, 256, 512, 1024, 2048)
    return [
        *(series(count, 1, ways=("split",), axis="candidates") for count in candidates),
        *(series(1024, tasks=count, axis="tasks") for count in tasks),
        *(series(1024, features=width, axis="features") for width in features),
    ]


def test_growth(run_case: Callable[..., None], case: Case, implementation: type[Implementation], way: str) -> None:
    run_case(case, implementation, way)
