"""Finished runs: kept, found again, and whole after an interruption."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.experiments.store import Run, Store

RUN = Run("chain", "nse", {"learning_rate": 0.001, "dropout": 0.5}, 1, "final")


def test_a_run_is_found_again_whatever_the_order_of_its_settings(tmp_path: Path) -> None:
    path = tmp_path / "new" / "runs.jsonl"
    Store(path, {"epochs": 5}).add(RUN, {"valid": 0.7})
    again = Store(path, {"epochs": 5})
    row = again.find(Run("chain", "nse", {"dropout": 0.5, "learning_rate": 0.001}, 1, "final"))
    assert row is not None and row["valid"] == 0.7
    assert again.rows("chain") == [row] and again.rows("chain", "tune") == [] and again.rows("branch") == []


@pytest.mark.parametrize(
    "other",
    [
        Run("branch", RUN.method, RUN.setting, RUN.seed, RUN.stage),
        Run(RUN.experiment, "esmm", RUN.setting, RUN.seed, RUN.stage),
        Run(RUN.experiment, RUN.method, {"learning_rate": 0.002, "dropout": 0.5}, RUN.seed, RUN.stage),
        Run(RUN.experiment, RUN.method, RUN.setting, 2, RUN.stage),
        Run(RUN.experiment, RUN.method, RUN.setting, RUN.seed, "tune"),
    ],
)
def test_another_run_is_not_found(tmp_path: Path, other: Run) -> None:
    store = Store(tmp_path / "runs.jsonl", {})
    store.add(RUN, {"valid": 0.7})
    assert store.find(other) is None


def test_a_line_that_was_cut_off_is_forgotten_and_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    second = Run("chain", "nse", RUN.setting, 2, "final")
    store = Store(path, {})
    store.add(RUN, {"valid": 0.7})
    store.add(second, {"valid": 0.8})
    path.write_bytes(path.read_bytes()[:-9])
    again = Store(path, {})
    assert again.find(RUN) is not None and again.find(second) is None
    again.add(second, {"valid": 0.9})
    rows = Store(path, {}).rows("chain")
    assert [row["valid"] for row in rows] == [0.7, 0.9]


def test_runs_under_other_conditions_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    Store(path, {"epochs": 5}).add(RUN, {"valid": 0.7})
    with pytest.raises(ValueError, match=r"runs\.jsonl must hold runs under \{'epochs': 6\}, got \{'epochs': 5\}"):
        Store(path, {"epochs": 6})
