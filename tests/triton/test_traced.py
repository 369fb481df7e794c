"""What compilers see of the forms: kernels that write their outputs and nothing else, for batches of any size.

Traced for a GPU that need not be here, in a process without the interpreter.
"""

from __future__ import annotations

import pytest
import torch

from resflow_kernels import ops
from resflow_kernels.core.plan import Plan
from resflow_kernels.testing import random_weights
from tests.support.devices import Device
from tests.support.processes import python

DRIVER = """
import sys, torch, triton
from unittest.mock import patch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from triton.backends.compiler import GPUTarget
from resflow_kernels.ops import backends
from resflow_kernels.core.fusion import Additive
from resflow_kernels.nn.packed import PackedResFlow
from resflow_kernels.core.plan import Plan

class Driver:  # what is asked of a GPU's while tracing
    def get_current_target(self): return GPUTarget("cuda", 90, 32)
    def get_current_device(self): return 0

triton.runtime.driver.set_active(Driver())
backends.installed = lambda: backends.Installed(None, "none", None, None)
mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())

def empty(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="cuda")
"""

PREPARE = (
    DRIVER
    + """
class All(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model
    def forward(self, x, user, item, offsets, ids, table, scales):
        m = self.model
        results = (m(x), m.request_scores(user, item, offsets), m.dense_topk(x, 5, offsets),
                   m.catalog_scores(user, ids, offsets, table, scales))
        return torch.utils._pytree.tree_leaves(results)

plan = eval(sys.argv[1])
with mode:
    packed = empty(plan.packed_bytes, dtype=torch.uint8)
    model = PackedResFlow(plan, [str(k) for k in range(plan.tasks)], Additive(), packed, "triton")
    model.fusion_weights = empty(plan.tasks)
    inputs = (empty(100, plan.in_features), empty(3, 10), empty(100, plan.in_features - 10),
              empty(4, dtype=torch.int64), empty(100, dtype=torch.int64),
              empty(50, plan.table_width, dtype=torch.bfloat16), empty(0))
model = All(model)
"""
)

PREPARE_PROGRAM = (
    DRIVER
    + """
from resflow_kernels import ops
from tests.support.programs import every_step

class All(torch.nn.Module):
    def forward(self, x, user, item, offsets, packed, weights):
        settings = (packed, plan, weights)
        results = (ops.dense_scores(x, *settings, backend="triton"),
                   ops.request_scores(user, item, offsets, *settings, backend="triton"),
                   ops.dense_topk(x, offsets, *settings, k=5, backend="triton"),
                   ops.program_outputs(x, packed, plan, backend="triton"))
        return torch.utils._pytree.tree_leaves(results)

plan, model = every_step(3), All()
with mode:
    inputs = (empty(100, 40), empty(3, 10), empty(100, 30), empty(4, dtype=torch.int64),
              empty(plan.packed_bytes, dtype=torch.uint8), empty(3))
"""
)

EXPORT = """
size = torch.export.Dim("size", min=2, max=1 << 40)
program = torch.export.export(model, inputs, dynamic_shapes=({0: size}, None, {0: size}, None, {0: size}, None, None))
names = [str(node.target) for node in program.graph.nodes]
print(*(name for name in names if name.startswith("resflow")))
outputs = [node.meta["val"] for node in program.graph.output_node().args[0]]
print(*(tuple(output.shape[1:]) for output in outputs))
print(len({str(output.shape[0]) for output in outputs}), {output.device.type for output in outputs})
"""

KERNELS = """
from torch._functorch.aot_autograd import aot_export_module
with patch("torch.compiler.is_compiling", lambda: True), torch.no_grad(), mode:
    graph, _ = aot_export_module(model, inputs, trace_joint=False)
nodes = [node for node in graph.graph.nodes if "triton_kernel" in str(node.target)]
for node in nodes:
    print(*sorted(node.kwargs["tensors_to_clone"]))
print("resflow ops left:", sum("resflow" in str(node.target) for node in graph.graph.nodes))
"""

CHAIN = "Plan(64, (32, 16), (-1, 0, 1), affine=True, precision='bfloat16')"
TREE = "Plan(20, (130, 5), (-1, 0, 0, 1), 'tanh', non_increasing=True)"


@pytest.mark.parametrize("plan", [CHAIN, TREE])
def test_export_keeps_the_ops_for_batches_of_any_size(plan: str) -> None:
    ops_line, shapes, sizes = python(PREPARE + EXPORT, plan).splitlines()
    op = "resflow_triton.{}.default".format
    called = ("dense_scores", "request_scores", "dense_topk", "catalog_scores")
    assert ops_line.split() == [op(name) for name in called]
    tasks = eval(plan).tasks
    scores = f"({tasks},) ({tasks},) ()"
    assert shapes == f"{scores} {scores} (5,) (5,) {scores}"
    assert sizes == "2 {'cuda'}"  # candidates, and the requests of top-k


@pytest.mark.parametrize("plan", [CHAIN, TREE])
def test_compilers_see_kernels_and_what_they_write(plan: str) -> None:
    *kernels, left = python(PREPARE + KERNELS, plan).splitlines()
    workspace = " workspace" if plan == TREE else ""
    scores, project = f"logits probs score{workspace}", "out"
    # PyTorch's analysis does not see through the loop that looks for a candidate's request, and has those copied.
    requests, catalogue = f"logits offsets probs score{workspace}", f"ids logits offsets probs score{workspace}"
    assert kernels == [scores, project, requests, scores, project, catalogue]
    assert left == "resflow ops left: 0"


def test_compilers_see_the_kernels_of_tile_programs() -> None:
    *kernels, left = python(PREPARE_PROGRAM + KERNELS).splitlines()
    scores = "logits probs score workspace"
    assert kernels == [scores, "logits offsets probs score workspace", scores, "outputs workspace"]
    assert left == "resflow ops left: 0"


def test_the_interpreters_kernels_cannot_be_traced(device: Device) -> None:
    from resflow_kernels.triton import dispatch

    if not device.slow:
        pytest.skip("this process runs on a GPU")
    plan = Plan(6, (8,), (-1, 0))
    packed = ops.pack_towers(random_weights(plan), plan)
    with pytest.raises(RuntimeError, match="kernels of the interpreter cannot be traced"):
        dispatch.TRACED["dense_scores"](torch.zeros(2, 6), packed, torch.ones(2), list(plan.encoded), 0, 0)
