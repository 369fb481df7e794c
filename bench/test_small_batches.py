"""Small batches as in online serving (back to back, after a pause, next to a busy process), and the op's overhead."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from bench.cases import MODES, Case
from resflow_kernels import _runtime, ops
from resflow_kernels.benchmark.baselines import Implementation, threads_of
from resflow_kernels.benchmark.interleave import Timing
from resflow_kernels.serving.scorer import Scorer


def cases(quick: bool) -> list[Case]:
    """One and sixteen candidates in every mode."""
    return [
        Case("small batches", "prerank3", batch, mode=mode, compiled=not quick) for batch in (1, 16) for mode in MODES
    ]


def test_small_batches(
    run_case: Callable[..., None], case: Case, implementation: type[Implementation], way: str
) -> None:
    run_case(case, implementation, way)


CALLS, ROUNDS = 500, 20


def test_overhead(record: Callable[..., None]) -> None:
    """One candidate from C++ (a loop in the library), from NumPy and through the torch op, interleaved."""
    case = Case("overhead", "prerank3", 1, threads=1)
    plan, x = case.plan, np.random.default_rng(0).standard_normal((1, case.plan.in_features), dtype=np.float32)
    packed = Scorer.pack(plan, list(case.model.weights))
    alpha, scorer = np.ones(plan.tasks, np.float32), Scorer(plan, packed, threads=1)
    rows, torch_packed, torch_alpha = torch.from_numpy(x), torch.from_numpy(packed), torch.from_numpy(alpha)
    raw = torch.ops.resflow.dense_scores.default
    encoded = plan.encoded
    ways: dict[str, Callable[[], list[float]]] = {
        "C++": lambda: _runtime.measure_dense_seconds(x, packed, alpha, encoded, 0, 1, CALLS),
        "Scorer": lambda: _timed(lambda: scorer.dense_scores(x)),
        "torch op": lambda: _timed(lambda: raw(rows, torch_packed, torch_alpha, encoded, 0, 0)),
        "ops.dense_scores": lambda: _timed(lambda: ops.dense_scores(rows, torch_packed, plan, torch_alpha)),
    }
    timings = {name: Timing() for name in ways}
    with threads_of(1):
        for _ in range(ROUNDS):
            for name, burst in ways.items():
                timings[name].rounds.append(burst())
    medians = {name: timing.median for name, timing in timings.items()}
    info = {"form": case.form, "workload": case.workload, "candidates": 1, "threads": 1, "implementation": "resflow"}
    record(timings["torch op"].samples, {**info, "ours": True, "precision": "float32", "medians": medians})


def _timed(call: Callable[[], object]) -> list[float]:
    seconds = []
    for _ in range(CALLS):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return seconds
