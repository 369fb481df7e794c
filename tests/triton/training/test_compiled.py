"""Training's kernels compiled for GPUs: they compile, spill no registers, and fit a block's shared memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton_compiled

import resflow_kernels

SCRIPT = """
import json, sys
import torch
from triton_compiled import key_of, resources
from resflow_kernels.testing import WORKLOADS
from resflow_kernels.triton.training import passes

name, statistics, capability, rows = sys.argv[1], *map(int, sys.argv[2:])
plan = WORKLOADS[name].plan

def empty(*shape):
    return torch.empty(shape, device="meta")

launches = {}
def record(launch):
    launches.setdefault(key_of(launch), launch)

x, weights = empty(rows, plan.in_features), [empty(*shape[::-1]) for _, shape in plan.weight_shapes]
for precision in ("highest", "high"):
    torch.set_float32_matmul_precision(precision)
    logits, *state = passes.train_forward(x, weights, plan.encoded, statistics, 1e-3, True, record)
    passes.train_backward(logits, x, weights, *state, plan.encoded, statistics, 1e-3, True, record)
print(json.dumps([resources(launch, capability) for launch in launches.values()]))
"""


@pytest.mark.parametrize(
    ("workload", "statistics", "capability"), [("ecomm2", 0, 80), ("prerank3", 1, 90), ("wide3", 2, 100)]
)
def test_no_registers_are_spilled(workload: str, statistics: int, capability: int) -> None:
    paths = [str(Path(resflow_kernels.__file__).parents[1]), str(Path(triton_compiled.__file__).parent)]
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join([*paths, *sys.path])}
    command = [sys.executable, "-c", SCRIPT, workload, str(statistics), str(capability), "4096"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    compiled = [triton_compiled.Resources(*fields) for fields in json.loads(done.stdout)]
    assert {one.kernel for one in compiled} >= {"sums_kernel", "inputs_gradient_kernel", "matrix_gradient_kernel"}
    for one in compiled:
        assert one.stack == 0, one[:4]
        assert one.shared <= triton_compiled.SHARED_LIMITS[capability], one[:4]
    products = [one.ptx for one in compiled if one.kernel == "inputs_gradient_kernel"]
    assert any("mma" in ptx for ptx in products) and not all("mma" in ptx for ptx in products)
    assert all("cp.async" in ptx for ptx in products)
