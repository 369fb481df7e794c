"""Interleaving: every call is made as often as scheduled, in changing order, and charged only with its own time."""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path

import pytest

from resflow_kernels.benchmark import interleave as module
from resflow_kernels.benchmark.interleave import Schedule, Timing, busy_neighbour, interleave, rest


def test_each_call_is_charged_with_its_own_time() -> None:
    calls = {"short": lambda: time.sleep(0.001), "long": lambda: time.sleep(0.004)}
    timings = interleave(calls, Schedule(rounds=4, burst_seconds=0.008, warm_seconds=0))
    assert {len(timing.rounds) for timing in timings.values()} == {4}
    assert 0.001 <= timings["short"].median < timings["long"].median
    assert timings["long"].median >= 0.004
    assert len(timings["short"].samples) > len(timings["long"].samples) >= 4


def test_order_changes_and_each_round_has_every_call() -> None:
    names = ["a", "b", "c"]
    orders = [module._order(names, index) for index in range(6)]
    assert all(sorted(order) == names for order in orders)
    followers = {(order[i], order[i + 1]) for order in orders for i in range(2)}
    assert followers == {(x, y) for x in names for y in names if x != y}
    assert {order[0] for order in orders} == set(names)


def test_bursts_keep_to_the_schedule() -> None:
    def call() -> None:
        time.sleep(0.002)

    untimed, timed = module._burst_length(call, Schedule(burst_seconds=0.02, warm_seconds=0.01))
    assert 1 <= untimed <= 5 and 1 <= timed <= 10
    assert module._burst_length(lambda: None, Schedule(most_calls=7))[1] == 7
    assert module._burst_length(lambda: time.sleep(0.11), Schedule()) == (0, 1)
    paused = Schedule(burst_seconds=0.1, pause_seconds=0.01, most_calls=1000)
    assert module._burst_length(lambda: None, paused)[1] <= 10


def test_pauses_are_not_counted() -> None:
    timing = interleave({"a": lambda: None}, Schedule(rounds=1, burst_seconds=0.05, pause_seconds=0.01))["a"]
    assert 1 <= len(timing.samples) <= 5 and timing.median < 0.005


def test_before_round_comes_once_a_round_and_collection_is_off_meanwhile() -> None:
    seen: list[bool] = []
    assert gc.isenabled()
    interleave({"a": lambda: None}, Schedule(rounds=3), lambda: seen.append(gc.isenabled()))
    assert seen == [False] * 3 and gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        interleave({"a": lambda: None}, Schedule(rounds=1), lambda: 1 // 0)
    assert gc.isenabled()


def test_quantiles() -> None:
    timing = Timing([[1.0, 2.0], [3.0, 5.0]])
    assert timing.samples == [1, 2, 3, 5] and timing.median == 2.5
    assert timing.round_medians == [1.5, 4.0] and timing.quantile(1.0) == 5


def test_rest_waits_for_spinning_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """With simulated process time: on a machine that others keep busy, threads may get no time."""
    now = used = 0.0
    spins_until = 0.15

    def sleep(seconds: float) -> None:
        nonlocal now, used
        used += max(0.0, min(now + seconds, spins_until) - now)
        now += seconds

    monkeypatch.setattr(module.time, "perf_counter", lambda: now)
    monkeypatch.setattr(module.time, "process_time", lambda: used)
    monkeypatch.setattr(module.time, "sleep", sleep)
    assert not rest(0.02)
    assert rest(10.0) and spins_until <= now < 1.0


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc to read a process's time from")
def test_the_busy_neighbour_is_busy_and_ends() -> None:
    def ticks(process: int) -> int:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11])

    with busy_neighbour() as process:
        before = ticks(process)
        end = time.monotonic() + 20
        while ticks(process) - before < 5 and time.monotonic() < end:
            time.sleep(0.05)
        assert ticks(process) - before >= 5
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
