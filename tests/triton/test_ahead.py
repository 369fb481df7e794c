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
