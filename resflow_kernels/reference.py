"""The same mathematics in plain PyTorch, in any dtype: the ground truth of every test.

Written for reading, not for speed. In float64 it is what all kernels are measured against; it also serves
training. Shapes as in the README: ``x [B, D]``, logits and probabilities ``[B, K]``, score ``[B]``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .contract import FUSIONS, WEIGHTS_PER
from .plan import Plan

Layer = Callable[[Tensor], Tensor]


class Scores(NamedTuple):
    """Scores of ``B`` candidates."""

    logits: Tensor  # [B, K]
    probs: Tensor  # [B, K]
    score: Tensor  # [B]


class TopK(NamedTuple):
    """The best candidates of ``R`` requests, best first."""

    scores: Tensor  # [R, k], NaN where a request has fewer than k candidates
    positions: Tensor  # [R, k] int64, place in the request, -1 where there is none


# So that an exported program can say what it returns.
for _result in (Scores, TopK):
    torch.utils._pytree._register_namedtuple(_result, serialized_type_name=f"resflow_kernels.{_result.__name__}")


def activate(name: str, value: Tensor, slope: Tensor | None = None) -> Tensor:
    """One activation of the contract's list; ``slope [H]`` is PReLU's."""
    match name:
        case "identity":
            return value
        case "relu":
            return F.relu(value)
        case "prelu":
            assert slope is not None
            return torch.where(value > 0, value, value * slope)
        case "silu":
            return F.silu(value)
        case "gelu":
            return F.gelu(value)
        case "gelu_tanh":
            return F.gelu(value, approximate="tanh")
        case "tanh":
            return torch.tanh(value)
        case "sigmoid":
            return torch.sigmoid(value)
    raise ValueError(f"unknown activation {name!r}")


def tower_logits(x: Tensor, towers: Sequence[Sequence[Layer]], heads: Sequence[Layer], plan: Plan) -> Tensor:
    """Logits ``[B, K]`` of towers given as callables (paper, equations of section 3.1).

    Args:
        x: ``[B, D]``, or whatever the first layers take.
        towers: for each task its ``L`` layers ``f_k^l``, residuals not included.
        heads: for each task the map from ``[B, H_L]`` to its own logit ``r_k [B]``.
        plan: topology and switches.
    """
    outputs: list[list[Tensor]] = []
    logits: list[Tensor] = []
    for task, parent in enumerate(plan.parents):
        hidden: Tensor = x
        outputs.append([])
        for level, layer in enumerate(towers[task]):
            hidden = layer(hidden)
            if plan.feature_residual and parent >= 0:
                hidden = hidden + outputs[parent][level]
            outputs[task].append(hidden)
        logits.append(_join(heads[task](hidden), logits[parent] if parent >= 0 else None, plan))
    return torch.stack(logits, dim=-1)


def _join(own: Tensor, parent: Tensor | None, plan: Plan) -> Tensor:
    """Task logit ``z_k`` from the task's own ``r_k`` and its parent's ``z``."""
    if parent is None:
        return own
    if plan.head == "conditional":
        # p/(1-p) of p = sigmoid(z_parent) sigmoid(r) is 1 / (e^-z + e^-r + e^-(z+r)).
        return -torch.logsumexp(torch.stack((-parent, -own, -parent - own)), dim=0)
    if not plan.logit_residual:
        return own
    return (torch.where(own > 0, 0.0, own) if plan.non_increasing else own) + parent


def fuse(logits: Tensor, fusion_weights: Tensor, fusion: int) -> Tensor:
    """Score ``[B]`` from logits ``[B, K]`` and weights ``[K]`` or ``[B, K]`` (``K + 1`` for expected values)."""
    probs = torch.sigmoid(logits)
    match FUSIONS[fusion]:
        case "additive":
            return (fusion_weights * probs).sum(-1)
        case "multiplicative":
            # p = 0 has log -inf, and -inf * 0 would be NaN: the clamp makes p ** 0 = 1 and keeps NaN.
            logs = F.logsigmoid(logits)
            lowest = torch.finfo(logs.dtype).min
            return torch.exp((fusion_weights * torch.where(logs < lowest, lowest, logs)).sum(-1))
        case "expected_value":
            drops = probs[..., :-1] - probs[..., 1:]
            drops = torch.where(drops < 0, 0.0, drops)
            shares = torch.cat((1 - probs[..., :1], drops, probs[..., -1:]), dim=-1)
            return (fusion_weights * shares).sum(-1)
    raise AssertionError(FUSIONS[fusion])


def finish(logits: Tensor, fusion_weights: Tensor, fusion: int) -> Scores:
    """Probabilities and score of logits ``[B, K]``."""
    return Scores(logits, torch.sigmoid(logits), fuse(logits, fusion_weights, fusion))


def spread_weights(weights: Tensor, weights_per: int, request_of: Tensor | None) -> Tensor:
    """Fusion weights as :func:`fuse` takes them; ``request_of [N]`` is each candidate's request."""
    if WEIGHTS_PER[weights_per] == "request":
        assert request_of is not None
        return weights[request_of]
    return weights


