"""Times several calls interleaved within one process, so that clock speed, memory and other processes affect all alike.

Each round runs every call once: a rest until the threads of the previous implementation have fallen asleep (OpenMP's
were measured to spin for 8 ms after a call and ONNX Runtime's for more than 28, which would take a core from the next),
untimed calls until caches and threads are warm, then a burst of timed calls. The order changes from round to round.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

Call = Callable[[], object]

_LONG_SECONDS = 0.1  # a call of this length needs no warm-up
_REST_STEP = 0.004  # long compared with the cost of reading the process's time


@dataclass(frozen=True)
class Schedule:
    """How many calls are made, and for how long.

    Args:
        rounds: number of rounds, at least 1.
        burst_seconds: approximate length of one burst of timed calls.
        most_calls: largest number of timed calls per burst; at least one is made.
        most_rest_seconds: longest wait for other implementations' threads to fall asleep.
        warm_seconds: length of the untimed calls before a burst, at least one call (none if a call takes over 0.1 s).
        pause_seconds: sleep before each timed call, as between the requests of a server.
    """

    rounds: int = 15
    burst_seconds: float = 0.03
    most_calls: int = 200
    most_rest_seconds: float = 0.5
    warm_seconds: float = 0.002
    pause_seconds: float = 0.0


@dataclass
class Timing:
    """Seconds of every timed call of one implementation, by round."""

    rounds: list[list[float]] = field(default_factory=list)

    @property
    def samples(self) -> list[float]:
        """Seconds of all calls, in the order they were made."""
        return [seconds for burst in self.rounds for seconds in burst]

    def quantile(self, share: float) -> float:
        """The quantile of the calls' seconds at ``share``."""
        return float(np.quantile(self.samples, share))

    @property
    def median(self) -> float:
        """Median seconds per call."""
        return self.quantile(0.5)

    @property
    def round_medians(self) -> list[float]:
        """The median of each round: distinguishes drift of the machine from the implementation's own spread."""
        return [float(np.median(burst)) for burst in self.rounds]


def interleave(
    calls: Mapping[str, Call], schedule: Schedule, before_round: Callable[[], None] | None = None
) -> dict[str, Timing]:
    """Time every call, interleaved.

    Args:
        calls: one call per name; each does all its work before it returns.
        schedule: see :class:`Schedule`.
        before_round: called before each round, untimed (to measure the machine's peak, say).

    Returns:
        One :class:`Timing` per name.
    """
    lengths = {name: _burst_length(call, schedule) for name, call in calls.items()}
    timings = {name: Timing() for name in calls}
    with _no_garbage_collection():
        for index in range(schedule.rounds):
            if before_round is not None:
                rest(schedule.most_rest_seconds)
                before_round()
            for name in _order(list(calls), index):
                timings[name].rounds.append(_burst(calls[name], *lengths[name], schedule))
    return timings


def _order(names: list[str], index: int) -> list[str]:
    """The order of a round: rotated, and reversed every other round, so that no call always follows the same one."""
    first = index // 2 % max(len(names), 1)
    rotated = names[first:] + names[:first]
    return rotated[::-1] if index % 2 else rotated


def _burst_length(call: Call, schedule: Schedule) -> tuple[int, int]:
    """The numbers of untimed and timed calls per round."""
    call()  # compiles and allocates on first use
    first = _seconds(call)
    # A single call is a poor estimate: take the median of more, but not for long.
    tries = 0 if first > _LONG_SECONDS else 3 if first > 0.003 else 20
    seconds = max(float(np.median([first, *(_seconds(call) for _ in range(tries))])), 1e-7)
    timed = int(schedule.burst_seconds / (seconds + schedule.pause_seconds))
    untimed = 0 if seconds > _LONG_SECONDS else max(1, int(schedule.warm_seconds / seconds))
    return untimed, max(1, min(timed, schedule.most_calls))


def _burst(call: Call, untimed: int, timed: int, schedule: Schedule) -> list[float]:
    rest(schedule.most_rest_seconds)
    for _ in range(untimed):
        call()
    if not schedule.pause_seconds:
        return [_seconds(call) for _ in range(timed)]
    samples = []
    for _ in range(timed):
        time.sleep(schedule.pause_seconds)
        samples.append(_seconds(call))
    return samples


def rest(most_seconds: float) -> bool:
    """Sleep until this process's threads use no more processor time; returns whether they stopped in time."""
    end = time.perf_counter() + most_seconds
    while time.perf_counter() < end:
        before = time.process_time()
        time.sleep(_REST_STEP)
        if time.process_time() - before < 0.1 * _REST_STEP:
            return True
    return False


def _seconds(call: Call) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Disable garbage collection: a collection would be charged to whichever call is running."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


# The process ends when its parent is gone, so that a killed benchmark leaves no core busy.
_SPIN = """
import os
parent = int({parent})
while os.getppid() == parent:
    for _ in range(1000000):
        pass
"""


@contextmanager
def busy_neighbour() -> Iterator[int]:
    """Keep one core busy by a separate process, which shares no interpreter lock; yields its process id."""
    process = subprocess.Popen([sys.executable, "-S", "-E", "-c", _SPIN.format(parent=os.getpid())])
    try:
        time.sleep(0.2)  # until its interpreter has started
        yield process.pid
    finally:
        process.kill()
        process.wait()
