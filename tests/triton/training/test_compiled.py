"""Training's kernels compiled for GPUs: they compile, spill no registers, and fit a block's shared memory."""

from __future__ import annotations

import pytest

from tests.support.processes import python

# Shared memory a block may have, in bytes: of 8.0, 8.6, 8.9 and 12.0 that of the smallest.
SHARED = {80: 101_376, 90: 232_448, 100: 232_448}

SCRIPT = """
import sys, torch
from resflow_kernels.testing import WORKLOADS
from resflow_kernels.triton import ahead
from resflow_kernels.triton.training import passes

name, statistics, capability = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
plan = WORKLOADS[name].plan
launches = {}

def empty(*shape):
    return torch.empty(shape, device="meta")

def record(launch):
    absent = [name for name, value in launch.arguments.items() if value is None]
    launches.setdefault(repr((launch.kernel.fn.__name__, sorted(launch.constants.items()), absent)), launch)

x, weights = empty(4096, plan.in_features), [empty(*shape[::-1]) for _, shape in plan.weight_shapes]
for precision in ("highest", "high"):
    torch.set_float32_matmul_precision(precision)
    logits, *state = passes.train_forward(x, weights, plan.encoded, statistics, 1e-3, True, record)
    passes.train_backward(logits, x, weights, *state, plan.encoded, statistics, 1e-3, True, record)
for launch in launches.values():
    compiled = ahead.compile_launch(launch, capability)
    ptx = compiled.asm["ptx"]
    products = launch.constants.get("PRECISION", "-")
    kernel = launch.kernel.fn.__name__
    print(kernel, products, *ahead.resources(compiled), ptx.count("mma"), ptx.count("cp.async.cg"))
"""


@pytest.mark.parametrize(
    ("workload", "statistics", "capability"), [("ecomm2", 0, 80), ("prerank3", 1, 90), ("wide3", 2, 100)]
)
def test_no_registers_are_spilled(workload: str, statistics: int, capability: int) -> None:
    lines = [line.split() for line in python(SCRIPT, workload, str(statistics), str(capability)).splitlines()]
    products = {kernel for kernel, precision, *_ in lines if precision != "-"}
    assert products == {"sums_kernel", "inputs_gradient_kernel", "matrix_gradient_kernel"}
    for kernel, precision, *figures in lines:
        registers, spilled, shared, mma, copies = map(int, figures)
        assert registers <= 255 and spilled == 0, (
            f"{kernel} {precision}: {registers} registers, {spilled} bytes spilled"
        )
        assert shared <= SHARED[capability], f"{kernel} {precision}: {shared} bytes of shared memory"
        assert (mma > 0) == (precision == "tensorfloat32"), f"{kernel} {precision}: {mma} matrix instructions"
        if kernel == "inputs_gradient_kernel":
            assert copies > 0, f"{kernel} {precision}: 16 bytes at a time are not copied"
