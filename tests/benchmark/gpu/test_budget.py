"""Steps of a GPU run: their order, their time limits, and how failures are reported."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from bench.gpu.budget import Step, run
from bench.gpu.run import copy_results, steps


def python(script: str) -> list[str]:
    return [sys.executable, "-c", script]


def test_steps_pass_fail_or_are_stopped(tmp_path: Path) -> None:
    began = time.monotonic()
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    outcomes = run(
        [
            Step("good", python("import os; print(os.environ['OWN'])"), 30, environment={"OWN": "value"}),
            Step("bad one", python("print('a reason'); raise SystemExit(3)"), 30),
            Step("long", python(child), 0.5),
            Step("absent", python(""), 30, missing="it is not installed"),
            Step("after", python("print('{seconds}')"), 26),
            Step(
                "refused", python("print('No such device\\nmore'); raise SystemExit(1)"), 30, refusal="No such device"
            ),
            Step("failing", python("print('wrong'); raise SystemExit(1)"), 30, refusal="No such device"),
        ],
        60,
        tmp_path,
    )
    results = [outcome.result for outcome in outcomes]
    assert results == ["passed", "failed", "stopped", "not run", "passed", "not run", "failed"]
    assert outcomes[1].about == "exit code 3: a reason" and outcomes[1].bad and not outcomes[2].bad
    assert outcomes[3].about == "it is not installed"
    assert outcomes[5].about.endswith("says: No such device")
    assert (tmp_path / "good.log").read_text().strip() == "value" and (tmp_path / "bad-one.log").exists()
    assert (tmp_path / "after.log").read_text().strip() == "6"
    assert time.monotonic() - began < 30  # the stopped step's child process was stopped with it


def test_steps_after_a_needed_step_that_failed_are_not_run(tmp_path: Path) -> None:
    outcomes = run(
        [Step("build", python("raise SystemExit(1)"), 30, needed=True), Step("tests", python(""), 30)], 60, tmp_path
    )
    assert [outcome.result for outcome in outcomes] == ["failed", "not run"]
    assert outcomes[1].about == "build failed"


def test_steps_after_the_end_are_reported(tmp_path: Path) -> None:
    now = iter([0.0, 1.0, 61.0])  # the time at the start, and at each step
    outcomes = run([Step("first", python(""), 30), Step("second", python(""), 30)], 60, tmp_path, lambda: next(now))
    assert [(outcome.result, outcome.about) for outcome in outcomes] == [
        ("passed", ""),
        ("not run", "the time was over"),
    ]


def test_a_machine_without_the_test_tools_still_checks_numbers() -> None:
    bare = {step.name: step for step in steps(lambda name: name == "cmake", Path("rows"))}
    assert bare["tests"].missing == "pytest is not installed"
    assert bare["memcheck"].missing == bare["racecheck"].missing == "compute-sanitizer is not there"
    assert not any(bare[name].missing for name in ("configure", "build", "checks", "benchmarks"))
    assert "-G" not in bare["configure"].command and "-n" not in bare["tests"].command
    full = steps(lambda name: True, Path("rows"))
    assert not any(step.missing for step in full) and "Ninja" in full[0].command
    assert not any("pip" in part for step in full for part in step.command)


def test_results_and_logs_are_copied(tmp_path: Path) -> None:
    results, logs, out = tmp_path / "results", tmp_path / "logs", tmp_path / "made" / "out"
    for folder in (results, logs):
        folder.mkdir()
    for file in (results / "gpu-h.md", results / "gpu-h.json", results / "gpu-other.md", logs / "build.log"):
        file.write_text(file.name, encoding="utf-8")
    copy_results(results / "gpu-h.md", logs, out)
    assert {file.name for file in out.iterdir()} == {"gpu-h.md", "gpu-h.json", "build.log"}
    copy_results(logs / "gpu-none.md", logs, out)  # the report of a machine without a GPU lies beside its logs


def test_make_passes_on_where_results_go() -> None:
    """A Makefile variable of that name would override the environment's."""
    makefile = (Path(__file__).parents[3] / "Makefile").read_text(encoding="utf-8")
    assert "\nOUT " not in makefile and "$(OUT)" not in makefile
