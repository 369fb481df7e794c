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

# The same of the Hopper kernel.
HOPPER_MUTATIONS = {
    "a stage is handed back while products read it": (
        "tower_sm90.h",
        "products_wait<1>();",
        "products_wait<2>();",
    ),
    "a stage is handed back to the own block alone": (
        "tower_sm90.h",
        "if (lane() < kTowerCluster) barrier_arrive_at(barrier, lane());",
        "if (lane() < kTowerCluster) barrier_arrive(barrier);",
    ),
    "a block returns before its cluster": (
        "tower_sm90.h",
        "      TowerGroup<kPrecision, kActivation>(params, memory).run();\n    }\n    sync_cluster();\n",
        "      TowerGroup<kPrecision, kActivation>(params, memory).run();\n    }\n",
    ),
    "both blocks of a cluster load the same half": (
        "tower_sm90_loader.h",
        "const int own = cluster_rank() * kShare;",
        "const int own = 0;",
    ),
    "x is loaded before the last task is done with it": (
        "tower_sm90.h",
        "if (last_task) release(memory_.x_empty(chunk));",
        "if (task == 0) release(memory_.x_empty(chunk));",
    ),
    "the parity of a round never changes": (
        "tower_sm90_schedule.h",
        "    parity ^= 1;\n",
        "",
    ),
    "the second layer's operand has its pairs of rows the other way": (
        "tower_sm90.h",
        "const int at = 8 * step + 2 * i;",
        "const int at = 8 * step + 2 * (i ^ 1);",
    ),
    "the operand of the second group is the first one's": (
        "tower_sm90.h",
        "memory_.x(chunk) + own_rows",
        "memory_.x(chunk)",
    ),
}
# The same of the program kernel.
PROGRAM_MUTATIONS = {
    "a barrier is missing between steps": (
        "program.h",
        "        });\n      }\n      sync_block();\n    }\n    if (params_.outputs)",
        "        });\n      }\n    }\n    if (params_.outputs)",
    ),
    "rows are loaded before their requests are known": (
        "program.h",
        "RowInfo{};\n    }\n    sync_block();\n",
        "RowInfo{};\n    }\n",
    ),
    "the next tile begins before this one is written": (
        "program.h",
        "      write_scores(first + thread_index());\n    }\n    sync_block();\n",
        "      write_scores(first + thread_index());\n    }\n",
    ),
    "a step is finished before all lanes have computed it": (
        "program_steps.h",
        "    sync_warp();\n    finish();",
        "    finish();",
    ),
    "gathered inputs are read before all lanes have gathered them": (
        "program_steps.h",
        "    gather(staged);\n    sync_warp();",
        "    gather(staged);",
    ),
    "a factor of a few columns is read by column": (
        "program_steps.h",
        "column / factor.repeat",
        "column % factor.width",
    ),
    "the zeros past an operand's inputs are left out": (
        "program.h",
        "for (int64_t c = step.columns + lane_index(); c < values; c += 32)",
        "for (int64_t c = values; c < values; c += 32)",
    ),
    "sums begin with another request's": (
        "program.h",
        "params_.user_sums + rows_[row].request * params_.user_stride",
        "params_.user_sums + rows_[0].request * params_.user_stride",
    ),
    "a user's words are multiplied again": (
        "program.h",
        "word_ = first_word_ = record.first_word;",
        "word_ = first_word_ = 0;",
    ),
    "rows beyond the batch are written": (
        "program.h",
        "for_each_row(range.count, [&](int row) { write_columns(first, row); });",
        "for_each_row(kRows, [&](int row) { write_columns(first, row); });",
    ),
}
DRIVERS = {
    "mutation_driver": MUTATIONS,
    "mutation_driver_sm90": HOPPER_MUTATIONS,
    "mutation_driver_program": PROGRAM_MUTATIONS,
}


def build_and_run(driver: str, folder: Path, include: Path) -> subprocess.CompletedProcess[str]:
    binary = folder / "driver"
    flags = ["-std=c++20", "-O1", "-ffp-contract=off", "-DRESFLOW_EMULATED", "-pthread"]
    includes = [f"-I{include}", f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'resflow_kernels'}", f"-I{ROOT / 'tests'}"]
    source = Path(__file__).parent / f"{driver}.cpp"
    command = [str(COMPILER), *flags, *includes, str(source), *map(str, LIBRARIES), "-o", str(binary)]
    subprocess.run(command, check=True)
    return subprocess.run([str(binary)], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("driver", DRIVERS)
def test_the_kernels_as_they_are_pass(driver: str, tmp_path: Path) -> None:
    done = build_and_run(driver, tmp_path, ROOT / "csrc")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("driver", "name"), [(driver, name) for driver, all_ in DRIVERS.items() for name in all_])
def test_a_planted_bug_is_caught(driver: str, name: str, tmp_path: Path) -> None:
    file, right, wrong = DRIVERS[driver][name]
    shutil.copytree(ROOT / "csrc" / "cuda", tmp_path / "cuda", ignore=shutil.ignore_patterns("*.cu", "*.cpp"))
    path = next((tmp_path / "cuda").rglob(file))
    text = path.read_text()
    assert text.count(right) == 1, f"{file} no longer has what this plants a bug into"
    path.write_text(text.replace(right, wrong))
    done = build_and_run(driver, tmp_path, tmp_path)
    assert done.returncode == 1, f"not caught: {name}"
