"""Tables, charts and reports from a results file made up by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from examples.experiments import charts, report, tables
from examples.experiments.store import Run, Store
from examples.experiments.tables import Column, Summary

NAMES = {"nse": "NSE", "resflow": "ResFlow"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two seeds of two methods and what tuning tried."""
    store = Store(tmp_path / "runs.jsonl", {"epochs": 5})
    extra = {"details": {}, "seconds": 30.0, "date": "2024-02-03 04:05", "commit": "abc123"}
    for method, valid in (("nse", (0.6, 0.7)), ("resflow", (0.8, 0.5))):
        for rate, value in zip((0.001, 0.002), valid, strict=True):
            run = Run("chain", method, {"dropout": 0.5, "learning_rate": rate}, 0, "tune")
            store.add(run, {"valid": value, "metrics": {}, **extra})
    for method, seed, auc, loss in (
        ("resflow", 1, 0.7, 0.5),
        ("resflow", 2, 0.8, 0.6),
        ("nse", 1, 0.6, 0.3),
        ("nse", 2, 0.62, 0.3),
    ):
        store.add(
            Run("chain", method, {}, seed, "final"), {"valid": 0.1, "metrics": {"auc": auc, "loss": loss}, **extra}
        )
    return store


def test_results_are_means_and_deviations_with_the_best_in_bold(store: Store) -> None:
    rows = tables.ordered(store.rows("chain"), NAMES)
    text = tables.results(rows, [Column("auc", "AUC", 3), Column("loss", "log loss", 2, "low")], NAMES)
    assert text.splitlines() == [
        "| method | AUC | log loss |",
        "| --- | ---: | ---: |",
        "| NSE | 0.610 ± 0.014 | **0.30** ± 0.00 |",
        "| ResFlow | **0.750** ± 0.071 | 0.55 ± 0.07 |",
    ]


def test_the_tuning_table_has_every_setting(store: Store) -> None:
    lines = tables.tuning(tables.ordered(store.rows("chain", "tune"), NAMES), NAMES).splitlines()
    assert lines[0] == "| method | learning rate 0.001, dropout 0.5 | learning rate 0.002, dropout 0.5 |"
    assert lines[2:] == ["| NSE | 0.6000 | **0.7000** |", "| ResFlow | **0.8000** | 0.5000 |"]


def test_a_metric_that_a_row_lacks_is_an_error(store: Store) -> None:
    with pytest.raises(ValueError, match="rows must all have the metric 'gauc', got 4 rows, 4 without it"):
        tables.summary(store.rows("chain"), "gauc")


def test_one_seed_has_no_deviation(store: Store) -> None:
    rows = [row for row in store.rows("chain") if row["seed"] == 1]
    assert "±" not in tables.results(rows, [Column("auc", "AUC")], NAMES)


def test_a_report_says_what_it_was_measured_with(store: Store, tmp_path: Path) -> None:
    rows = store.rows("chain", "tune") + store.rows("chain")
    path = tmp_path / "results" / "chain.md"
    report.write(path, report.head("Chain", store, rows, {"towers": "8-4"}), report.section("Part", "one", "", "two"))
    text = path.read_text()
    for said in ("# Chain", "| commit | abc123 |", "2024-02-03 04:05", "8 runs, 4.0 minutes", "| towers | 8-4 |"):
        assert said in text
    assert "usable cores" in text and "torch" in text and "runs.jsonl" in text
    assert text.endswith("## Part\n\none\n\ntwo\n")
    assert [one.name for one in path.parent.iterdir()] == ["chain.md"]


def test_charts_are_pngs(tmp_path: Path) -> None:
    few = Summary(0.7, 0.01, 5)
    alone = Summary(0.6, float("nan"), 1)
    made = [
        charts.points(tmp_path / "points.png", {"click": {"NSE": few, "ResFlow": alone}}, "AUC"),
        charts.lines(tmp_path / "lines.png", {"width": {"NSE": [(4, few), (8, alone)]}}, "AUC"),
        charts.histograms(
            tmp_path / "bins.png", {"r": {"clicked": [1, 2], "none": [0, 0]}}, np.linspace(0, 1, 3).tolist()
        ),
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in made)
