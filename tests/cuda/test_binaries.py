"""What the compiler made of the GPU kernels: registers, spills, instructions. No GPU is needed to read it.

``cuobjdump`` and ``nvdisasm`` are of the ``dev`` extra (``nvidia-cuda-cuobjdump``, ``nvidia-cuda-nvdisasm``).
"""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from resflow_kernels.ops import library
from tests.support.shared import made_once

ROOT = Path(__file__).parent.parent.parent
SOURCES = sorted(path.name for path in (ROOT / "csrc" / "cuda").rglob("*.cu"))

# Of an SM, from compute capability 8.0 on.
REGISTERS = 65536
ALLOCATED_AT_ONCE = 8  # registers a thread
# The tower kernel's blocks that an SM is to hold where shared memory lets it (csrc/cuda/towers/dispatch.h).
TOWER_BLOCKS = 3


@dataclass
class Kernel:
    """One kernel for one architecture."""

    registers: int = 0
    stack: int = 0
    local: int = 0
    shared: int = 0
    threads: int = 0
    blocks: int = 0  # that an SM is to hold
    instructions: Counter[str] = field(default_factory=Counter)


def dumped(*arguments: str) -> str:
    """Output of ``cuobjdump``, on PATH or where its package lies."""
    folders = [str(path) for place in site.getsitepackages() for path in Path(place).glob("nvidia/cu*/bin")]
    path = os.pathsep.join([*folders, os.environ.get("PATH", "")])
    tool = shutil.which("cuobjdump", path=path)
    if tool is None or shutil.which("nvdisasm", path=path) is None:
        pytest.skip("cuobjdump and nvdisasm are not installed")
    command = [tool, *arguments, str(library.CUDA_LIBRARY)]
    return subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PATH": path}).stdout


def short(name: str) -> str:
    """What stands between ``kernel_entry<`` and its parameters in a mangled name."""
    return re.sub(r"^_ZN7resflow4cuda12kernel_entryI(N\w*?)EEvNT_6ParamsE$", r"\1", name)


DUMPS = ("-res-usage", "-sass", "-ptx")


