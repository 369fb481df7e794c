"""The dense form: latency and FLOP/s by batch size, and the share of the machine's peak."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bench.cases import CORES, Case
from resflow_kernels import _runtime
from resflow_kernels.benchmark.baselines import OURS, Implementation, label, threads_of
from resflow_kernels.benchmark.interleave import Schedule, interleave
from resflow_kernels.benchmark.suite import Inputs, setup
from resflow_kernels.contract import PRECISION_ROWS
from resflow_kernels.testing import WORKLOADS


def cases(quick: bool) -> list[Case]:
    """All workloads and batches; quick: one workload, torch.compile at one size."""
    if quick:
        return [Case("dense", "prerank3", batch, compiled=batch == 1024) for batch in (1, 16, 128, 1024, 8192)]
    batches = (1, 16, 128, 1024, 8192, 65536)
    several = [Case("dense", workload, batch) for workload in WORKLOADS for batch in batches]
    return several + [Case("dense", "prerank3", batch, threads=1) for batch in batches if CORES > 1]


def test_dense(run_case: Callable[..., None], case: Case, implementation: type[Implementation], way: str) -> None:
    run_case(case, implementation, way)


@pytest.mark.parametrize("ours", OURS, ids=label)
@pytest.mark.parametrize("threads", sorted({1, min(2, CORES), CORES}))
@pytest.mark.parametrize("batch", [1024, 8192, 65536])
@pytest.mark.parametrize("workload", ["prerank3", "ecomm2"])
def test_share_of_peak(
    request: pytest.FixtureRequest,
    record: Callable[..., None],
    workload: str,
    batch: int,
    threads: int,
    ours: type[Implementation],
) -> None:
    """Ours interleaved with the peak (registers only, the same instruction set and threads), without baselines."""
    quick = request.config.getoption("--quick")
    if quick and batch > 1024:
        pytest.skip("left out of the quick run")
    case = Case("share of peak", workload, batch, threads=threads)
    peaks: list[float] = []
    with threads_of(threads):
        entry = setup(case.model, Inputs.dense(case.model, batch), threads, [ours])[0]
        assert entry.call is not None and entry.problem is None, entry.problem
        schedule = Schedule(rounds=9 if quick else 25, burst_seconds=0.05)
        timing = interleave(
            {"ours": entry.call},
            schedule,
            lambda: peaks.append(_runtime.measure_peak(PRECISION_ROWS[ours.precision].code, threads, 0.03)),
        )["ours"]
    rates = [case.flops("dense") / seconds * 1e-9 for seconds in timing.round_medians]
    shares = [rate / peak for rate, peak in zip(rates, peaks, strict=True)]
    info: dict[str, Any] = {
        "form": case.form,
        "workload": workload,
        "candidates": batch,
        "threads": threads,
        "implementation": label(ours),
        "precision": ours.precision,
        "ours": True,
        "error": entry.error,
        "gflops": statistics.median(rates),
        "peak_gflops": statistics.median(peaks),
        "share_of_peak": statistics.median(shares),
        "share_quartiles": np.quantile(shares, [0.25, 0.75]).tolist(),
    }
    record(timing.samples, info)
