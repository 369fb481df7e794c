"""The twin tower stream against the machine's read bandwidth and against PyTorch.

A million items, three tasks of width 64, the best 100 for one request. The bandwidth is measured in the same run,
interleaved with the op, by reading the table front to back with the same number of threads. Each case first asserts
that the op finds what the reference finds. Run with ``make bench``.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bench.cases import CORES
from resflow_kernels import _runtime, ops, reference
from resflow_kernels.benchmark.baselines import threads_of
from resflow_kernels.benchmark.interleave import Schedule, interleave
from resflow_kernels.reference import twin

ITEMS, TASKS, WIDTH, K = 1_000_000, 3, 64, 100
PARENTS = (-1, 0, 1)


def _eager(user: Tensor, vectors: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """The op's result in PyTorch, by one matrix product per task over vectors [K, M, W]."""
    logits = torch.bmm(vectors, user.reshape(TASKS, WIDTH, 1).to(vectors.dtype))[..., 0].cumsum(0)
    return torch.topk(alpha.to(logits.dtype) @ torch.sigmoid(logits), K)


@pytest.mark.parametrize("threads", sorted({1, CORES}))
@pytest.mark.parametrize("element", ["int8", "bfloat16", "float32"])
def test_share_of_read_bandwidth(
    request: pytest.FixtureRequest, record: Callable[..., None], element: str, threads: int
) -> None:
    quick = request.config.getoption("--quick")
    if quick and (element != "int8" or threads < CORES):
        pytest.skip("left out of the quick run")
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(ITEMS, TASKS * WIDTH, generator=generator)
    user = torch.randn(1, TASKS * WIDTH, generator=generator) / 16
    table, scales = ops.twin_rows(vectors, TASKS, element)
    alpha = torch.tensor([1.0, 20.0, 20.0])
    exact = twin.twin_logits(
        user.double().reshape(1, TASKS, WIDTH), vectors[:50_000].double().reshape(-1, TASKS, WIDTH), PARENTS
    )
    some = ops.twin_scores(user, table[:50_000], scales[:50_000], alpha, PARENTS)
    error = (some.probs - torch.sigmoid(exact)).abs().max().item()
    assert error <= {"float32": 2e-6, "bfloat16": 1e-2, "int8": 2e-2}[element]
    best = ops.twin_topk(user, table[:50_000], scales[:50_000], alpha, PARENTS, k=K)
    assert torch.equal(best.positions, reference.topk(some.score, torch.tensor([0, 50_000]), K).positions)
    exact_best = reference.topk(reference.fuse(exact, alpha.double(), "additive"), torch.tensor([0, 50_000]), K)
    kept = len(set(best.positions[0].tolist()) & set(exact_best.positions[0].tolist())) / K

    by_task = vectors.reshape(ITEMS, TASKS, WIDTH).transpose(0, 1).contiguous()
    by_task = by_task.bfloat16() if element != "float32" else by_task  # PyTorch has no int8 product of this shape
    read = table.numel() * table.element_size() + scales.numel() * 4
    calls: dict[str, Callable[[], object]] = {
        "resflow": lambda: ops.twin_topk(user, table, scales, alpha, PARENTS, k=K),
        "eager": lambda: _eager(user, by_task, alpha),
    }
    bandwidth: list[float] = []
    bits = table.view(torch.uint8).numpy()
    with threads_of(threads):
        schedule = Schedule(rounds=9 if quick else 21, burst_seconds=0.05)
        timings = interleave(calls, schedule, lambda: bandwidth.append(_runtime.measure_read_bandwidth(bits, threads)))
    rates = [read / seconds * 1e-9 for seconds in timings["resflow"].round_medians]
    info = {
        "form": "twin tower",
        "workload": f"{TASKS} tasks of width {WIDTH}",
        "candidates": ITEMS,
        "threads": threads,
        "implementation": "resflow",
        "ours": True,
        "precision": element,
        "medians": {name: timing.median for name, timing in timings.items()},
        "read_gbytes_per_second": statistics.median(bandwidth),
        "share_of_bandwidth": statistics.median(rate / peak for rate, peak in zip(rates, bandwidth, strict=True)),
        "error": error,
        "top_100_kept": kept,
    }
    record(timings["resflow"].samples, info)
