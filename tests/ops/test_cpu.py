"""What the CPU's kernels alone do: NumPy arrays, threads that share a model, a forked child, the most memory."""

from __future__ import annotations

import os
import threading

import pytest
import torch

from resflow_kernels import ops
from resflow_kernels.contract import TABLE_PRECISIONS
from resflow_kernels.core.plan import Plan
from resflow_kernels.testing import WORKLOADS
from tests.support.cases import CatalogCase, FeatureCase, TowerCase, TwinCase
from tests.support.comparisons import same_bits
from tests.support.devices import Device


def test_numpy_has_the_bits_of_tensors() -> None:
    reason = Device.why_missing("numpy")
    if reason is not None:
        pytest.skip(reason)
    numpy, plan = Device("numpy"), Plan(37, (24, 10), (-1, 0, 1), affine=True)
    for dtype in TABLE_PRECISIONS:
        own, other = ([], [])
        for device, results in ((ops, own), (numpy, other)):
            catalog = CatalogCase(plan, 90, 4, "expected_value", "request", dtype=dtype, ops=device)
            features = FeatureCase(plan, [9, 28], [dtype, dtype], [False, True], 90, 0, ops=device)
            twin = TwinCase(3, 21, 90, 4, dtype, "expected_value", "request", non_increasing=True, ops=device)
            everything = (twin.user, twin.table, twin.scales, twin.weights(0), *twin.settings, 9)
            lists = (twin.user, twin.ids, twin.offsets, *everything[1:])
            results += [catalog.packed, catalog.table, catalog.scales, twin.table, twin.scales]
            for scores in (
                catalog.scores(),
                catalog.topk(9),
                features.run(),
                twin.all(),
                twin.listed(),
                device.twin_topk(*everything),
                device.twin_ids_topk(*lists),
            ):
                results += scores
        assert same_bits(own, other)


def test_eight_threads_on_one_model() -> None:
    case = TowerCase(WORKLOADS["prerank3"].plan, 400)
    whole = case.run()
    wrong: list[int] = []

    def score(thread: int) -> None:
        for turn in range(20):
            rows = slice((thread * 31 + turn) % 200, 200 + (thread * 17 + turn * 5) % 200)
            if not same_bits(case.run(case.x[rows]), tuple(part[rows] for part in whole)):
                wrong.append(thread)

    threads = [threading.Thread(target=score, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_forked_child_scores() -> None:
    """The child has none of its parent's worker threads."""
    case = TowerCase(Plan(64, (64,), (-1, 0)), 500)
    whole = case.run()
    child = os.fork()
    if child == 0:
        os._exit(0 if same_bits(case.run(), whole) else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.large
def test_more_than_two_to_the_31_elements() -> None:
    case = TowerCase(Plan(1024, (16,), (-1,)), 8)
    x = torch.zeros(2_200_000, 1024)
    x[-8:] = case.x
    assert same_bits(tuple(part[-8:] for part in case.run(x)), case.run())


def test_a_measured_bandwidth_is_a_rate() -> None:
    """Reading twice as much takes longer than reading half: the bytes are read."""
    runtime = pytest.importorskip("resflow_kernels._runtime")
    memory = torch.ones(1 << 26, dtype=torch.uint8).numpy()
    seconds = [
        min(size / runtime.measure_read_bandwidth(memory[:size], 1) for _ in range(5)) for size in (1 << 22, 1 << 26)
    ]
    assert 1 < runtime.measure_read_bandwidth(memory, 2) < 10_000
    assert seconds[1] > 2 * seconds[0]
