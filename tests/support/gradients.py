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
    """Every gradient within ``bound`` of its tensor's largest, or of a few times what float32 errs by.

    What float32 errs by is what PyTorch's own does, or what the exact gradients move by if every input and weight moves
    by a rounding: sums that cancel, and a BatchNorm of few rows, magnify that. 1e-6 beside: some gradients are 0 but
    for rounding, such as a bias's in front of a BatchNorm.
    """
    weights = parameters(plan)
    x = rows_off_the_kinks(rows, weights, plan, statistics)

    def fused(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        return ops.training_logits(x, weights, plan, statistics, EPS, recompute, backend)[0]

    def plain(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        return exact_logits(x, weights, plan, statistics)

    logits, own = gradients_of(fused, x, weights)
    doubles = (x.double(), [weight.double() for weight in weights])
    exact, wanted = gradients_of(plain, *doubles)
    _, eager = gradients_of(plain, x, weights)
    moved, moves = exact.new_zeros(()), [exact.new_zeros(()) for _ in wanted]
    for seed in range(3):
        near, shifted = gradients_of(plain, *rounded_otherwise(*doubles, seed))
        moved = torch.maximum(moved, largest(near - exact))
        moves = [torch.maximum(move, largest(a - b)) for move, a, b in zip(moves, shifted, wanted, strict=True)]
    within = 2e-5 * (1 + exact.abs()) + 8 * moved
    assert ((logits.double() - exact).abs() <= within).all(), f"logits: {largest(logits.double() - exact):.2e} off"
    names = ["x", *(name for name, _ in plan.weight_shapes)]
    for name, mine, theirs, real, move in zip(names, own, eager, wanted, moves, strict=True):
        error = largest(mine.double() - real)
        allowed = max(bound * largest(real), 4 * largest(theirs.double() - real), 8 * move)
        assert error <= allowed + 1e-6, f"{name}: {error:.2e} off, {allowed:.2e} allowed"


def rounded_otherwise(x: Tensor, weights: Sequence[Tensor], seed: int) -> tuple[Tensor, list[Tensor]]:
    """The inputs, each number moved by about a rounding of float32."""
    generator = torch.Generator().manual_seed(seed)

    def moved(tensor: Tensor) -> Tensor:
        return tensor * (1 + 6e-8 * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype))

    return moved(x), [moved(weight) for weight in weights]


def largest(tensor: Tensor) -> Tensor:
    """The largest magnitude; 0 of an empty tensor."""
    return tensor.abs().amax() if tensor.numel() else tensor.new_zeros(())
