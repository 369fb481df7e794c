"""``make gpu``: build, checks, tests, sanitizer, benchmarks and report, in this order within nine minutes.

Uses the installed torch (a CUDA build), NumPy, CMake and nvcc. Nothing is downloaded or installed; the report lists
what is missing.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from bench.gpu.budget import Outcome, Step, run

ROOT = Path(__file__).parent.parent.parent
SECONDS = 520  # out of ten minutes: the rest is for starting and ending


def steps(have: Callable[[str], bool], rows: Path) -> list[Step]:
    """The steps, in order; ``have`` says whether a program or package is there, ``rows`` is the suite's output."""
    python, build = sys.executable, str(ROOT / "build" / "gpu")
    settings = [f"-DPython_EXECUTABLE={python}", f"-DRESFLOW_OUTPUT={ROOT / 'resflow_kernels'}", "-DRESFLOW_CUDA=ON"]
    configure = ["cmake", "-S", str(ROOT), "-B", build, *(["-G", "Ninja"] if have("ninja") else []), *settings]
    no_cmake = None if have("cmake") else "cmake is not there"
    no_tests = next((f"{name} is not installed" for name in ("pytest", "hypothesis") if not have(name)), None)
    no_sanitizer = None if have("compute-sanitizer") else "compute-sanitizer is not there"
    # -v prints one line per test, so that the log of a stopped run shows which tests passed.
    tests = [
        python,
        "-m",
        "pytest",
        "-v",
        "--tb=short",
        "-p",
        "no:cacheprovider",
        "tests/ops",
        "tests/cuda",
        "tests/triton",
        "-k",
        "cuda or triton",
    ]
    devices = {"RESFLOW_TEST_DEVICES": "cuda,triton"}
    if have("xdist"):
        tests += ["-n", "4", "--dist", "worksteal"]
    checks = [python, "-m", "bench.gpu.checks"]
    sanitizer = ["compute-sanitizer", "--error-exitcode", "9", "--tool"]
    # Every tensor gets a block of its own, so that an access past its end is detected.
    watched = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    refused = "Device not supported"  # under some virtual machines
    races = [*sanitizer, "racecheck", *checks, "--small", "--only", "dense"]
    return [
        Step("configure", configure, 40, no_cmake, needed=True),
        Step("build", ["cmake", "--build", build, "--parallel", "--target", "extensions"], 150, needed=True),
        Step("checks", checks, 60),
        Step("tests", tests, 70, no_tests, devices | ({"OMP_NUM_THREADS": "4"} if have("xdist") else {})),
        Step("memcheck", [*sanitizer, "memcheck", *checks, "--small"], 45, no_sanitizer, watched, refusal=refused),
        Step("racecheck", races, 30, no_sanitizer, watched, refusal=refused),
        Step("benchmarks", [python, "-m", "bench.gpu.suite", str(rows), "--seconds", "{seconds}"], 300),
    ]


PACKAGES = ("pytest", "hypothesis", "xdist")  # names of Python packages; other names are programs


def have(name: str) -> bool:
    """Whether a program, or for the tests a package, of this name exists."""
    return find_spec(name) is not None if name in PACKAGES else shutil.which(name) is not None


def copy_results(report: Path, logs: Path, folder: Path) -> None:
    """Copy the report's files and the logs of its steps to ``folder``, outside this checkout."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted({*report.parent.glob(f"{report.stem}.*"), *logs.glob("*.*")}):
        shutil.copy(file, folder)


def main() -> int:
    from bench.gpu.report import read, write

    work = ROOT / "build" / "gpu-logs"
    work.mkdir(parents=True, exist_ok=True)
    file = work / "suite.jsonl"
    file.unlink(missing_ok=True)
    outcomes: list[Outcome] = run(steps(have, file), SECONDS, work)
    for outcome in outcomes:
        print(f"{outcome.result:8s} {outcome.name} ({outcome.seconds:.0f} s) {outcome.about}")
    machine, rows = read(file)
    # The report of a machine without a GPU, or of a failed build, is not kept among the results.
    report = write(outcomes, machine, rows, ROOT / "bench" / "results" if machine else work)
    print(f"logs: {work}\nreport: {report}")
    if folder := os.environ.get("OUT"):
        copy_results(report, work, Path(folder))
        print(f"copied to {folder}")
    return 1 if any(outcome.bad for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