@pytest.fixture(scope="module")
def dumps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Output of ``cuobjdump`` by its option."""
    if not library.CUDA_LIBRARY.exists():
        pytest.skip("the GPU kernels are not built")

    def make(folder: Path) -> None:
        for option in DUMPS:
            (folder / f"{option}.txt").write_text(dumped(option), encoding="utf-8")

    folder = made_once(tmp_path_factory, "cuobjdump", make)
    return {option: (folder / f"{option}.txt").read_text(encoding="utf-8") for option in DUMPS}


@pytest.fixture(scope="module")
def kernels(dumps: dict[str, str]) -> dict[tuple[str, str], Kernel]:
    """All kernels of the library by architecture and name."""
    found: dict[tuple[str, str], Kernel] = {}
    arch = name = ""
    for line in dumps["-res-usage"].splitlines():
        if line.startswith("arch = "):
            arch = line.removeprefix("arch = ").strip()
        elif match := re.match(r"\s*Function (\w+):", line):
            name = match[1]
        elif match := re.match(r"\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line):
            registers, stack, shared, local = map(int, match.groups())
            found[arch, name] = Kernel(registers, stack, local, shared)
    instruction = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)")
    for line in dumps["-sass"].splitlines():
        if line.startswith("arch = "):
            arch = line.removeprefix("arch = ").strip()
        elif "Function :" in line:
            name = line.split()[-1]
        elif match := instruction.match(line):
            found[arch, name].instructions[match[1]] += 1
    bounds = bounds_of(dumps["-ptx"])
    for (_, name), kernel in found.items():
        kernel.threads, kernel.blocks = bounds[name]
    return {(arch, short(name)): kernel for (arch, name), kernel in found.items()}


def bounds_of(ptx: str) -> dict[str, tuple[int, int]]:
    """Threads of a block and blocks an SM is to hold, as the PTX of each kernel says."""
    bounds = {}
    name = threads = ""
    for line in ptx.splitlines():
        if match := re.search(r"\.entry (\w+)\(", line):
            name = match[1]
        elif match := re.match(r"\.maxntid (\d+)", line):
            threads = match[1]
        elif match := re.match(r"\.minnctapersm (\d+)", line):
            bounds[name] = (int(threads), int(match[1]))
    return bounds


def named(kernels: dict[tuple[str, str], Kernel], pattern: str, arch: str) -> dict[str, Kernel]:
    chosen = {name: kernel for (own, name), kernel in kernels.items() if own == arch and re.search(pattern, name)}
    assert chosen, f"no kernel of {arch} is named like {pattern}"
    return chosen


def test_both_architectures_have_the_same_kernels(kernels: dict[tuple[str, str], Kernel]) -> None:
    names = {arch: {name for own, name in kernels if own == arch} for arch in ("sm_80", "sm_90a")}
    assert names["sm_80"] and names["sm_80"] <= names["sm_90a"]
    assert {arch for arch, _ in kernels} == set(names)


def test_nothing_spills_and_nothing_has_a_stack(kernels: dict[tuple[str, str], Kernel]) -> None:
    """An array that is indexed at run time, or a register too many, would go through memory at each use."""
    spilt = {
        place: (kernel.stack, kernel.local, kernel.instructions["LDL"], kernel.instructions["STL"])
        for place, kernel in kernels.items()
    }
    assert not {place: counts for place, counts in spilt.items() if any(counts)}
    assert all(kernel.instructions for kernel in kernels.values())  # all were disassembled


def test_as_many_blocks_fit_an_sm_as_are_planned(kernels: dict[tuple[str, str], Kernel]) -> None:
    for (arch, name), kernel in kernels.items():
        registers = -(-kernel.registers // ALLOCATED_AT_ONCE) * ALLOCATED_AT_ONCE
        planned = TOWER_BLOCKS if "11TowerKernel" in name else kernel.blocks
        assert planned >= 1 and registers * kernel.threads * planned <= REGISTERS, (arch, name, kernel.registers)
        # All of it is asked for at the launch, but for what the system takes of each block's from 9.0 on.
        assert kernel.shared <= (1024 if arch == "sm_90a" else 0), (arch, name)


def multiplies_by_tensor_cores(name: str) -> bool:
    """All precisions but float32 (code 0 of contract/enums.def)."""
    return "9PrecisionE0" not in name


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_towers_use_tensor_cores_and_asynchronous_copies(kernels: dict[tuple[str, str], Kernel], arch: str) -> None:
    for name, kernel in named(kernels, "11TowerKernel|11SplitKernel|13ProjectKernel|13ProgramKernel", arch).items():
        assert kernel.instructions["LDGSTS"], (arch, name)
        assert bool(kernel.instructions["HMMA"]) == multiplies_by_tensor_cores(name), (arch, name)
        assert kernel.instructions["FFMA"] or multiplies_by_tensor_cores(name), (arch, name)


@pytest.mark.skipif("tower_sm90.cu" not in SOURCES, reason="there is no kernel for Hopper alone")
def test_hopper_kernels_use_its_products_and_its_copy_engine(kernels: dict[tuple[str, str], Kernel]) -> None:
    for name, kernel in named(kernels, "TowerSm90", "sm_90a").items():
        assert kernel.instructions["HGMMA"] and kernel.instructions["UTMALDG"], name
        assert not kernel.instructions["HMMA"], name
        # Of one warpgroup that computes every thread has all the registers it can.
        assert bool(kernel.instructions["USETMAXREG"]) == ("ELi2E" in name), name
        # Of the barriers of the whole cluster at the start and the end, and none for each chunk of weights.
        assert kernel.instructions["ERRBAR"] == 2, name


@pytest.mark.parametrize("source", SOURCES)
def test_the_compiler_said_nothing_that_costs_speed(source: str) -> None:
    """ptxas' remarks: spills, and C7508 or C7510, where it takes products of a warpgroup one after another."""
    logs = sorted(ROOT.glob(f"build/*/cuda/{source}.o.log"), key=lambda path: path.stat().st_mtime)
    if not logs:
        pytest.skip("the GPU kernels were not built here")
    text = logs[-1].read_text(encoding="utf-8")
    assert "ptxas info" in text
    remarks = [line for line in text.splitlines() if re.search(r"C75\d\d|[Ss]erializ|[Ww]arning", line)]
    assert not remarks
    spilt, entry = [], ""
    for line in text.splitlines():
        if match := re.search(r"entry function '(\w+)' for '(\w+)'", line):
            entry = f"{short(match[1])} for {match[2]}"
        elif re.search(r"\b[1-9]\d* bytes (?:stack frame|spill)", line):
            spilt.append((entry, line.strip()))
    assert not spilt
