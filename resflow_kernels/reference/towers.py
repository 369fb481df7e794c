"""Towers, heads and fusion in plain PyTorch, in any dtype: the ground truth of every test.

Written for reading, not for speed. All kernels are compared with it in float64; it also serves training. For a plan's
lower precisions it rounds where the kernels round, and is exact everywhere else. Shapes are those of the README: ``x
[B, D]``, logits and probabilities ``[B, K]``, score ``[B]``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..contract import FUSIONS, POOLING
from ..contract.results import Scores, TopK
from ..core.fusion import FORMS
from ..core.plan import Plan
from ..core.weights import towers_of
from . import activations
from .rounding import rounded

Layer = Callable[[Tensor], Tensor]


def activate(name: str, value: Tensor, slope: Tensor | None = None) -> Tensor:
    """Compute an activation of the contract's list; ``slope [H]`` is PReLU's."""
    if name not in activations.ROWS:
        raise ValueError(f"unknown activation {name!r}")
    return activations.ROWS[name].formula(value, slope)


def tower_logits(x: Tensor, towers: Sequence[Sequence[Layer]], heads: Sequence[Layer], plan: Plan) -> Tensor:
    """Logits ``[B, K]`` of towers given as callables (paper, equations of section 3.1).

    Args:
        x: ``[B, D]``, or any other input of the first layers.
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
        # For p = sigmoid(z_parent) sigmoid(r), p / (1 - p) is 1 / (e^-z + e^-r + e^-(z+r)).
        return -torch.logsumexp(torch.stack((-parent, -own, -parent - own)), dim=0)
    if not plan.logit_residual:
        return own
    return (torch.where(own > 0, 0.0, own) if plan.non_increasing else own) + parent


def fuse(logits: Tensor, fusion_weights: Tensor, fusion: str) -> Tensor:
    """Score ``[B]`` from logits ``[B, K]`` and weights ``[K]`` or ``[B, K]`` (more columns for some fusions)."""
    if fusion not in FORMS:
        raise ValueError(f"fusion must be one of {', '.join(FUSIONS)}, got {fusion!r}")
    return FORMS[fusion].score(logits, torch.sigmoid(logits), fusion_weights)


def finish(logits: Tensor, fusion_weights: Tensor, fusion: str) -> Scores:
    """Probabilities and score from logits ``[B, K]``."""
    return Scores(logits, torch.sigmoid(logits), fuse(logits, fusion_weights, fusion))


def spread_weights(weights: Tensor, weights_per: str, request_of: Tensor | None) -> Tensor:
    """Expand fusion weights for :func:`fuse`; ``request_of [N]`` is each candidate's request."""
    if weights_per == "request":
        assert request_of is not None
        return weights[request_of]
    return weights


def request_of_candidates(offsets: Tensor, candidates: int) -> Tensor:
    """Request number ``[N]`` of each candidate, from ``offsets [R + 1]``."""
    requests = torch.arange(offsets.numel() - 1, device=offsets.device)
    return torch.repeat_interleave(requests, offsets.diff(), output_size=candidates)


def dense_logits(x: Tensor, weights: Sequence[Tensor], plan: Plan) -> Tensor:
    """Logits ``[B, K]`` of rows ``x [B, D]`` on canonical weights (``Plan.weight_shapes``)."""
    return _logits([_Part(x, 0)], weights, plan)


def dense_scores(
    x: Tensor, weights: Sequence[Tensor], plan: Plan, fusion_weights: Tensor, fusion: str, weights_per: str
) -> Scores:
    """Form 1 on canonical weights (``Plan.weight_shapes``); arguments are those of the op."""
    return finish(dense_logits(x, weights, plan), spread_weights(fusion_weights, weights_per, None), fusion)


def request_scores(
    user: Tensor,
    item: Tensor,
    offsets: Tensor,
    weights: Sequence[Tensor],
    plan: Plan,
    fusion_weights: Tensor,
    fusion: str,
    weights_per: str,
) -> Scores:
    """Form 2 by its definition: every candidate's input is its request's user row and its own item row.

    In int8 each of the two rows has its own scale.
    """
    request = request_of_candidates(offsets, item.shape[0])
    logits = _logits([_Part(user[request], 0), _Part(item, user.shape[1])], weights, plan)
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


def catalog_rows(item: Tensor, weights: Sequence[Tensor], plan: Plan) -> Tensor:
    """The items' products with all first layers, ``[M, K, H_1]``, not rounded to a table's precision."""
    part = _Part(item, plan.in_features - item.shape[1])
    return torch.stack([part.product(layers[0], plan.precision) for layers, _ in _towers(weights, plan)], dim=1)


def catalog_scores(
    user: Tensor,
    products: Tensor,
    offsets: Tensor,
    weights: Sequence[Tensor],
    plan: Plan,
    fusion_weights: Tensor,
    fusion: str,
    weights_per: str,
) -> Scores:
    """Form 3 on the candidates' table rows ``[N, K, H_1]``."""
    request = request_of_candidates(offsets, products.shape[0])
    logits = _logits([_Part(user[request], 0)], weights, plan, products)
    return finish(logits, spread_weights(fusion_weights, weights_per, request), fusion)


