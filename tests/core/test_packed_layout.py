"""Where packed weights lie: the compiled library's answers against what it packs, and who is asked."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from resflow_kernels import contract, ops
from resflow_kernels.contract import GPU_PRECISIONS, PACKED, PRECISION_ROWS, PRECISIONS
from resflow_kernels.core import packed_layout
from resflow_kernels.core.plan import Plan, chain
from resflow_kernels.core.program import Program, with_precision
from resflow_kernels.core.weights import in_order, iter_weights, towers_of
from resflow_kernels.reference import rounded
from resflow_kernels.reference.unpack import unpack_towers
from resflow_kernels.testing import random_weights
from tests.support.draws import plans
from tests.support.programs import program_weights, programs

every_precision = st.sampled_from((*PRECISIONS, *GPU_PRECISIONS))
any_plan = plans(max_tasks=5, precisions=every_precision, max_layers=3)


@given(plan=any_plan)
@example(plan=Plan(1, (1,), (-1,), "relu"))
@example(plan=Plan(65, (64, 130), chain(3), affine=True, precision="int8"))
@example(plan=Plan(130, (65, 16), chain(2), precision="float16"))
def test_the_answer_is_what_was_packed(plan: Plan) -> None:
    """Distinct small integers, rounded to the precision, are found where the library says."""
    layout = plan.packed_layout
    count, weights = 1, []
    for weight in iter_weights(plan):
        values = torch.arange(count, count + torch.Size(weight.shape).numel(), dtype=torch.float32)
        weights.append((values % 251 + 1).reshape(weight.shape))
        count += values.numel()
    packed = ops.pack_towers(weights, plan)
    assert packed.numel() == plan.packed_bytes == layout.packed_bytes
    assert packed[:8].numpy().tobytes() == contract.PACKED_MAGIC
    assert packed[8:16].view(torch.int64).item() == layout.fingerprint
    for got, expected in zip(unpack_towers(packed, plan), weights, strict=True):
        if plan.precision == "int8" and expected.dim() == 2:
            assert (got - expected).abs().max() <= 0.5001 * expected.max() / 127
        else:
            held = rounded(expected, plan.precision) if expected.dim() == 2 else expected
            assert torch.equal(got, held)
    floats = packed[PACKED["header_bytes"] :][: 4 * plan.tasks * layout.task_floats].view(torch.float32)
    assert layout.tensor_start >= PACKED["header_bytes"] + floats.numel() * 4
    assert layout.packed_bytes == layout.tensor_start + plan.tasks * layout.tensor_bytes
    assert (layout.tensor_bytes > 0) == ("tensor_panels" in PRECISION_ROWS[plan.precision].flags)


@given(plan=any_plan)
def test_both_libraries_answer_alike(plan: Plan) -> None:
    runtime = pytest.importorskip("resflow_kernels._runtime")
    assert torch.ops.resflow.packed_layout(plan.encoded) == runtime.packed_layout(plan.encoded)


@given(program=programs(tasks=2).flatmap(lambda own: every_precision.map(partial(with_precision, own))))
def test_a_programs_layers_are_its_steps(program: Program) -> None:
    runtime = pytest.importorskip("resflow_kernels._runtime")
    assert torch.ops.resflow.packed_layout(program.encoded) == runtime.packed_layout(program.encoded)
    weights = program_weights(program)
    floats = ops.pack_towers(weights, program)[PACKED["header_bytes"] :].view(torch.float32)
    left = iter(weights)
    for step, layer in zip(program.steps, program.packed_layout.layers, strict=True):
        for kind, _ in step.weights():
            weight = next(left)
            if kind != "weight":
                assert torch.equal(floats[getattr(layer, kind) :][: step.width], weight)
            elif program.precision == "float32":
                width = min(step.width, PACKED["panel_columns"])  # of the first panel
                panel = floats[layer.panels :][: step.columns * min(layer.padded, PACKED["panel_columns"])]
                assert torch.equal(panel.view(step.columns, -1)[:, :width], weight[:, :width])


def test_a_plan_that_is_none_is_refused() -> None:
    runtime = pytest.importorskip("resflow_kernels._runtime")
    for answer in (torch.ops.resflow.packed_layout, runtime.packed_layout):
        with pytest.raises((ValueError, RuntimeError)) as raised:
            answer([1, 2])
        assert str(raised.value) == "packed_layout: plan must be a valid plan (at least 10 numbers), got 2"


def test_the_op_can_be_asked_while_tracing() -> None:
    plan = Plan(20, (8,))
    with torch._subclasses.FakeTensorMode():
        assert torch.ops.resflow.packed_layout(plan.encoded)[0] == plan.packed_bytes


ASK = """
from resflow_kernels.core.plan import Plan
plan = Plan(37, (130, 5), (-1, 0), precision="bfloat16")
"""
WITHOUT_RUNTIME = "import sys; sys.modules['resflow_kernels._runtime'] = None\n"


def python(script: str) -> str:
    """What a script prints in a fresh process."""
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout


def test_the_runtime_answers_without_torch() -> None:
    pytest.importorskip("resflow_kernels._runtime")
    script = ASK + "import sys\nprint(plan.packed_bytes, 'torch' in sys.modules)"
    expected = Plan(37, (130, 5), (-1, 0), precision="bfloat16").packed_bytes
    assert python(script).split() == [str(expected), "False"]


def test_torchs_op_answers_where_there_is_no_runtime() -> None:
    script = WITHOUT_RUNTIME + ASK + "import resflow_kernels.ops\nprint(plan.packed_bytes)"
    assert int(python(script)) == Plan(37, (130, 5), (-1, 0), precision="bfloat16").packed_bytes


def test_without_a_library_it_is_said_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resflow_kernels._runtime", None)
    monkeypatch.setattr(packed_layout, "_torch_answer", None)
    with pytest.raises(ImportError, match="only the compiled library knows where packed weights lie: "):
        _ = Plan(39, (7,)).packed_bytes


def test_a_library_of_another_version_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(41, (7,))
    numbers = list(torch.ops.resflow.packed_layout(plan.encoded))
    monkeypatch.setattr(packed_layout, "_answer", lambda: lambda encoded: [*numbers, 0])
    with pytest.raises(ImportError, match="of another version of the package"):
        _ = plan.packed_layout


@given(plan=any_plan)
def test_weights_are_in_the_order_of_the_library(plan: Plan) -> None:
    """It names each weight that has a wrong shape; the names and places are those of ``iter_weights``."""
    weights = random_weights(plan)
    for at, weight in enumerate(iter_weights(plan)):
        wrong = [*weights[:at], torch.zeros(*weight.shape, 1), *weights[at + 1 :]]
        expected = f"pack_towers: weights[{at}] ({weight.name}) must be of shape {list(weight.shape)}, got "
        with pytest.raises(ValueError) as raised:
            ops.pack_towers(wrong, plan)
        assert str(raised.value).startswith(expected)
    assert in_order(plan, towers_of(plan, weights)) == weights
    assert plan.weight_shapes == tuple((weight.name, weight.shape) for weight in iter_weights(plan))
