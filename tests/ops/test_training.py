"""The training ops against the float64 reference: logits and every gradient, on drawn networks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resflow_kernels import ops
from resflow_kernels.contract import ACTIVATIONS, STATISTICS
from resflow_kernels.core.plan import Plan, chain
from tests.support.draws import plans, seeds
from tests.support.gradients import EPS, assert_gradients, gradients_of, parameters


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield


@given(
    plan=plans(), rows=st.integers(0, 200), statistics=st.sampled_from(STATISTICS), recompute=st.booleans(), seed=seeds
)
def test_gradients_are_the_references(plan: Plan, rows: int, statistics: str, recompute: bool, seed: int) -> None:
    torch.manual_seed(seed)
    plan = replace(plan, precision="float32")
    if statistics != "given" and plan.affine and rows < 2:
        rows += 2
    assert_gradients(plan, rows, statistics, recompute)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("statistics", STATISTICS)
def test_each_activation_has_its_derivative(activation: str, statistics: str) -> None:
    assert_gradients(Plan(17, (20, 6), (-1, 0), activation, affine=True), 97, statistics, False)


@pytest.mark.parametrize("statistics", STATISTICS)
def test_the_authors_network(statistics: str) -> None:
    assert_gradients(Plan(608, (128, 64), chain(2), affine=True), 513, statistics, False)


def test_results_do_not_depend_on_threads_nor_on_what_is_kept() -> None:
    # 300 columns are 5 panels: on one thread an item has all tasks of a panel, on three each has its own.
    plan = Plan(300, (50, 20), (-1, 0, 0), affine=True)
    x, weights = torch.randn(700, 300), parameters(plan)
    results = []
    threads = torch.get_num_threads()
    try:
        for count, recompute in ((1, False), (3, False), (2, True)):
            torch.set_num_threads(count)
            run = gradients_of(
                lambda x, w, r=recompute: ops.training_logits(x, w, plan, "batch_after", EPS, r)[0], x, weights
            )
            results.append([run[0], *run[1]])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_statistics_of_the_batch_are_returned() -> None:
    plan = Plan(9, (5, 4), (-1, 0), "identity", feature_residual=False, affine=True)
    x, weights = 100 + torch.randn(301, 9), parameters(plan)
    _, mean, variance = ops.training_logits(x, weights, plan, "batch_after", EPS)
    sums = x.double() @ weights[0].double().T + weights[1].double()
    torch.testing.assert_close(mean[:5].double(), sums.mean(0), rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(variance[:5].double(), sums.var(0, correction=0), rtol=1e-4, atol=1e-6)
    assert mean.shape == variance.shape == (2 * (5 + 4),)
    assert ops.training_logits(x, weights, plan, "given")[1].shape == (0,)


def test_any_row_stride_and_no_gradient_of_x() -> None:
    plan = Plan(20, (8,), (-1,), "relu")
    wide, weights = torch.randn(30, 50), parameters(plan)
    strided = wide[:, 7:27]
    gradients = []
    for x in (strided, strided.contiguous()):
        logits, _, _ = ops.training_logits(x, weights, plan)
        gradients.append(torch.autograd.grad(logits.square().sum(), weights))
    assert all(torch.equal(a, b) and a.abs().sum() > 0 for a, b in zip(*gradients, strict=True))


def test_a_nan_row_stays_alone_without_batch_statistics() -> None:
    plan = Plan(20, (8, 5), (-1, 0), "silu")
    x = torch.randn(130, 20)
    x[57, 3] = float("nan")
    x.requires_grad_()
    logits, _, _ = ops.training_logits(x, parameters(plan), plan)
    logits.sum().backward()
    bad = torch.arange(130) == 57
    assert torch.equal(logits.isnan().any(1), bad) and torch.equal(x.grad.isnan().any(1), bad)


@pytest.mark.parametrize("power", [1, 2])  # a constant gradient of the logits, and one that depends on them
def test_it_is_differentiable_once(power: int) -> None:
    plan = Plan(4, (3,), (-1,), "tanh")
    x, weights = torch.randn(5, 4, requires_grad=True), parameters(plan)
    logits = ops.training_logits(x, weights, plan)[0]
    (gradient,) = torch.autograd.grad(logits.pow(power).sum(), x, create_graph=True)
    torch.testing.assert_close(
        gradient.detach(), torch.autograd.grad(ops.training_logits(x, weights, plan)[0].pow(power).sum(), x)[0]
    )
    with pytest.raises(RuntimeError, match="gradients must be differentiated once, got a second time"):
        (logits.sum() + gradient.norm()).backward()


BAD = [
    ({"x": torch.zeros(3, 5)}, r"train_forward: x must be a matrix with 4 columns, got \[3, 5\]"),
    ({"x": torch.zeros(3, 4, dtype=torch.float64)}, "train_forward: x must be float32, got float64"),
    ({"x": torch.zeros(3, 4, dtype=torch.bfloat16)}, "train_forward: x must be float32, got bfloat16"),
    ({"weights": []}, "train_forward: weights must be the 4 tensors of this plan, got 0"),
    ({"statistics": 3}, "train_forward: statistics must be one of 0 to 2, got 3"),
]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(("change", "text"), BAD)
def test_bad_input_is_named(change: dict[str, object], text: str, device: str) -> None:
    """By the kernels, and in the same words by Python, which answers for tensors without data."""
    plan = Plan(4, (3,), (-1,), "tanh")
    arguments: dict[str, Any] = {"x": torch.zeros(3, 4), "weights": parameters(plan), "statistics": 0} | change
    x, weights = arguments["x"].to(device), [weight.detach().to(device) for weight in arguments["weights"]]
    with pytest.raises(ValueError, match=f"{text}$"):
        torch.ops.resflow.train_forward(x, weights, plan.encoded, arguments["statistics"], 1e-3, True)


def test_a_transposed_matrix_is_named() -> None:
    plan = Plan(4, (3,), (-1,), "tanh")
    weights = [weight.detach() for weight in parameters(plan)]
    weights[0] = weights[0].T.contiguous()
    with pytest.raises(ValueError, match=r"weights\[0\] .* must be of shape \[3, 4\], got \[4, 3\]"):
        ops.training_logits(torch.zeros(3, 4), weights, plan)
    with pytest.raises(ValueError, match="statistics must be one of given, batch_after, batch_before, got 'moving'"):
        ops.training_logits(torch.zeros(3, 4), weights, plan, "moving")


def test_the_arguments_of_backward_are_checked() -> None:
    plan = Plan(4, (3,), (-1,), "tanh")
    weights = [weight.detach() for weight in parameters(plan)]
    x = torch.zeros(3, 4)
    logits, *state = torch.ops.resflow.train_forward(x, weights, plan.encoded, 0, 1e-3, True)
    settings = (plan.encoded, 0, 1e-3, True)
    with pytest.raises(ValueError, match=r"logit_gradients must be of shape \[3, 1\], got \[2, 1\]"):
        torch.ops.resflow.train_backward(logits[:2], x, weights, *state, *settings)
    state[1] = state[1][:-1]
    with pytest.raises(ValueError, match="train_backward: pre_activations must be of shape"):
        torch.ops.resflow.train_backward(logits, x, weights, *state, *settings)


@pytest.mark.parametrize("statistics", [0, 1])
def test_opcheck(statistics: int) -> None:
    plan = Plan(6, (5, 3), (-1, 0), "prelu", affine=True)
    weights = [weight.detach() for weight in parameters(plan)]
    x = torch.randn(7, 6)
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    arguments = (x, weights, list(plan.encoded), statistics, 1e-3, True)
    torch.library.opcheck(torch.ops.resflow.train_forward, arguments, test_utils=tests)
    logits, *state = torch.ops.resflow.train_forward(*arguments)
    back = (logits, x, weights, *state, list(plan.encoded), statistics, 1e-3, True)
    torch.library.opcheck(torch.ops.resflow.train_backward, back, test_utils=tests)
