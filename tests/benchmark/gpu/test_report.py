"""The GPU report of an invented run: every number here is made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.gpu import report
from bench.gpu.budget import Outcome

MADE_UP = {
    "gpu": "Made-up GPU 9000",
    "capability": "9.0",
    "torch": "0",
    "bytes_per_second": 1e12,
    "flops_per_second": 1e14,
    "empty_graph_seconds": 2e-6,
}


def row(implementation: str, seconds: float, **more: Any) -> dict[str, Any]:
    return {
        "workload": "prerank3",
        "candidates": 8192,
        "form": "dense",
        "precision": "bfloat16",
        "implementation": implementation,
        "suite": "eager",
        "graph": False,
        "median": seconds,
        "q1": seconds,
        "q3": seconds,
        "error": 1e-4,
        "bytes": 10**7,
        "flops": 10**9,
        "problem": None,
        **more,
    }


ROWS = [
    row("resflow", 20e-6),
    row("resflow", 12.5e-6, graph=True),
    row("eager", 80e-6),
    row("eager", 50e-6, graph=True),
    row("resflow", 90e-6, candidates=65536, graph=True),
    row("eager", 90e-6, candidates=65536, graph=True),
    row("torch.compile", 0.0, suite="compiled", problem="wrong by 3e-01"),
]
STEPS = [Outcome("build", "passed", 61.0), Outcome("tests", "not run", about="pytest is not installed")]


def test_lines_show_times_ratios_and_the_floor() -> None:
    text = report.markdown(STEPS, MADE_UP, ROWS)
    assert "| prerank3 | 8,192 | bfloat16 | eager | 20.0 | 80.0 | 4.00x | 12.5 | 50.0 | 4.00x | 10.0 | 80 % |" in text
    assert "| prerank3 | 65,536 | bfloat16 | eager |  |  |  | 90.0 | 90.0 | 1.00x | 10.0 | 11 % |" in text
    assert "- prerank3, dense, B = 8,192, bfloat16, compiled suite: torch.compile wrong by 3e-01" in text
    assert "| tests | not run | 0 | pytest is not installed |" in text
    assert "gpu Made-up GPU 9000" in text and "copy 1.00 TB/s" in text and "empty kernel 2.0 us" in text


def test_a_run_without_results_says_so() -> None:
    text = report.markdown([Outcome("build", "failed", 3.0, "exit code 1: no nvcc")], {}, [])
    assert "No GPU was measured." in text and "| build | failed | 3 | exit code 1: no nvcc |" in text


def test_rows_of_a_run_that_was_stopped_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    whole = [json.dumps({"machine": MADE_UP}), *(json.dumps(one) for one in ROWS[:3])]
    file.write_text("\n".join(whole) + "\n" + json.dumps(ROWS[3])[:40], encoding="utf-8")
    assert report.read(file) == (MADE_UP, ROWS[:3])
    assert report.read(tmp_path / "nothing") == ({}, [])


def test_three_files_are_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = report.write(STEPS, MADE_UP, ROWS, tmp_path)
    assert path.name == "gpu-made-up-gpu-9000.md"
    assert {one.suffix for one in tmp_path.iterdir()} == {".md", ".json", ".png"}
    content = json.loads(path.with_suffix(".json").read_text())
    assert content["rows"] == ROWS and content["steps"][0]["name"] == "build"
    assert "(gpu-made-up-gpu-9000.png)" in path.read_text()
