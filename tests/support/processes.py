"""Processes in which Triton compiles: whether it interprets is decided once per process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from resflow_kernels.ops import backends


def python(script: str, *arguments: str) -> str:
    """What a script prints in a process without the interpreter."""
    if not backends.has_triton():
        pytest.skip("triton is not installed")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
