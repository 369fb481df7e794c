"""Compares our kernels with the baselines on the same model, inputs and threads: checks first, then interleaved timing.

:func:`setup` builds and checks the calls, :func:`measure` times them, :func:`run` does both.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..contract import PRECISIONS, complete
from ..testing import PROBABILITY_TOLERANCE
from .baselines import BASELINES, OURS, Floats, Implementation, Model, Requests, exact_scores, label, threads_of
from .interleave import Call, Schedule, Timing, busy_neighbour, interleave

# Largest allowed difference of a probability from the float64 reference; our float32 has a tighter bound of its own.
TOLERANCES = complete("precision", PRECISIONS, {"float32": 1e-4, "bfloat16": 2e-2, "int8": 5e-2})

# Number of rows checked per call: a mistake shows in any row, and float64 is slow.
CHECKED_ROWS = 512


@dataclass(frozen=True)
class Inputs:
    """The inputs to score: rows ``[B, D]`` or requests."""

    rows: Floats | None
    requests: Requests | None = None

    @classmethod
    def dense(cls, model: Model, batch: int, seed: int = 0) -> Inputs:
        """Standard normal rows."""
        return cls(_normal((batch, model.plan.in_features), seed))

    @classmethod
    def of_requests(cls, model: Model, requests: int, candidates: int, seed: int = 0) -> Inputs:
        """Standard normal rows: ``requests`` requests of ``candidates`` candidates each."""
        user = _normal((requests, model.user_width), seed)
        item = _normal((requests * candidates, model.plan.in_features - model.user_width), seed + 1)
        return cls(None, Requests(user, item, np.arange(requests + 1, dtype=np.int64) * candidates))

    def x(self, most: int | None = None) -> Floats:
        """Rows ``[B, D]`` of the dense form, or the first ``most`` of them; rows of requests are joined here."""
        if self.rows is not None:
            return self.rows[:most]
        assert self.requests is not None
        return self.requests.joined(most)


@dataclass
class Entry:
    """One implementation with one way of scoring, and its result."""

    implementation: type[Implementation]
    way: str  # "dense", "joined rows" or "split"
    call: Call | None = None
    problem: str | None = None  # why it is not timed: missing, failed or wrong
    error: float = float("nan")  # largest difference of a probability from the reference
    timing: Timing = field(default_factory=Timing)

    @property
    def name(self) -> str:
        """A name, unique among the entries of a run."""
        return label(self.implementation) + ("" if self.way == "dense" else f", {self.way}")

    @property
    def ours(self) -> bool:
        """Whether it is this package's implementation."""
        return issubclass(self.implementation, OURS)


def setup(
    model: Model,
    inputs: Inputs,
    threads: int,
    implementations: Sequence[type[Implementation]] = (*OURS, *BASELINES),
    ways: Sequence[str] | None = None,
) -> list[Entry]:
    """Build every implementation's calls and check their results; call inside :func:`baselines.threads_of`.

    Args:
        model: the model to score with.
        inputs: the inputs to score.
        threads: thread count of all implementations.
        implementations: the implementations to build.
        ways: how baselines score the request form: "joined rows", "split" or (the default) both. Ours has only "split".

    Returns:
        One entry per implementation and way; entries with a ``problem`` cannot be timed.
    """
    exact = exact_scores(model, inputs.x(CHECKED_ROWS))
    torch._dynamo.reset()  # each call searches all compiled graphs, those of earlier models included
    entries = []
    for implementation in implementations:
        for way in _ways(implementation, inputs, ways):
            entry = Entry(implementation, way, problem=implementation.missing())
            if entry.problem is None:
                _prepare(entry, model, inputs, threads, exact)
            entries.append(entry)
    return entries


def measure(
    entries: Sequence[Entry],
    schedule: Schedule,
    busy: bool = False,
    before_round: Callable[[], None] | None = None,
) -> None:
    """Time the entries that have no problem; ``busy``: while another process keeps a core busy."""
    calls = {entry.name: entry.call for entry in entries if entry.call is not None and entry.problem is None}
    with busy_neighbour() if busy else contextlib.nullcontext():
        timings = interleave(calls, schedule, before_round)
    for entry in entries:
        entry.timing = timings.get(entry.name, entry.timing)


def run(
    model: Model,
    inputs: Inputs,
    threads: int,
    schedule: Schedule,
    implementations: Sequence[type[Implementation]] = (*OURS, *BASELINES),
) -> list[Entry]:
    """:func:`setup` and :func:`measure` on ``threads`` threads."""
    with threads_of(threads):
        entries = setup(model, inputs, threads, implementations)
        measure(entries, schedule)
    return entries


def best_baseline(entries: Sequence[Entry], precision: str | None = None, way: str | None = None) -> Entry | None:
    """The fastest correct baseline, of this precision and way if given."""
    able = [
        entry
        for entry in entries
        if not entry.ours
        and entry.timing.rounds
        and precision in (None, entry.implementation.precision)
        and way in (None, entry.way)
    ]
    return min(able, key=lambda entry: entry.timing.median, default=None)


def _ways(implementation: type[Implementation], inputs: Inputs, ways: Sequence[str] | None) -> Sequence[str]:
    if inputs.requests is None:
        return ("dense",)
    if issubclass(implementation, OURS):
        return ("split",)
    return ("joined rows", "split") if ways is None else ways


def _prepare(entry: Entry, model: Model, inputs: Inputs, threads: int, exact: Any) -> None:
    """Set ``call`` and ``error``, or ``problem``."""
    try:
        with _without_stderr():
            implementation = entry.implementation(model, threads)
            if entry.way == "split":
                assert inputs.requests is not None
                entry.call = implementation.split(inputs.requests)
            else:
                entry.call = implementation.dense(inputs.x())
            got = implementation.result(entry.call())
    except Exception as error:  # a baseline's own failure is a result to report, and the others are still timed
        entry.problem = f"failed: {type(error).__name__}: {_first_line(error)}"
        return
    check(entry, *got, *exact)


def check(
    entry: Entry, probs: Any, score: Any, exact_probs: Any, exact_score: Any, precision: str | None = None
) -> None:
    """Set ``error``, and ``problem`` if the error exceeds a precision's bound (by default the implementation's)."""
    precision = entry.implementation.precision if precision is None else precision
    entry.error = float(np.abs(probs[:CHECKED_ROWS] - exact_probs).max(initial=0.0))
    bound = PROBABILITY_TOLERANCE[precision] if entry.ours and precision == "float32" else TOLERANCES[precision]
    # A score sums or multiplies probabilities that may each be off by the bound: its error is scaled accordingly.
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
def _without_stderr() -> Iterator[None]:
    """Discard standard error in a block: torch.compile writes a table for every product it tunes."""
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with open(os.devnull, "wb") as null:
            os.dup2(null.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(saved, 2)
        os.close(saved)
