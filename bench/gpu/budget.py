"""Steps that share a time budget: each runs as its own process, and is stopped when its time is over."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Step:
    """A command with a time limit; ``{seconds}`` in it is replaced by the limit in force, less 20 for its end."""

    name: str
    command: Sequence[str]
    seconds: float
    missing: str | None = None  # why it cannot be run here
    environment: Mapping[str, str] | None = None
    needed: bool = False  # if it fails, the following steps are not run
    refusal: str | None = None  # text in its log that means this machine cannot run it


@dataclass(frozen=True)
class Outcome:
    """The result of a step."""

    name: str
    result: str  # "passed", "failed", "stopped" (its time was over), or "not run"
    seconds: float = 0.0
    about: str = ""

    @property
    def bad(self) -> bool:
        return self.result == "failed"


def run(
    steps: Sequence[Step], seconds: float, logs: Path, clock: Callable[[], float] = time.monotonic
) -> list[Outcome]:
    """Run the steps in order within ``seconds`` in total; each writes ``logs/<name>.log``."""
    end, outcomes = clock() + seconds, list[Outcome]()
    broken: str | None = None
    for step in steps:
        left = min(step.seconds, end - clock())
        if step.missing or broken or left <= 0:
            why = step.missing or (f"{broken} failed" if broken else "the time was over")
            outcomes.append(Outcome(step.name, "not run", about=why))
        else:
            outcomes.append(_run(step, left, logs / f"{step.name.replace(' ', '-')}.log"))
        if step.needed and outcomes[-1].result != "passed" and broken is None:
            broken = step.name
    return outcomes


def _run(step: Step, seconds: float, log: Path) -> Outcome:
    began = time.monotonic()
    environment = {**os.environ, **(step.environment or {})}
    command = [part.replace("{seconds}", f"{max(seconds - 20, 1):.0f}") for part in step.command]
    with log.open("w", encoding="utf-8") as file:
        # It gets a process session of its own, so that its child processes are stopped with it.
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            code = process.wait(seconds)
            result, about = ("passed", "") if code == 0 else _failure(step, code, log)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            result, about = "stopped", f"after its {seconds:.0f} s"
    return Outcome(step.name, result, time.monotonic() - began, about)


def _failure(step: Step, code: int, log: Path) -> tuple[str, str]:
    if step.refusal and step.refusal in log.read_text(encoding="utf-8", errors="replace"):
        return "not run", f"{step.command[0]} says: {step.refusal}"
    return "failed", f"exit code {code}: {_tail(log)}"


def _tail(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no output"
