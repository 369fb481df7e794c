"""What GPUs are given to run: the shipped configurations compiled for three architectures, in processes of their own.

The interpreter's kernels have no code, and whether kernels are interpreted is decided once a process.
"""

from __future__ import annotations

import pytest

from tests.support.processes import python

# Shared memory a block may have, in bytes, by capability.
SHARED = {80: 166_912, 90: 232_448, 100: 232_448}

SCRIPT = """
import sys, torch
from dataclasses import replace
from resflow_kernels.testing import WORKLOADS
from resflow_kernels.triton import ahead
from resflow_kernels.triton.configs import config_of
workload = WORKLOADS[sys.argv[1]]
# Every form, every architecture and every precision in turn; all of them together take minutes.
jobs = '''
float32 scores dense 80
float32 scores request 90
float32 scores catalog 100
tensorfloat32 scores dense 90
tensorfloat32 scores catalog 80
bfloat16 scores dense 90
bfloat16 scores request 80
bfloat16 scores request 90
bfloat16 scores catalog 100
bfloat16 project dense 90
float16 scores dense 90
'''
for precision, kind, form, capability in map(str.split, jobs.strip().splitlines()):
    plan = replace(workload.plan, precision=precision)
    rows = getattr(torch, precision, torch.float32)
    config = config_of(plan, kind, torch.device("cpu"))
    launch = ahead.launch_of(plan, kind, form, config, rows, workload.user_features)
    compiled = ahead.compile_launch(launch, int(capability))
    wgmma = compiled.asm["ptx"].count("wgmma.mma_async")
    vector = compiled.asm["ptx"].count("cp.async.cg")
    print(precision, kind, form, capability, *ahead.resources(compiled), wgmma, vector)
"""


JOINS = """
import torch
from resflow_kernels.core.plan import Plan
from resflow_kernels.triton import ahead
from resflow_kernels.triton.configs import config_of
for join in ({"logit_residual": False}, {}, {"non_increasing": True}, {"logit_residual": False, "head": "conditional"}):
    for precision in ("bfloat16", "float32"):  # each has another kernel
        plan = Plan(20, (16,), (-1, 0), precision=precision, **join)
        config = config_of(plan, "scores", torch.device("cpu"))
        ahead.compile_launch(ahead.launch_of(plan, "scores", "dense", config, torch.float32, 10), 80)
        print(plan.join)
"""


def test_every_join_of_logits_compiles() -> None:
    assert python(JOINS).split() == [
        name for name in ("own", "residual", "non_increasing", "conditional") for _ in "ab"
    ]


PROGRAMS = """
import torch
from resflow_kernels.triton import ahead
from resflow_kernels.triton.program_launch import Ending, ProgramRows, program_launch
from tests.support.programs import every_step

def empty(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")

for precision, capability in (("float32", 80), ("tensorfloat32", 80), ("bfloat16", 90), ("float16", 100)):
    for tasks in (0, 3):
        program = every_step(tasks, precision)
        rows, ending = ProgramRows(empty(1000, 40)), empty(1000, 3)
        if tasks:
            rows = ProgramRows(empty(1000, 33), empty(4, 7), empty(5, dtype=torch.int64))
            ending = Ending(empty(3), "additive", "call", empty(1000, 3), empty(1000, 3), empty(1000))
        packed = empty(program.packed_bytes, dtype=torch.uint8)
        compiled = ahead.compile_launch(program_launch(rows, packed, program, ending, False), capability)
        products = compiled.asm["ptx"].count("mma.sync") + compiled.asm["ptx"].count("mma_async")
        print(precision, capability, *ahead.resources(compiled), products)
"""


def test_a_program_of_every_kind_of_step_fits_the_gpus() -> None:
    lines = [line.split() for line in python(PROGRAMS).splitlines()]
    assert len(lines) == 8
    for precision, capability, *figures in lines:
        registers, spilled, shared, products = map(int, figures)
        what = f"{precision} sm_{capability}"
        assert 32 <= registers <= 255 and spilled <= 16, f"{what}: {registers} registers, {spilled} bytes spilled"
        assert shared <= SHARED[int(capability)], f"{what}: {shared} bytes of shared memory"
        assert (products > 0) == (precision != "float32"), f"{what}: {products} products of tensor cores"


@pytest.mark.parametrize("name", ["prerank3", "progressive9", "wide3"])
def test_shipped_configurations_fit_the_gpus(name: str) -> None:
    lines = [line.split() for line in python(SCRIPT, name).splitlines()]
    assert len(lines) == 11
    for precision, kind, form, capability, *figures in lines:
        registers, spilled, shared, wgmma, vector = map(int, figures)
        what = f"{name} {precision} {kind} {form} sm_{capability}"
        assert 32 <= registers <= 255 and spilled <= 16, f"{what}: {registers} registers, {spilled} bytes spilled"
        assert shared <= SHARED[int(capability)], f"{what}: {shared} bytes of shared memory"
        if capability == "90" and kind == "scores" and precision in ("bfloat16", "float16") and name != "progressive9":
            assert wgmma > 0, f"{what}: no wgmma"
        if precision == "bfloat16" and form != "catalog":
            assert vector > 0, f"{what}: 16 bytes at a time are not copied"
