"""Training on Triton's kernels: gradients of the float64 reference, and what they may depend on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from resflow_kernels import ops
from resflow_kernels.contract import ACTIVATIONS, STATISTICS
from resflow_kernels.core.plan import Plan, chain
from tests.support.comparisons import same_bits
from tests.support.draws import plans
from tests.support.gradients import EPS, assert_gradients, gradients_of, parameters

FOREST = Plan(18, (20, 6), (-1, 0, 0, 2), ("prelu", "gelu"), affine=True)
widths = st.one_of(st.integers(1, 20), st.sampled_from([31, 33, 65]))


def train(
    plan: Plan, x: Tensor, weights: list[Tensor], statistics: int, keep: bool = True, x_needed: bool = True
) -> list[Tensor]:
    """All outputs of both ops, the sums aside."""
    from resflow_kernels.triton.training import train_backward, train_forward

    logits, *state = train_forward(x, weights, plan.encoded, statistics, EPS, keep)
    gradient = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)).to(x.device)
    back = train_backward(gradient, x, weights, *state, plan.encoded, statistics, EPS, x_needed)
    own, _, mean, variance = state
    return [logits, own, mean, variance, *back]


def case(plan: Plan, rows: int) -> tuple[Tensor, list[Tensor]]:
    device = "cuda" if torch.cuda.device_count() else "cpu"
    x = torch.randn(rows, plan.in_features)
    return x.to(device), [weight.detach().to(device) for weight in parameters(plan)]


@settings(max_examples=12)
@given(
    plan=plans(max_tasks=4, precision="float32", widths=widths, max_layers=3),
    rows=st.sampled_from([0, 1, 2, 16, 31, 33, 60]),
    statistics=st.sampled_from(STATISTICS),
    recompute=st.booleans(),
)
def test_gradients_are_the_references(plan: Plan, rows: int, statistics: str, recompute: bool) -> None:
    if statistics != "given" and plan.affine and rows < 2:
        rows += 2
    assert_gradients(plan, rows, statistics, recompute, backend="triton")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("statistics", STATISTICS)
def test_each_activation_has_its_derivative(activation: str, statistics: str) -> None:
    assert_gradients(Plan(5, (6,), (-1, 0), activation, affine=True), 23, statistics, False, backend="triton")


@pytest.mark.parametrize(
    "plan",
    [
        FOREST,
        Plan(7, (5,), (-1, 0, 0), "silu", head="conditional", logit_residual=False),
        Plan(7, (5, 4), (-1, 0, 1), "relu", feature_residual=False, non_increasing=True),
    ],
)
@pytest.mark.parametrize("statistics", range(len(STATISTICS)))
def test_results_are_those_of_the_cpu(plan: Plan, statistics: int) -> None:
    x, weights = case(plan, 40)
    got = [one.cpu() for one in train(plan, x, weights, statistics)]
    x, weights = x.cpu(), [weight.cpu() for weight in weights]
    logits, *state = torch.ops.resflow.train_forward(x, weights, plan.encoded, statistics, EPS, True)
    gradient = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    back = torch.ops.resflow.train_backward(gradient, x, weights, *state, plan.encoded, statistics, EPS, True)
    own, _, mean, variance = state
    for one, other in zip(got, [logits, own, mean, variance, *back], strict=True):
        torch.testing.assert_close(
            one, other, rtol=1e-4, atol=2e-5 * (1 + float(other.abs().amax() if len(other) else 0))
        )


@pytest.mark.parametrize("rows", [1, 31, 63, 64, 65, 129])
def test_rows_around_a_tile(rows: int) -> None:
    """The products' 64, and the 32 of the other passes; parts of rows are added up for the matrices' gradients."""
    from resflow_kernels.triton.training import launches

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launches, "SPLIT_ROWS", 32)
        assert_gradients(Plan(9, (5,), (-1, 0)), rows, "given", False, backend="triton")


@pytest.mark.parametrize(("inputs", "hidden"), [(63, (64, 16)), (64, (65,)), (17, (15, 130))])
def test_widths_around_a_tile(inputs: int, hidden: tuple[int, ...]) -> None:
    assert_gradients(Plan(inputs, hidden, (-1, 0), affine=True), 19, "batch_after", True, backend="triton")


@pytest.mark.parametrize("statistics", range(len(STATISTICS)))
def test_empty_batches(statistics: int) -> None:
    x, weights = case(FOREST, 0)
    logits, own, _, _, x_gradients, gradients = train(FOREST, x, weights, statistics)
    assert logits.shape == own.shape == (0, 4) and x_gradients.shape == (0, 18)
    assert gradients.shape == (sum(weight.numel() for weight in weights),) and not gradients.any()


@contextmanager
def _last_programs_first() -> Iterator[None]:
    """The interpreter runs a launch's programs one after another: this way in the other order."""
    from triton.runtime import interpreter

    builder = interpreter.interpreter_builder
    place = type(builder).set_grid_idx

    def reversed_place(x: int, y: int, z: int) -> None:
        place(builder, builder.grid_dim[0] - 1 - x, y, z)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "set_grid_idx", reversed_place)
        yield


