"""Steps of a GPU run: their order, their time, and what becomes of those that fail."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from bench.gpu.budget import Step, run
from bench.gpu.run import steps


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
        ],
        60,
        tmp_path,
    )
    assert [outcome.result for outcome in outcomes] == ["passed", "failed", "stopped", "not run", "passed"]
    assert outcomes[1].about == "exit code 3: a reason" and outcomes[1].bad and not outcomes[2].bad
    assert outcomes[3].about == "it is not installed"
    assert (tmp_path / "good.log").read_text().strip() == "value" and (tmp_path / "bad-one.log").exists()
    assert (tmp_path / "after.log").read_text().strip() == "6"
    assert time.monotonic() - began < 30  # what the stopped step had started was stopped with it


def test_what_needs_a_failed_step_is_not_run(tmp_path: Path) -> None:
    outcomes = run(
        [Step("build", python("raise SystemExit(1)"), 30, needed=True), Step("tests", python(""), 30)], 60, tmp_path
    )
    assert [outcome.result for outcome in outcomes] == ["failed", "not run"]
    assert outcomes[1].about == "build failed"


def test_steps_after_the_end_are_reported(tmp_path: Path) -> None:
    now = iter([0.0, 1.0, 61.0])  # the start, and each step's
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
    assert "-G" not in bare["configure"].command
    full = steps(lambda name: True, Path("rows"))
    assert not any(step.missing for step in full) and "Ninja" in full[0].command
    assert not any("pip" in part for step in full for part in step.command)
