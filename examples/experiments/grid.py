"""Tune each method on a small grid with one seed, then train it with several seeds at its best setting."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import product
from typing import Any

from rich.console import Console

from .machine import commit
from .store import Row, Run, Setting, Store

# The seed of the grid search, which no reported run has, so that luck in tuning is not reported.
TUNING_SEED = 0


@dataclass(frozen=True)
class Outcome:
    """The result of a run.

    Args:
        valid: the quantity that tuning maximises, measured on validation data only.
        metrics: the numbers of the tables by name, measured on test data.
        details: anything else to keep, as JSON values (epochs, histograms, fusion weights).
    """

    valid: float
    metrics: Mapping[str, float]
    details: Mapping[str, Any]


Trial = Callable[[Run], Outcome]


def cells(**values: Sequence[Any]) -> list[dict[str, Any]]:
    """All combinations of the hyper-parameters' values.

    >>> cells(lr=(1, 2), dropout=(0.5,))
    [{'lr': 1, 'dropout': 0.5}, {'lr': 2, 'dropout': 0.5}]
    """
    return [dict(zip(values, combination, strict=True)) for combination in product(*values.values())]


class Experimenter:
    """Trains runs that the store lacks, and prints the progress.

    Args:
        store: finished runs.
        console: the console for the progress, one line per run.
    """

    def __init__(self, store: Store, console: Console) -> None:
        self.store, self.console = store, console
        self._planned = self._done = 0
        self._seconds = 0.0

    def plan(self, runs: int) -> None:
        """Announce the number of further runs, for the progress lines."""
        self._planned += runs

    def tuned(
        self, experiment: str, methods: Sequence[str], grid: Sequence[Setting], seeds: Iterable[int], trial: Trial
    ) -> None:
        """Tune every method, then train it with every seed at the setting that was best on validation data."""
        chosen = list(seeds)
        for method in methods:
            best = self.best(experiment, method, grid, trial)
            for seed in chosen:
                self.run(Run(experiment, method, best, seed, "final"), trial)

    def best(self, experiment: str, method: str, grid: Sequence[Setting], trial: Trial) -> Setting:
        """The setting of the grid with the best validation outcome; among equals, the first."""
        if len(grid) == 1:
            self._done += 1  # planned, but there is no choice to make
            return grid[0]
        rows = [self.run(Run(experiment, method, setting, TUNING_SEED, "tune"), trial) for setting in grid]
        return max(rows, key=lambda row: row["valid"])["setting"]

    def run(self, run: Run, trial: Trial) -> Row:
        """A run's row: the stored one, or that of training it now."""
        self._done += 1
        stored = self.store.find(run)
        if stored is not None:
            return stored
        started = time.perf_counter()
        outcome = trial(run)
        seconds = time.perf_counter() - started
        row = self.store.add(
            run,
            {
                "valid": round(outcome.valid, 6),
                "metrics": {name: round(value, 6) for name, value in outcome.metrics.items()},
                "details": dict(outcome.details),
                "seconds": round(seconds, 3),
                "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M"),
                "commit": commit(),
            },
        )
        self._report(run, row)
        return row

    def _report(self, run: Run, row: Row) -> None:
        self._seconds += row["seconds"]
        setting = ", ".join(f"{name} {value}" for name, value in run.setting.items())
        self.console.print(
            f"[{self._done}/{max(self._planned, self._done)}, {self._seconds / 60:.1f} min] {run.experiment}: "
            f"{run.method} ({setting}), {run.stage} seed {run.seed}: validation {row['valid']:.5f}, "
            f"{row['seconds']:.1f} s",
            markup=False,
            soft_wrap=True,
        )


def runs_of(methods: int, grid: int, seeds: int) -> int:
    """Number of runs of :meth:`Experimenter.tuned`."""
    return methods * (grid + seeds)


def one_factor(base: Setting, **values: Sequence[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Settings that differ from a base in one hyper-parameter, with its name; the base itself occurs once per name.

    >>> [setting["lr"] for name, setting in one_factor({"lr": 1, "dim": 8}, lr=(1, 2))]
    [1, 2]
    """
    for name, choices in values.items():
        for value in choices:
            yield name, {**base, name: value}
