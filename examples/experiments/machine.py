"""The conditions of a measurement: the machine, the libraries, the commit."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from pathlib import Path

import torch

import resflow_kernels
from resflow_kernels.core.machine import usable_cores

_ROOT = Path(__file__).parents[2]


@cache
def commit() -> str:
    """The short id of the current commit, followed by ``+`` if files differ from it; ``unknown`` without git."""
    try:
        revision = _git("rev-parse", "--short=10", "HEAD").strip()
        # Results are written while this runs, and do not affect what is measured.
        changed = [line for line in _git("status", "--porcelain", "-uno").splitlines() if "/results/" not in line]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return revision + "+" * bool(changed)


def describe() -> dict[str, str]:
    """Machine and versions, for a report's head."""
    return {
        "machine": f"{_processor()}, {usable_cores()} usable cores, {platform.system()}",
        "libraries": f"python {platform.python_version()}, torch {torch.__version__}, "
        f"resflow-kernels {resflow_kernels.__version__}",
        "threads": str(torch.get_num_threads()),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.is_file() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=True).stdout
