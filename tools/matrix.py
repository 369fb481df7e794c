"""Tests one wheel with several versions of torch, on the CPU: `make test-matrix`.

    python -m tools.matrix [--folder build/matrix] VERSION ...    2.10.0 and the like, or `newest`

The ops are one binary for every torch from 2.10 on, so the wheel is built once, with the torch of the Python that runs
this, and each version gets an environment of its own, which is kept for later runs. Most versions come with CUDA and
take gigabytes. A version that cannot be installed is skipped, with pip's reason.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = ("contract", "nn", "ops")
LEFT_OUT = "not every_instruction_set"  # repeats the tests per instruction set, which is independent of torch
PACKAGES = ("numpy", "safetensors", "hypothesis", "pytest", "pytest-xdist", "setuptools")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.matrix")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "matrix")
    parser.add_argument("versions", nargs="+", metavar="VERSION")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    wheel = build_wheel(folder)
    tests = copy_tests(folder)
    lines, failures = [], 0
    for version in arguments.versions:
        line, failed = run(folder, wheel, tests, version)
        lines.append(line)
        failures += failed
    print("== result\n" + "\n".join(lines))
    raise SystemExit(failures > 0)


def build_wheel(folder: Path) -> Path:
    print("== the wheel", flush=True)
    shutil.rmtree(folder / "wheel", ignore_errors=True)
    # A reused folder would bring files into the wheel that have been moved since.
    base = ["build", "--build-base", str(folder / "base")]
    shutil.rmtree(folder / "base", ignore_errors=True)
    command = [sys.executable, "setup.py", "--quiet", *base, "bdist_wheel", "--dist-dir", str(folder / "wheel")]
    subprocess.run(command, cwd=ROOT, check=True)
    return next((folder / "wheel").glob("*.whl"))


def copy_tests(folder: Path) -> Path:
    """Copy the tests to a folder without a package: in the checkout they would import the checkout's own."""
    copy = folder / "checkout"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(ROOT / "tests", copy / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    return copy


def run(folder: Path, wheel: Path, tests: Path, version: str) -> tuple[str, bool]:
    """A line about one version of torch, and whether its tests failed."""
    python = folder / f"torch-{version}" / "bin" / "python"
    print(f"== torch {version}", flush=True)
    problem = prepare(python, wheel, version)
    if problem is not None:
        return f"torch {version}: skipped, it could not be installed: {problem}", False
    found = output(python, "-c", "import sys, torch; print(torch.__version__, '| Python', sys.version.split()[0])")
    begun = time.monotonic()
    folders = [f"tests/{name}" for name in TESTS]
    code, text = show([str(python), "-m", "pytest", "-q", "-rfEs", "-n", "auto", "-k", LEFT_OUT, *folders], tests)
    return f"torch {found}: {text} (pytest took {time.monotonic() - begun:.0f} s)", code != 0


def prepare(python: Path, wheel: Path, version: str) -> str | None:
    """Make or refresh an environment; returns pip's reason if torch cannot be installed."""
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(python.parents[1])], check=True)
    torch = "torch" if version == "newest" else f"torch=={version}"
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    done = subprocess.run([*pip, "--upgrade", torch], stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        return (errors or done.stderr.splitlines() or ["without a word"])[-1]
    subprocess.run([*pip, *PACKAGES], check=True)
    subprocess.run([*pip, "--no-deps", "--force-reinstall", str(wheel)], check=True)
    return None


def output(python: Path, *arguments: str) -> str:
    return subprocess.run([str(python), *arguments], capture_output=True, text=True, check=True).stdout.strip()


def show(command: list[str], folder: Path) -> tuple[int, str]:
    """Run a command and print its output as it comes; returns its exit code and its last line."""
    last = ""
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TRITON_INTERPRET")}
    process = subprocess.Popen(command, cwd=folder, env=variables, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        last = line.strip() or last
    return process.wait(), last


if __name__ == "__main__":
    main()
