"""`resflow quantize`: the bundle it writes scores in the precision, and its report is that of the scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from resflow_kernels import Scorer
from resflow_kernels.cli import build_app
from resflow_kernels.contract import PRECISION_ROWS
from resflow_kernels.serving import bundle


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(build_app(), ["quantize", *map(str, arguments)], env={"COLUMNS": "200"})


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_the_bundle_scores_in_the_precision(files: Any, tmp_path: Path, precision: str) -> None:
    result = invoke(files.model, "-o", tmp_path / "lower", "--precision", precision)
    assert result.exit_code == 0, result.output
    x = np.random.default_rng(0).standard_normal((30, 16)).astype(np.float32)
    lower = Scorer.load(tmp_path / "lower")
    assert lower.plan.precision == precision
    assert np.array_equal(
        lower.dense_scores(x).probs, Scorer.load(files.model, precision=precision).dense_scores(x).probs
    )
    assert not np.array_equal(lower.dense_scores(x).probs, Scorer.load(files.model).dense_scores(x).probs)
    whole, rounded = bundle.load(files.model), bundle.load(tmp_path / "lower")
    assert all(np.array_equal(a, b) for a, b in zip(whole.weights, rounded.weights, strict=True))


def test_the_report_is_that_of_the_scores(files: Any, tmp_path: Path) -> None:
    candidates, rng = files.table.candidates, np.random.default_rng(3)
    scorer = Scorer.load(files.model)
    for task in scorer.tasks:
        candidates = candidates.append_column(task, pa.array(rng.integers(0, 2, len(candidates))))
    pq.write_table(candidates, tmp_path / "labelled")
    result = invoke(files.model, "-o", tmp_path / "lower", "--check", tmp_path / "labelled", "--top-k", 5)
    assert result.exit_code == 0, result.output
    x = np.concatenate([scorer.embed_users(candidates), scorer.embed_items(candidates)], axis=1)
    lower = Scorer.load(files.model, precision="int8")
    largest = np.abs(lower.dense_scores(x).probs - scorer.dense_scores(x).probs).max(0)
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.output.splitlines() if "│" in line]
    assert [row[0] for row in cells] == list(scorer.tasks)
    reported = np.array([float(row[1]) for row in cells])
    np.testing.assert_allclose(reported, largest, atol=6e-6)
    assert all(0.3 < float(row[3]) < 0.7 for row in cells)
    assert "top 5 of a request kept: " in result.output and " %" in result.output
    result = invoke(files.model, "-o", tmp_path / "lower", "--check", tmp_path / "labelled", "--top-k", 400)
    assert "top 400 of a request kept: no request has more candidates" in result.output


def test_without_labels_there_is_no_auc(files: Any, tmp_path: Path) -> None:
    result = invoke(files.model, "-o", tmp_path / "lower", "--check", files.candidates)
    assert result.exit_code == 0 and "largest error" in result.output
    rows = [line.split("│")[1:-1] for line in result.output.splitlines() if "│" in line]
    assert len(rows) == 3 and all(row[3].strip() == "" for row in rows)


def test_bad_input_is_named_and_nothing_is_written(files: Any, tmp_path: Path) -> None:
    pq.write_table(
        files.table.candidates.append_column("ctr", pa.array(np.full(len(files.table.candidates), 2)))
        .append_column("atcr", pa.array(np.zeros(len(files.table.candidates))))
        .append_column("ctcvr", pa.array(np.zeros(len(files.table.candidates)))),
        tmp_path / "twos",
    )
    for arguments, text in (
        (
            (files.model, "--precision", "int4"),
            f"precision must be one of {', '.join(PRECISION_ROWS)}, got 'int4'",
        ),
        ((files.bare, "--check", files.candidates), "must be a model with features to check on a table"),
        ((files.model, "--check", tmp_path / "none"), "must be a file, a folder or a pattern of files, got no file"),
        ((files.model, "--check", tmp_path / "twos"), "column 'ctr' must be 0 or 1, got 2.0"),
    ):
        result = invoke(*arguments, "-o", tmp_path / "lower")
        assert result.exit_code == 2 and text in " ".join(result.output.split()), result.output
        assert not (tmp_path / "lower").exists()
