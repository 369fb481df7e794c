"""Tuning and final runs: what is trained, with which setting, and that nothing is trained twice."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from examples.experiments.grid import TUNING_SEED, Experimenter, Outcome, cells, one_factor, runs_of
from examples.experiments.store import Run, Store

GRID = cells(learning_rate=(1, 2), dropout=(0.1, 0.3))


class Trials:
    """Stands for training; the best setting is learning rate 2, dropout 0.1, and ``fails_at`` ends it."""

    def __init__(self, fails_at: int = 1_000) -> None:
        self.runs: list[Run] = []
        self.fails_at = fails_at

    def __call__(self, run: Run) -> Outcome:
        if len(self.runs) == self.fails_at:
            raise KeyboardInterrupt
        self.runs.append(run)
        valid = run.setting["learning_rate"] - run.setting["dropout"] + run.seed
        return Outcome(valid, {"auc": valid / 10}, {"epochs": 3})


def experimenter(path: Path) -> tuple[Experimenter, io.StringIO]:
    said = io.StringIO()
    return Experimenter(Store(path, {}), Console(file=said)), said


def test_a_method_is_tuned_with_one_seed_and_reported_with_others_at_its_best(tmp_path: Path) -> None:
    trials, (own, said) = Trials(), experimenter(tmp_path / "runs.jsonl")
    own.plan(runs_of(2, len(GRID), 3))
    own.tuned("chain", ["nse", "resflow"], GRID, range(1, 4), trials)
    assert len(trials.runs) == 2 * (4 + 3) == runs_of(2, 4, 3)
    tuning, final = trials.runs[:4], trials.runs[4:7]
    assert [run.setting for run in tuning] == GRID and {run.seed for run in tuning} == {TUNING_SEED}
    assert [run.seed for run in final] == [1, 2, 3] and TUNING_SEED not in [1, 2, 3]
    assert all(run.setting == {"learning_rate": 2, "dropout": 0.1} and run.stage == "final" for run in final)
    row = own.store.rows("chain")[0]
    assert row["metrics"] == {"auc": 0.29} and row["details"] == {"epochs": 3} and row["seconds"] >= 0
    assert said.getvalue().count("\n") == 14 and "[14/14" in said.getvalue()


def test_an_interrupted_experiment_goes_on_where_it_stopped(tmp_path: Path) -> None:
    first, (own, _) = Trials(fails_at=5), experimenter(tmp_path / "runs.jsonl")
    with pytest.raises(KeyboardInterrupt):
        own.tuned("chain", ["nse", "resflow"], GRID, range(1, 3), first)
    second, (again, _) = Trials(), experimenter(tmp_path / "runs.jsonl")
    again.tuned("chain", ["nse", "resflow"], GRID, range(1, 3), second)
    keys = [run.key for run in first.runs + second.runs]
    assert len(keys) == len(set(keys)) == 2 * (4 + 2)
    third, (finished, said) = Trials(), experimenter(tmp_path / "runs.jsonl")
    finished.tuned("chain", ["nse", "resflow"], GRID, range(1, 3), third)
    assert third.runs == [] and said.getvalue() == ""


def test_a_grid_of_one_cell_is_not_tuned(tmp_path: Path) -> None:
    trials, (own, _) = Trials(), experimenter(tmp_path / "runs.jsonl")
    own.tuned("chain", ["nse"], GRID[:1], range(1, 3), trials)
    assert [run.stage for run in trials.runs] == ["final", "final"] and own.store.rows("chain", "tune") == []


def test_one_factor_at_a_time() -> None:
    settings = [setting for _, setting in one_factor({"width": 8, "rate": 1}, width=(4, 8), rate=(1, 2))]
    assert settings == [
        {"width": 4, "rate": 1},
        {"width": 8, "rate": 1},
        {"width": 8, "rate": 1},
        {"width": 8, "rate": 2},
    ]
