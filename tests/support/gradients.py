"""Gradients of the training ops against the float64 reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from resflow_kernels import ops, reference
from resflow_kernels.core.plan import Plan
from resflow_kernels.testing import random_weights

EPS = 1e-3


def parameters(plan: Plan, seed: int = 0) -> list[Tensor]:
    """Random weights with matrices as ``nn.Linear`` has them."""
    drawn = random_weights(plan, seed)
    return [(weight.T if weight.dim() == 2 else weight).contiguous().requires_grad_() for weight in drawn]


def exact_logits(
    x: Tensor, weights: Sequence[Tensor], plan: Plan, statistics: str, kinks: list[Tensor] | None = None
) -> Tensor:
    """The same mathematics by autograd; ``kinks`` is told how far from 0 each row's inputs of ReLU and PReLU stay."""
    left = iter(weights)

    def activate(name: str, value: Tensor, slope: Tensor | None) -> Tensor:
        if kinks is not None and name in ("relu", "prelu"):
            kinks.append(value.detach().abs().amin(1))
        return reference.activate(name, value, slope)

    def normalised(value: Tensor) -> Tensor:
        return (value - value.mean(0)) / torch.sqrt(value.var(0, correction=0) + EPS)

    def layer(activation: str) -> reference.Layer:
        weight, bias = next(left), next(left)
        slope = next(left) if activation == "prelu" else None
        scale, shift = (next(left), next(left)) if plan.affine else (1.0, 0.0)
        before = plan.affine and statistics == "batch_before"
        after = plan.affine and statistics == "batch_after"

        def apply(value: Tensor) -> Tensor:
            sums = value @ weight.T + bias
            if before:
                return activate(activation, normalised(sums) * scale + shift, slope)
            value = activate(activation, sums, slope)
            return (normalised(value) if after else value) * scale + shift

        return apply

    def head(weight: Tensor, bias: Tensor) -> reference.Layer:
        return lambda value: value @ weight + bias

    towers, heads = [], []
    for _ in range(plan.tasks):
        towers.append([layer(name) for name in plan.activations])
        heads.append(head(next(left), next(left)))
    return reference.tower_logits(x, towers, heads, plan)


def rows_off_the_kinks(rows: int, weights: Sequence[Tensor], plan: Plan, statistics: str) -> Tensor:
    """Random rows that no rounding of float32 takes to another side of a kink, where the derivative jumps."""
    x = torch.randn(rows, plan.in_features)
    for _ in range(20):
        distances: list[Tensor] = []
        exact_logits(x.double(), [weight.double() for weight in weights], plan, statistics, distances)
        near = torch.stack(distances).amin(0) < 3e-6 if distances and rows else torch.zeros(rows, dtype=torch.bool)
        if not near.any():
            return x
        x[near] = torch.randn(int(near.sum()), plan.in_features)
    raise AssertionError(f"no such rows: {plan}")


def gradients_of(logits_of: Callable[[Tensor, Sequence[Tensor]], Tensor], x: Tensor, weights: Sequence[Tensor]):
    leaves = [tensor.detach().requires_grad_() for tensor in (x, *weights)]
    logits = logits_of(leaves[0], leaves[1:])
    generator = torch.Generator().manual_seed(1)
    logits.backward(torch.randn(logits.shape, generator=generator, dtype=torch.float64).to(logits.dtype))
    zeros = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
    return logits.detach(), zeros


def assert_gradients(
    plan: Plan, rows: int, statistics: str, recompute: bool, bound: float = 1e-5, backend: str | None = None
) -> None:
    """Every gradient within ``bound`` of its tensor's largest, or of a few times what PyTorch's own float32 errs by.

    1e-6 beside: some gradients are 0 but for rounding, such as a bias's in front of a BatchNorm. By the statistics of a
    batch of few rows, rounding is divided by standard deviations that may be as small as the square root of eps in each
    layer: bounds are ten times as wide there, and those of gradients go by the largest of all.
    """
    weights = parameters(plan)
    x = rows_off_the_kinks(rows, weights, plan, statistics)

    def fused(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        return ops.training_logits(x, weights, plan, statistics, EPS, recompute, backend)[0]

    def plain(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        return exact_logits(x, weights, plan, statistics)

    logits, own = gradients_of(fused, x, weights)
    exact, wanted = gradients_of(plain, x.double(), [weight.double() for weight in weights])
    _, eager = gradients_of(plain, x, weights)
    wider = 1.0 if statistics == "given" else 10.0
    torch.testing.assert_close(logits.double(), exact, atol=2e-5 * wider, rtol=2e-5 * wider)
    largest = max(1.0, *(float(real.abs().max()) for real in wanted if real.numel())) if wider > 1 else 1.0
    names = ["x", *(name for name, _ in plan.weight_shapes)]
    for name, mine, theirs, real in zip(names, own, eager, wanted, strict=True):
        scale = real.abs().amax() if real.numel() else torch.tensor(0.0)
        error = (mine.double() - real).abs().amax() if real.numel() else torch.tensor(0.0)
        allowed = max(bound * float(scale), 4 * float((theirs.double() - real).abs().max()) if real.numel() else 0.0)
        assert error <= allowed + 1e-6 * largest * wider, f"{name}: {error:.2e} off, {allowed:.2e} allowed"
