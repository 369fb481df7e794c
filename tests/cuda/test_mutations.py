"""Planted bugs: what the emulator is for is that none of them passes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / f"{sys.implementation.cache_tag}-editable"
LIBRARIES = [BUILD / "libresflow_emulator.a", BUILD / "libresflow_cpu.a"]
COMPILER = shutil.which(os.environ.get("CXX", "g++"))

pytestmark = pytest.mark.skipif(
    COMPILER is None or not all(library.exists() for library in LIBRARIES),
    reason="needs a C++ compiler and the development build (make build)",
)

# file, what stands there, what a tired programmer might have written
MUTATIONS = {
    "a barrier is missing before a stage is filled again": (
        "weight_ring.h",
        "    sync_block();\n",
        "",
    ),
    "the wait lets one copy too many be under way": (
        "weight_ring.h",
        "copy_async_wait<kRingStages - 2>",
        "copy_async_wait<kRingStages - 1>",
    ),
    "a stage is filled while it is read": (
        "weight_ring.h",
        "load(next(), (stage_ + kRingStages - 1) % kRingStages);",
        "load(next(), stage_);",
    ),
    "a barrier is missing between layers": (
        "tower.h",
        "      keep(task, at, column, width, sums);\n    }\n    sync_block();\n",
        "      keep(task, at, column, width, sums);\n    }\n",
    ),
    "lanes read the wrong word of b": (
        "panel.h",
        "tile.lane % 4) * kRingStride",
        "tile.lane % 8) * kRingStride",
    ),
    "lanes address the wrong matrix of a": (
        "panel.h",
        "word_at + lane / 16 * 4",
        "word_at + lane / 8 % 2 * 4",
    ),
    "the last piece of a row is read whole": (
        "input.h",
        "left < 0 ? 0 : left < 16 ? static_cast<int>(left) : 16",
        "left < 0 ? 0 : 16",
    ),
    "rows beyond the batch are read": (
        "input.h",
        "row < range.count ? bytes - 16 * piece : 0",
        "bytes - 16 * piece",
    ),
    "rows beyond the batch are written": (
        "tower.h",
        "    if (thread_index() < range.count) {\n      write_outputs",
        "    if (thread_index() < kRows) {\n      write_outputs",
    ),
    "the parent's outputs are not added": (
        "tower.h",
        "low + residual.low",
        "low",
    ),
    "a tile's row is one too low in the second half": (
        "panel.h",
        "visit(tile.row(m) + 8, column",
        "visit(tile.row(m) + 7, column",
    ),
}


def build_and_run(folder: Path, include: Path) -> subprocess.CompletedProcess[str]:
    binary = folder / "driver"
    flags = ["-std=c++20", "-O1", "-ffp-contract=off", "-DRESFLOW_EMULATED", "-pthread"]
    includes = [f"-I{include}", f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'resflow_kernels'}"]
    source = Path(__file__).parent / "mutation_driver.cpp"
    command = [str(COMPILER), *flags, *includes, str(source), *map(str, LIBRARIES), "-o", str(binary)]
    subprocess.run(command, check=True)
    return subprocess.run([str(binary)], capture_output=True, text=True, timeout=60)


def test_the_kernels_as_they_are_pass(tmp_path: Path) -> None:
    done = build_and_run(tmp_path, ROOT / "csrc")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_planted_bug_is_caught(name: str, tmp_path: Path) -> None:
    file, right, wrong = MUTATIONS[name]
    shutil.copytree(ROOT / "csrc" / "cuda", tmp_path / "cuda", ignore=shutil.ignore_patterns("*.cu", "*.cpp"))
    path = tmp_path / "cuda" / file
    text = path.read_text()
    assert text.count(right) == 1, f"{file} no longer has what this plants a bug into"
    path.write_text(text.replace(right, wrong))
    done = build_and_run(tmp_path, tmp_path)
    assert done.returncode == 1, f"not caught: {name}"
