"""How much of the machine's fused multiply-add peak the dense op reaches.

The peak is measured in the same run: registers only, the same instruction set, the same number of threads, in
turns with the op. Each case asserts first that the op's numbers are right. Run with ``make bench``.
"""

from __future__ import annotations

import statistics
import time

import pytest
import torch

from resflow_kernels import _runtime, ops, reference
from resflow_kernels.testing import WORKLOADS, random_weights

TURNS = 15
BATCHES = (1024, 8192, 65536)


def _seconds(call: object) -> float:
    begin = time.perf_counter()
    call()  # type: ignore[operator]
    return time.perf_counter() - begin


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("workload", ["prerank3", "ecomm2"])
def test_share_of_fma_peak(benchmark, workload: str, batch: int, threads: int) -> None:  # type: ignore[no-untyped-def]
    plan = WORKLOADS[workload].plan
    weights = random_weights(plan, seed=0)
    packed = ops.pack_towers(weights, plan)
    fusion_weights = torch.ones(plan.tasks)
    x = torch.randn(batch, plan.in_features)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)

    def score() -> None:
        ops.dense_scores(x, packed, plan, fusion_weights)

    try:
        some = ops.dense_scores(x[:64], packed, plan, fusion_weights)
        exact = reference.dense_scores(
            x[:64].double(), [w.double() for w in weights], plan, fusion_weights.double(), 0, 0
        )
        torch.testing.assert_close(some.probs.double(), exact.probs, atol=2e-6, rtol=0)
        shares, rates, peaks = [], [], []
        for _ in range(TURNS):
            peak = _runtime.measure_peak(0, threads, 0.03)
            calls = max(1, int(0.05 / _seconds(score)))
            seconds = statistics.median(_seconds(score) for _ in range(calls))
            rate = plan.flops_per_candidate * batch / seconds * 1e-9
            rates.append(rate)
            peaks.append(peak)
            shares.append(rate / peak)
        benchmark.pedantic(score, rounds=5, warmup_rounds=1)
    finally:
        torch.set_num_threads(before)
    benchmark.extra_info.update(
        workload=workload,
        batch=batch,
        threads=threads,
        isa=_runtime.isa(),
        gflops=round(statistics.median(rates), 1),
        peak_gflops=round(statistics.median(peaks), 1),
        share_of_peak=round(statistics.median(shares), 3),
    )
    print(
        f"\n{workload:10s} B={batch:6d} threads={threads} isa={_runtime.isa()}: "
        f"{statistics.median(rates):6.1f} GFLOP/s of {statistics.median(peaks):6.1f} "
        f"({100 * statistics.median(shares):.1f} %, quartiles "
        f"{', '.join(f'{100 * q:.1f}' for q in statistics.quantiles(shares, n=4))})"
    )