@pytest.mark.parametrize("statistics", range(len(STATISTICS)))
def test_bits_depend_on_nothing_but_the_inputs(statistics: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on what was kept, nor on the order in which programs run, nor on whether x's gradient is wanted."""
    from resflow_kernels.triton.training import launches

    monkeypatch.setattr(launches, "SPLIT_ROWS", 32)
    x, weights = case(FOREST, 70)
    first = train(FOREST, x, weights, statistics)
    if not x.is_cuda:
        with _last_programs_first():
            assert same_bits(train(FOREST, x, weights, statistics), first)
    wide = torch.randn(70, 25, device=x.device)
    wide[:, 3:21] = x
    again = train(FOREST, wide[:, 3:21], weights, statistics, keep=False, x_needed=False)
    assert again[4].shape == (0, 18)
    assert same_bits([*again[:4], again[5]], [*first[:4], first[5]])


def test_results_of_many_splits_are_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from resflow_kernels.triton.training import launches

    plan = Plan(6, (5, 4), (-1, 0), "tanh")
    x, weights = case(plan, 120)
    one = train(plan, x, weights, 0)
    monkeypatch.setattr(launches, "SPLIT_ROWS", 8)
    for split, whole in zip(train(plan, x, weights, 0), one, strict=True):
        torch.testing.assert_close(split, whole, rtol=1e-5, atol=1e-5)


def test_statistics_far_from_zero() -> None:
    plan = Plan(9, (5, 4), (-1, 0), "identity", feature_residual=False, affine=True)
    _, weights = case(plan, 1)
    x = (100 + torch.randn(150, 9)).to(weights[0].device)
    _, mean, variance = ops.training_logits(x, weights, plan, "batch_after", EPS, backend="triton")
    sums = x.double() @ weights[0].double().T + weights[1].double()
    torch.testing.assert_close(mean[:5].double(), sums.mean(0), rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(variance[:5].double(), sums.var(0, correction=0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_a_nan_row_stays_alone(precision: str) -> None:
    plan = Plan(20, (8, 5), (-1, 0), "silu")
    x, weights = case(plan, 40)
    x[27, 3] = float("nan")
    with _matmul_precision(precision):
        logits, _, _, _, x_gradients, gradients = train(plan, x, weights, 0)
    bad = (torch.arange(40) == 27).to(x.device)
    assert torch.equal(logits.isnan().any(1), bad) and torch.equal(x_gradients.isnan().any(1), bad)
    assert gradients.isnan().any()


@contextmanager
def _matmul_precision(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def test_tensorfloat32_where_pytorch_may_use_it() -> None:
    plan = replace(FOREST, activations=("prelu", "tanh"))
    x, weights = case(plan, 35)
    exact = train(plan, x, weights, 0)
    with _matmul_precision("high"):
        rounded = train(plan, x, weights, 0)
    for one, other in ((0, 0), (4, 4), (5, 5)):
        error, largest = (rounded[one] - exact[other]).abs().max(), exact[other].abs().max()
        assert 1e-6 * largest < error < 5e-3 * largest


def test_gradients_pass_through_autograd() -> None:
    """Joined by ``training_logits``; without a gradient of x, and once."""
    plan = Plan(6, (5, 4), (-1, 0), "tanh")
    x, weights = case(plan, 20)
    kept = gradients_of(lambda x, w: ops.training_logits(x, w, plan, backend="triton")[0], x, weights)
    leaves = [weight.clone().requires_grad_() for weight in weights]
    logits = ops.training_logits(x, leaves, plan, recompute=True, backend="triton")[0]
    assert torch.equal(logits, kept[0])
    (first, *_) = torch.autograd.grad(logits.square().sum(), leaves, create_graph=True)
    assert first.abs().sum() > 0
    with pytest.raises(RuntimeError, match="gradients must be differentiated once, got a second time"):
        first.norm().backward()


BAD: list[tuple[dict[str, Any], str]] = [
    ({"x": torch.zeros(3, 5)}, r"train_forward: x must be a matrix with 18 columns, got \[3, 5\]"),
    ({"x": torch.zeros(3, 18).double()}, "train_forward: x must be float32, got float64"),
    ({"weights": []}, r"train_forward: weights must be the \d+ tensors of this plan, got 0"),
    ({"statistics": 3}, "train_forward: statistics must be one of 0 to 2, got 3"),
]


@pytest.mark.parametrize(("change", "text"), BAD)
def test_bad_input_is_named(change: dict[str, Any], text: str) -> None:
    from resflow_kernels.triton.training import train_forward

    arguments = {"x": torch.zeros(3, 18), "weights": [w.detach() for w in parameters(FOREST)], "statistics": 0} | change
    with pytest.raises(ValueError, match=text):
        train_forward(arguments["x"], arguments["weights"], FOREST.encoded, arguments["statistics"], EPS, True)


def test_what_the_backward_pass_is_given_is_checked() -> None:
    from resflow_kernels.triton.training import train_backward, train_forward

    plan = Plan(4, (3,), (-1,), "tanh")
    x, weights = case(plan, 3)
    logits, *state = train_forward(x, weights, plan.encoded, 0, EPS, True)
    rest = (plan.encoded, 0, EPS, True)
    with pytest.raises(ValueError, match=r"train_backward: logit_gradients must be of shape \[3, 1\], got \[2, 1\]"):
        train_backward(logits[:2], x, weights, *state, *rest)
    with pytest.raises(ValueError, match=r"train_backward: task_logits must be on .*, got meta"):
        train_backward(logits, x, weights, state[0].to("meta"), *state[1:], *rest)
    with pytest.raises(ValueError, match=r"train_backward: weights\[1\] must be on .*, got meta"):
        train_backward(logits, x, [weights[0], weights[1].to("meta"), *weights[2:]], *state, *rest)


def test_many_tasks() -> None:
    plan = Plan(3, (2,), chain(17), "relu", feature_residual=False)
    assert_gradients(plan, 5, "given", False, backend="triton")


MODULE = """
import copy, warnings
import torch
from resflow_kernels import ResFlow
torch.manual_seed(0)
model = ResFlow(9, (6, 4), ("a", "b"), norm="batch").train()
exact = copy.deepcopy(model).double()
x = torch.randn(30, 9)
with warnings.catch_warnings():
    warnings.simplefilter("error")  # falling back to the reference would warn
    model(x).logits.square().sum().backward()
exact._reference_logits(x.double()).square().sum().backward()
for (name, own), other in zip(model.named_parameters(), exact.parameters()):
    assert (own.grad.double() - other.grad).abs().max() <= 1e-5 * (1 + other.grad.abs().max()), name
for own, other in zip(model.buffers(), exact.buffers()):
    torch.testing.assert_close(own.double(), other.double(), rtol=1e-5, atol=1e-5)
print("trained", "resflow_kernels.triton.training.passes" in __import__("sys").modules)
"""

REGISTERED = """
import torch
torch.cuda.device_count = lambda: 1  # as where there is a GPU
from resflow_kernels import ops
from resflow_kernels.contract import TRAINING_OPS
from resflow_kernels.ops import library
has = torch._C._dispatch_has_kernel_for_dispatch_key
reason = ops.unsupported_reason("cuda", training=True)
print(reason, all(has(f"resflow::{name}", "CUDA") for name in TRAINING_OPS))
if reason is None:
    library.implement({"train_forward": None}, "CUDA")  # what is there stays
"""


def _run(script: str, **variables: str) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "RESFLOW_NO_CUDA": "1"} | variables
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_module_trains_on_them_where_they_are_asked_for() -> None:
    if torch.cuda.device_count():
        pytest.skip("its tensors are the CPU's, for which Triton has its interpreter")
    assert _run(MODULE, RESFLOW_BACKEND="triton", TRITON_INTERPRET="1") == "trained True"


def test_cuda_tensors_train_on_them() -> None:
    assert _run(REGISTERED, TRITON_INTERPRET="0") == "None True"
    declined = "the training ops of cuda tensors are Triton's: RESFLOW_NO_LIBRARY=1 asks for the reference False"
    assert _run(REGISTERED, TRITON_INTERPRET="0", RESFLOW_NO_LIBRARY="1").startswith(declined)