def feature_rows(
    ids: Tensor,
    values: Tensor,
    value_offsets: Tensor,
    tables: Sequence[Tensor],
    scales: Sequence[Tensor] = (),
    ragged: Sequence[int] = (),
    pooling: Sequence[int] = (),
    padding: Sequence[int] = (),
    value_weights: Tensor | None = None,
) -> Tensor:
    """Form 4's input rows ``[n, D]``: the concatenation of each feature's table row, or of a list's pooled rows.

    Tables have any floating dtype, or int8 with ``scales``; the rows have the widest of their dtypes, and lists are
    pooled in it. Differentiable in the tables and the weights.
    """
    candidates, int8_scales, parts = ids.shape[0], iter(scales), []
    column = place = 0
    dtype = functools.reduce(torch.promote_types, (t.dtype for t in (*tables, *scales) if t.is_floating_point()))
    dtype = torch.promote_types(dtype, torch.float32)
    for at, table in enumerate(tables):
        scale = None if table.is_floating_point() else next(int8_scales)
        if at not in ragged:
            parts.append(_table_rows(table, scale, ids[:, column], dtype))
            column += 1
            continue
        offsets = value_offsets[place * candidates : (place + 1) * candidates + 1]
        own = slice(offsets[0], offsets[-1])
        chosen, owner = values[own], request_of_candidates(offsets - offsets[0], values[own].shape[0])
        weights = None if value_weights is None else value_weights[own].to(dtype)
        if padding and padding[place] >= 0:
            kept = (chosen != padding[place]).nonzero()[:, 0]
            chosen, owner, weights = chosen[kept], owner[kept], None if weights is None else weights[kept]
        mean = bool(pooling) and POOLING[pooling[place]] == "mean"
        parts.append(_pooled(_table_rows(table, scale, chosen, dtype), weights, owner, candidates, mean))
        place += 1
    return torch.cat(parts, dim=1)


def _table_rows(table: Tensor, scale: Tensor | None, ids: Tensor, dtype: torch.dtype) -> Tensor:
    rows = F.embedding(ids, table).to(dtype)
    return rows if scale is None else rows * scale[ids, None].to(dtype)


def _pooled(rows: Tensor, weights: Tensor | None, owner: Tensor, lists: int, mean: bool) -> Tensor:
    """The sums ``[lists, width]`` of the rows of each list, times their weights, or their means."""
    weighted = rows if weights is None else rows * weights[:, None]
    sums = rows.new_zeros((lists, rows.shape[1])).index_add(0, owner, weighted)
    if not mean:
        return sums
    counts = rows.new_ones(rows.shape[0]) if weights is None else weights
    total = rows.new_zeros(lists).index_add(0, owner, counts)[:, None]
    return (sums / total.where(total != 0, 1)).where(total != 0, 0)


class _Part(NamedTuple):
    """Consecutive columns of the input row."""

    rows: Tensor
    first: int

    def product(self, layer: _Layer, precision: str) -> Tensor:
        weight = rounded(layer.weight, precision, 0)[self.first : self.first + self.rows.shape[1]]
        return rounded(self.rows, precision) @ weight


class _Layer(NamedTuple):
    """A hidden layer's canonical weights."""

    activation: str
    weight: Tensor
    bias: Tensor
    slope: Tensor | None
    affine: tuple[Tensor, Tensor] | None

    def finish(self, sums: Tensor) -> Tensor:
        value = activate(self.activation, sums + self.bias, self.slope)
        return value * self.affine[0] + self.affine[1] if self.affine else value


def _towers(weights: Sequence[Tensor], plan: Plan) -> list[tuple[list[_Layer], tuple[Tensor, Tensor]]]:
    """Each task's layers, and the weight and bias of its head."""

    def layer(activation: str, own: dict[str, Tensor]) -> _Layer:
        affine = (own["scale"], own["shift"]) if plan.affine else None
        return _Layer(activation, own["weight"], own["bias"], own.get("slope"), affine)

    return [
        (list(map(layer, plan.activations, tower.layers)), (tower.head["weight"], tower.head["bias"]))
        for tower in towers_of(plan, weights)
    ]


def _logits(parts: Sequence[_Part], weights: Sequence[Tensor], plan: Plan, products: Tensor | None = None) -> Tensor:
    """Logits of input rows given in parts; ``products [B, K, H_1]`` replace a further part."""
    precision = plan.precision
    towers: list[list[Layer]] = []
    heads: list[Layer] = []

    def first(task: int, layer: _Layer) -> Layer:
        def apply(_: Tensor) -> Tensor:
            own = [part.product(layer, precision) for part in parts]
            return layer.finish(sum(own, products[:, task] if products is not None else torch.zeros_like(own[0])))

        return apply

    def later(layer: _Layer) -> Layer:
        return lambda value: layer.finish(_Part(value, 0).product(layer, precision))

    def head(weight: Tensor, bias: Tensor) -> Layer:
        return lambda value: value @ weight + bias

    for task, (layers, (weight, bias)) in enumerate(_towers(weights, plan)):
        towers.append([first(task, layers[0]), *map(later, layers[1:])])
        heads.append(head(weight, bias))
    return tower_logits(parts[0].rows, towers, heads, plan)
