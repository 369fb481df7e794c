"""A contest: ours and the peers on the same model, inputs and threads; checked first, then timed in turns."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..testing import PROBABILITY_TOLERANCE
from .peers import OURS, PEERS, Contestant, Floats, Model, Requests, exact_scores, label, threads_of
from .turns import Call, Schedule, Timing, busy_neighbour, take_turns

# Greatest difference of a peer's probability from the float64 reference's; our float32 is held to its own bound.
TOLERANCES = {"float32": 1e-4, "bfloat16": 2e-2, "int8": 5e-2}

# Rows of a call whose probabilities are checked: a mistake shows in any of them, and float64 is slow.
CHECKED_ROWS = 512


@dataclass(frozen=True)
class Inputs:
    """What is scored: rows ``[B, D]`` or requests."""

    rows: Floats | None
    requests: Requests | None = None

    @classmethod
    def dense(cls, model: Model, batch: int, seed: int = 0) -> Inputs:
        """Standard normal rows."""
        return cls(_normal((batch, model.plan.in_features), seed))

    @classmethod
    def of_requests(cls, model: Model, requests: int, candidates: int, seed: int = 0) -> Inputs:
        """``requests`` requests of ``candidates`` candidates each, standard normal."""
        user = _normal((requests, model.user_width), seed)
        item = _normal((requests * candidates, model.plan.in_features - model.user_width), seed + 1)
        return cls(None, Requests(user, item, np.arange(requests + 1, dtype=np.int64) * candidates))

    def x(self, most: int | None = None) -> Floats:
        """The dense form's rows ``[B, D]``, or the first ``most`` of them; those of requests are joined here."""
        if self.rows is not None:
            return self.rows[:most]
        assert self.requests is not None
        return self.requests.joined(most)


@dataclass
class Entry:
    """One contestant's way of scoring, and how it did."""

    contestant: type[Contestant]
    way: str  # "dense", "joined rows" or "split"
    call: Call | None = None
    problem: str | None = None  # why it is not timed: missing, failed or wrong
    error: float = float("nan")  # greatest difference of a probability from the reference
    timing: Timing = field(default_factory=Timing)

    @property
    def name(self) -> str:
        """Unique among a contest's entries."""
        return label(self.contestant) + ("" if self.way == "dense" else f", {self.way}")

    @property
    def ours(self) -> bool:
        """Whether it is this package's."""
        return issubclass(self.contestant, OURS)


def enter(
    model: Model,
    inputs: Inputs,
    threads: int,
    contestants: Sequence[type[Contestant]] = (*OURS, *PEERS),
    ways: Sequence[str] | None = None,
) -> list[Entry]:
    """Build every contestant's calls and check what they return; call inside :func:`peers.threads_of`.

    Args:
        model: what is scored with.
        inputs: what is scored.
        threads: for all of them.
        contestants: who takes part.
        ways: of the request form, for peers: "joined rows", "split" or (the default) both. Ours has "split" alone.

    Returns:
        An entry a contestant and way; those with a ``problem`` cannot be timed.
    """
    exact = exact_scores(model, inputs.x(CHECKED_ROWS))
    torch._dynamo.reset()  # graphs of earlier contests are looked through at every call of a later one's
    entries = []
    for contestant in contestants:
        for way in _ways(contestant, inputs, ways):
            entry = Entry(contestant, way, problem=contestant.missing())
            if entry.problem is None:
                _prepare(entry, model, inputs, threads, exact)
            entries.append(entry)
    return entries


def run(
    entries: Sequence[Entry],
    schedule: Schedule,
    busy: bool = False,
    before_round: Callable[[], None] | None = None,
) -> None:
    """Time the entries that have no problem; ``busy``: beside a process that keeps a core busy."""
    calls = {entry.name: entry.call for entry in entries if entry.call is not None and entry.problem is None}
    with busy_neighbour() if busy else contextlib.nullcontext():
        timings = take_turns(calls, schedule, before_round)
    for entry in entries:
        entry.timing = timings.get(entry.name, entry.timing)


def hold(
    model: Model,
    inputs: Inputs,
    threads: int,
    schedule: Schedule,
    contestants: Sequence[type[Contestant]] = (*OURS, *PEERS),
) -> list[Entry]:
    """:func:`enter` and :func:`run` on ``threads`` threads."""
    with threads_of(threads):
        entries = enter(model, inputs, threads, contestants)
        run(entries, schedule)
    return entries


def best_peer(entries: Sequence[Entry], precision: str | None = None, way: str | None = None) -> Entry | None:
    """The fastest peer that is right; of this precision and way, if given."""
    able = [
        entry
        for entry in entries
        if not entry.ours
        and entry.timing.turns
        and precision in (None, entry.contestant.precision)
        and way in (None, entry.way)
    ]
    return min(able, key=lambda entry: entry.timing.median, default=None)


def _ways(contestant: type[Contestant], inputs: Inputs, ways: Sequence[str] | None) -> Sequence[str]:
    if inputs.requests is None:
        return ("dense",)
    if issubclass(contestant, OURS):
        return ("split",)
    return ("joined rows", "split") if ways is None else ways


def _prepare(entry: Entry, model: Model, inputs: Inputs, threads: int, exact: Any) -> None:
    """Set ``call`` and ``error``, or ``problem``."""
    try:
        with _quiet():
            contestant = entry.contestant(model, threads)
            if entry.way == "split":
                assert inputs.requests is not None
                entry.call = contestant.split(inputs.requests)
            else:
                entry.call = contestant.dense(inputs.x())
            got = contestant.result(entry.call())
    except Exception as error:  # a peer's own failure is a result to report, and the contest goes on without it
        entry.problem = f"failed: {type(error).__name__}: {_first_line(error)}"
        return
    check(entry, *got, *exact)


def check(
    entry: Entry, probs: Any, score: Any, exact_probs: Any, exact_score: Any, precision: str | None = None
) -> None:
    """Set ``error``, and ``problem`` if it is beyond a precision's bound (by default the contestant's)."""
    precision = entry.contestant.precision if precision is None else precision
    entry.error = float(np.abs(probs[:CHECKED_ROWS] - exact_probs).max(initial=0.0))
    bound = PROBABILITY_TOLERANCE[precision] if entry.ours and precision == "float32" else TOLERANCES[precision]
    # A score adds up or multiplies what may be off by the bound each, so it is held to the relative scale of them.
    scale = max(1.0, float(np.abs(exact_score).max(initial=0.0)))
    score_error = float(np.abs(score[:CHECKED_ROWS] - exact_score).max(initial=0.0)) / (scale * exact_probs.shape[1])
    if not (entry.error <= bound and score_error <= bound):
        entry.problem = (
            f"wrong: probabilities off by {entry.error:.1e}, score by {score_error:.1e}, allowed {bound:.0e}"
        )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]


def _normal(shape: tuple[int, int], seed: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Standard error to nowhere meanwhile: torch.compile writes a table for every product it tunes."""
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(saved, 2)
        os.close(saved)
