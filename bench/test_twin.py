"""The twin tower stream against the machine's read bandwidth and against PyTorch.

A million items, three tasks of width 64, the best 100 for one request. The bandwidth is measured in the same run, in
turns with the op: the table itself read front to back by as many threads. Each case asserts first that the op finds
what the reference finds. Run with ``make bench``.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from resflow_kernels import _runtime, ops, reference, reference_twin

ITEMS, TASKS, WIDTH, K = 1_000_000, 3, 64, 100
PARENTS = (-1, 0, 1)
TURNS = 21


def _seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _eager(user: Tensor, vectors: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """The same in PyTorch, a matrix product a task over vectors [K, M, W]."""
    logits = torch.bmm(vectors, user.reshape(TASKS, WIDTH, 1).to(vectors.dtype))[..., 0].cumsum(0)
    return torch.topk(alpha.to(logits.dtype) @ torch.sigmoid(logits), K)


def _bytes_view(tensor: Tensor) -> object:
    return tensor.view(torch.uint8).numpy()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("element", ["int8", "bfloat16", "float32"])
def test_share_of_read_bandwidth(benchmark, element: str, threads: int) -> None:  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(ITEMS, TASKS * WIDTH, generator=generator)
    user = torch.randn(1, TASKS * WIDTH, generator=generator) / 16
    table, scales = ops.twin_rows(vectors, TASKS, element)
    alpha = torch.tensor([1.0, 20.0, 20.0])
    exact = reference_twin.twin_logits(
        user.double().reshape(1, TASKS, WIDTH), vectors[:50_000].double().reshape(-1, TASKS, WIDTH), PARENTS
    )
    some = ops.twin_scores(user, table[:50_000], scales[:50_000], alpha, PARENTS)
    error = (some.probs - torch.sigmoid(exact)).abs().max().item()
    assert error <= {"float32": 2e-6, "bfloat16": 1e-2, "int8": 2e-2}[element]
    best = ops.twin_topk(user, table[:50_000], scales[:50_000], alpha, PARENTS, k=K)
    assert torch.equal(best.positions, reference.topk(some.score, torch.tensor([0, 50_000]), K).positions)
    exact_best = reference.topk(reference.fuse(exact, alpha.double(), 0), torch.tensor([0, 50_000]), K)
    kept = len(set(best.positions[0].tolist()) & set(exact_best.positions[0].tolist())) / K

    by_task = vectors.reshape(ITEMS, TASKS, WIDTH).transpose(0, 1).contiguous()
    by_task = by_task.bfloat16() if element != "float32" else by_task  # PyTorch has no int8 product of this shape
    read = table.numel() * table.element_size() + scales.numel() * 4
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours, eager, bandwidth = [], [], []
        for _ in range(TURNS):
            bandwidth.append(_runtime.measure_read_bandwidth(_bytes_view(table), threads))
            ours.append(_seconds(lambda: ops.twin_topk(user, table, scales, alpha, PARENTS, k=K)))
            eager.append(_seconds(lambda: _eager(user, by_task, alpha)))
        benchmark.pedantic(ops.twin_topk, (user, table, scales, alpha, PARENTS), {"k": K}, rounds=5)
    finally:
        torch.set_num_threads(before)
    rates = [read / seconds * 1e-9 for seconds in ours]
    shares = [rate / peak for rate, peak in zip(rates, bandwidth, strict=True)]
    figures = {
        "ms": statistics.median(ours) * 1e3,
        "gb_s": statistics.median(rates),
        "read_gb_s": statistics.median(bandwidth),
        "share": statistics.median(shares),
        "share_of_bests": max(rates) / max(bandwidth),
        "eager_ms": statistics.median(eager) * 1e3,
        "probability_error": error,
        "top_100_kept": kept,
    }
    benchmark.extra_info.update(figures, element=element, threads=threads, isa=_runtime.isa())
    print(
        f"\n1M x 3 x 64 {element:8s} threads={threads} isa={_runtime.isa()}: {figures['ms']:.2f} ms (best "
        f"{min(ours) * 1e3:.2f}), {figures['gb_s']:.1f} of {figures['read_gb_s']:.1f} GB/s = "
        f"{100 * figures['share']:.0f} % (best of both: {max(rates):.1f} of {max(bandwidth):.1f}, "
        f"{100 * figures['share_of_bests']:.0f} %); eager {by_task.dtype} {figures['eager_ms']:.1f} ms; "
        f"probabilities within {error:.1e}, {100 * kept:.0f} % of the top 100 kept"
    )
