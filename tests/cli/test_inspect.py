"""``resflow inspect``: facts as JSON and as text, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from resflow_kernels.cli import build_app


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(build_app(), ["inspect", *map(str, arguments)], env={"COLUMNS": "160"})


def test_json(files: Any) -> None:
    result = invoke(files.model, "--json")
    assert result.exit_code == 0
    facts = json.loads(result.stdout)
    assert facts["tasks"] == ["ctr", "atcr", "ctcvr"] and facts["plan"]["parents"] == [-1, 0, 1]
    assert facts["bytes"] == files.model.stat().st_size
    assert facts["fusion"] == {"kind": "additive", "weights": [1.0, 20.0, 20.0]}
    tower = 16 * 12 + 12 + 12 + 12 * 6 + 6 + 6 + 6 + 1  # weights, biases, slopes, head
    tables = {entry["name"]: entry for side in ("user", "item") for entry in facts["features"][side]}
    assert facts["parameters"]["towers"] == 3 * tower
    assert facts["parameters"]["tables"] == sum(entry["rows"] * entry["dim"] for entry in tables.values())
    assert facts["flop_per_candidate"] == 2 * 3 * (16 * 12 + 12 * 6 + 6)
    assert tables["request"] == {"name": "request", "kind": "id", "values": "strings", "rows": 13, "dim": 5}
    assert tables["tags"]["kind"] == "ids" and facts["features"]["item_width"] == 8


def test_text(files: Any) -> None:
    output = invoke(files.model).stdout
    for text in (
        "└── ctcvr",
        "3 of 16-12-6-1",
        "additive (1, 20, 20)",
        "feature_residual on",
        "prelu, prelu",
        "bucket",
    ):
        assert text in output
    bare = invoke(files.bare)
    assert bare.exit_code == 0 and "bucket" not in bare.stdout


@pytest.mark.parametrize(("content", "text"), [(None, "got no file"), (b"hello", "must be a whole safetensors file")])
def test_unreadable_model(tmp_path: Path, content: bytes | None, text: str) -> None:
    path = tmp_path / "model"
    if content is not None:
        path.write_bytes(content)
    result = invoke(path)
    assert result.exit_code == 2 and result.stderr.startswith(f"resflow: {path}") and text in result.stderr
    assert result.stderr.count("\n") == 1 and result.stdout == ""