def request_of_candidates(offsets: Tensor, candidates: int) -> Tensor:
    """Request number ``[N]`` of each candidate, from ``offsets [R + 1]``."""
    requests = torch.arange(offsets.numel() - 1, device=offsets.device)
    return torch.repeat_interleave(requests, offsets.diff(), output_size=candidates)


def dense_scores(
    x: Tensor, weights: Sequence[Tensor], plan: Plan, fusion_weights: Tensor, fusion: int, weights_per: int
) -> Scores:
    """Form 1 on canonical weights (``Plan.weight_shapes``); arguments as the op's."""
    towers, heads = _callables(weights, plan)
    return finish(tower_logits(x, towers, heads, plan), spread_weights(fusion_weights, weights_per, None), fusion)


def request_scores(
    user: Tensor,
    item: Tensor,
    offsets: Tensor,
    weights: Sequence[Tensor],
    plan: Plan,
    fusion_weights: Tensor,
    fusion: int,
    weights_per: int,
) -> Scores:
    """Form 2 by its definition: every candidate's input is its request's user row and its own item row."""
    request = request_of_candidates(offsets, item.shape[0])
    towers, heads = _callables(weights, plan)
    logits = tower_logits(torch.cat((user[request], item), dim=1), towers, heads, plan)
    return finish(logits, spread_weights(fusion_weights, weights_per, request), fusion)


def topk(score: Tensor, offsets: Tensor, k: int) -> TopK:
    """The ``k`` best of each request: score descending, ties by lower position, NaN after every number."""
    requests = offsets.numel() - 1
    scores = score.new_full((requests, k), float("nan"))
    positions = torch.full((requests, k), -1, dtype=torch.int64, device=score.device)
    for request in range(requests):
        own = score[offsets[request] : offsets[request + 1]]
        by_score = torch.argsort(torch.where(own.isnan(), float("-inf"), own), descending=True, stable=True)
        order = by_score[torch.argsort(own[by_score].isnan().int(), stable=True)][:k]
        scores[request, : len(order)] = own[order]
        positions[request, : len(order)] = order
    return TopK(scores, positions)


def _callables(weights: Sequence[Tensor], plan: Plan) -> tuple[list[list[Layer]], list[Layer]]:
    """Canonical weights as the layers and heads that :func:`tower_logits` takes."""
    left = iter(weights)

    def layer(activation: str) -> Layer:
        weight, bias = next(left), next(left)
        slope = next(left) if activation == "prelu" else None
        affine = (next(left), next(left)) if plan.affine else None

        def apply(value: Tensor) -> Tensor:
            value = activate(activation, value @ weight + bias, slope)
            return value * affine[0] + affine[1] if affine else value

        return apply

    def head() -> Layer:
        weight, bias = next(left), next(left)
        return lambda value: value @ weight + bias

    towers: list[list[Layer]] = []
    heads: list[Layer] = []
    for _ in range(plan.tasks):
        towers.append([layer(activation) for activation in plan.activations])
        heads.append(head())
    return towers, heads
