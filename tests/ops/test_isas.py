"""The numeric tests of the CPU's kernels once more on each lower instruction set, of which a process has one."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

LOWER = ("avx512", "avx2", "neon", "portable")
FILES = (
    ("test_exact.py", "test_topk.py"),
    ("test_guarantees.py",),
    ("test_feature.py", "test_twin.py"),
    ("test_training.py",),
)


@pytest.mark.parametrize("files", FILES, ids=" ".join)
@pytest.mark.parametrize("isa", LOWER)
def test_the_kernels_of_every_instruction_set_pass_the_same_tests(isa: str, files: tuple[str, ...]) -> None:
    if find_spec("resflow_kernels._runtime") is None:
        pytest.skip("the NumPy runtime is not built")
    from resflow_kernels import _runtime

    if os.environ.get("RESFLOW_ISA"):
        pytest.skip("RESFLOW_ISA is set: this is such a run")
    if isa not in _runtime.supported_isas() or isa == _runtime.isa():
        pytest.skip(f"{isa} is in use already" if isa == _runtime.isa() else f"this machine has no {isa}")
    options = ["-q", "--tb=short", "-p", "no:cacheprovider", "-p", "no:xdist", "--hypothesis-profile=fewer"]
    command = [sys.executable, "-m", "pytest", *options, *(str(Path(__file__).parent / name) for name in files)]
    environment = {**os.environ, "RESFLOW_ISA": isa, "RESFLOW_TEST_DEVICES": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        failures = done.stdout[done.stdout.find("= FAILURES =") :]
        pytest.fail(f"RESFLOW_ISA={isa} {' '.join(command)}\n{failures}{done.stderr}", pytrace=False)
    assert " passed" in done.stdout
