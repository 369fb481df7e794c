"""Times contestants in turns within one process, so that they share its clock speed, memory and neighbours.

In each round every contestant has one turn: a rest until the threads of the one before have fallen asleep (OpenMP's
were measured to spin for 8 ms after a call and ONNX Runtime's for more than 28, and would take a core from the next),
calls that do not count until its caches and threads are warm, then a burst of timed calls. The order changes from
round to round.
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

_LONG_SECONDS = 0.1  # a call this long warms itself
_REST_STEP = 0.004  # long enough for a look at the process's time to be little of it


@dataclass(frozen=True)
class Schedule:
    """How long a contest takes.

    Args:
        rounds: turns a contestant has, at least 1.
        burst_seconds: about how long a turn's timed calls take.
        most_calls: timed calls a turn at most; at least one is made.
        most_rest_seconds: how long a turn waits for others' threads to fall asleep.
        warm_seconds: how long untimed calls last at the start of a turn, one at least (calls of over 0.1 s have none).
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
    """Seconds of every timed call of one contestant, by turn."""

    turns: list[list[float]] = field(default_factory=list)

    @property
    def samples(self) -> list[float]:
        """All of them, in the order they were made."""
        return [seconds for turn in self.turns for seconds in turn]

    def quantile(self, share: float) -> float:
        """Seconds that this share of the calls stayed within."""
        return float(np.quantile(self.samples, share))

    @property
    def median(self) -> float:
        """Median seconds of a call."""
        return self.quantile(0.5)

    @property
    def turn_medians(self) -> list[float]:
        """The median of each turn: what tells the machine's moods from the contestant's own spread."""
        return [float(np.median(turn)) for turn in self.turns]


def take_turns(
    calls: Mapping[str, Call], schedule: Schedule, before_round: Callable[[], None] | None = None
) -> dict[str, Timing]:
    """Time every call in turns.

    Args:
        calls: contestants by name; each does all its work before it returns.
        schedule: see :class:`Schedule`.
        before_round: called before each round, untimed (to measure the machine's peak, say).

    Returns:
        A :class:`Timing` for each name.
    """
    lengths = {name: _burst_length(call, schedule) for name, call in calls.items()}
    timings = {name: Timing() for name in calls}
    with _no_garbage_collection():
        for turn in range(schedule.rounds):
            if before_round is not None:
                rest(schedule.most_rest_seconds)
                before_round()
            for name in _order(list(calls), turn):
                timings[name].turns.append(_turn(calls[name], *lengths[name], schedule))
    return timings


def _order(names: list[str], turn: int) -> list[str]:
    """Rotated, and every other round backwards, so that nobody always follows the same contestant."""
    first = turn // 2 % max(len(names), 1)
    rotated = names[first:] + names[:first]
    return rotated[::-1] if turn % 2 else rotated


def _burst_length(call: Call, schedule: Schedule) -> tuple[int, int]:
    """How many untimed and timed calls a turn has."""
    call()  # whatever is compiled or allocated on first use
    first = _seconds(call)
    # One call's time tells little: more of them, but not for long.
    tries = 0 if first > _LONG_SECONDS else 3 if first > 0.003 else 20
    seconds = max(float(np.median([first, *(_seconds(call) for _ in range(tries))])), 1e-7)
    timed = int(schedule.burst_seconds / (seconds + schedule.pause_seconds))
    untimed = 0 if seconds > _LONG_SECONDS else max(1, int(schedule.warm_seconds / seconds))
    return untimed, max(1, min(timed, schedule.most_calls))


def _turn(call: Call, untimed: int, timed: int, schedule: Schedule) -> list[float]:
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
    """Sleep until this process's threads use no processor time any more; whether they stopped in time."""
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
    """A collection would fall on whoever happens to be running."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


# It ends itself when its parent is gone, so that a killed benchmark leaves no core busy.
_SPIN = """
import os
parent = int({parent})
while os.getppid() == parent:
    for _ in range(1000000):
        pass
"""


@contextmanager
def busy_neighbour() -> Iterator[int]:
    """Keep one core busy meanwhile, from a process of its own (no interpreter lock is shared); yields its id."""
    process = subprocess.Popen([sys.executable, "-S", "-E", "-c", _SPIN.format(parent=os.getpid())])
    try:
        time.sleep(0.2)  # until its interpreter has started
        yield process.pid
    finally:
        process.kill()
        process.wait()
