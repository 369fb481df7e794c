"""``resflow bench``: rows for ours and the chosen baselines, and refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

pytest.importorskip("resflow_kernels._runtime", reason="the compiled library is not built")

from resflow_kernels.benchmark import baselines
from resflow_kernels.cli import build_app


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(build_app(), ["bench", *map(str, arguments)], env={"COLUMNS": "160"})


def test_json(files: Any) -> None:
    result = invoke(files.model, "--peers", "eager", "--batches", "1,40,1", "--rounds", 2, "--threads", 1, "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    implementations = [("resflow", "float32"), ("resflow", "bfloat16"), ("resflow", "int8"), ("eager", "float32")]
    expected = [(batch, *implementation) for batch in (1, 40) for implementation in implementations]
    assert [(row["batch"], row["contestant"], row["precision"]) for row in rows] == expected
    for row in rows:
        assert row["problem"] is None and row["calls"] >= 2
        assert 0 < row["median_us"] <= row["p99_us"]


def test_table(files: Any) -> None:
    output = invoke(files.bare, "--peers", "eager", "--batches", "2000", "--rounds", 1).stdout
    assert "2,000" in output and "resflow" in output and "eager" in output and "x)" in output


def test_a_missing_baseline_is_named(files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines.OnnxRuntime, "needs", ("a_library_nobody_has",))
    result = invoke(files.bare, "--peers", "eager,onnxruntime", "--batches", "3", "--rounds", 1)
    assert result.exit_code == 0
    assert "onnxruntime: not timed: a_library_nobody_has is not installed" in result.stdout


@pytest.mark.parametrize(
    ("option", "text"),
    [
        (("--peers", "tensorflow"), "--peers must be of eager, torch.compile, onnxruntime, openvino, got 'tensorflow'"),
        (("--batches", "1,x"), "--batches must be whole numbers with commas between, got '1,x'"),
        (("--batches", "0"), "--batches must be at least 1, got '0'"),
        (("--threads", "0"), "--threads must be at least 1, got 0"),
        (("--rounds", "0"), "--rounds must be at least 1, got 0"),
    ],
)
def test_refusals(files: Any, option: tuple[str, str], text: str) -> None:
    result = invoke(files.bare, *option)
    assert result.exit_code == 2 and result.stderr == f"resflow: {text}\n" and result.stdout == ""
