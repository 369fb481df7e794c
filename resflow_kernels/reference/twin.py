"""The twin tower form in plain PyTorch, in any dtype: the ground truth, and the code that trains it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import Layer, Scores, finish, request_of_candidates, rounded, spread_weights


def twin_logits(user: Tensor, item: Tensor, parents: Sequence[int], non_increasing: bool = False) -> Tensor:
    """Logits ``[..., K]`` of vectors ``[..., K, W]``: ``<u_k, v_k>``, plus the parent's logit if the task has one."""
    own = (user * item).sum(-1)
    logits: list[Tensor] = []
    for task, parent in enumerate(parents):
        logit = own[..., task]
        if parent >= 0:
            logit = (torch.where(logit > 0, 0.0, logit) if non_increasing else logit) + logits[parent]
        logits.append(logit)
    return torch.stack(logits, dim=-1)


def tower_vectors(
    x: Tensor, towers: Sequence[Sequence[Layer]], parents: Sequence[int], feature_residual: bool
) -> Tensor:
    """Last hidden outputs ``[B, K, W]`` of towers given as callables, feature residuals included."""
    outputs: list[list[Tensor]] = []
    for tower, parent in zip(towers, parents, strict=True):
        hidden = x
        outputs.append([])
        for level, layer in enumerate(tower):
            hidden = layer(hidden)
            if feature_residual and parent >= 0:
                hidden = hidden + outputs[parent][level]
            outputs[-1].append(hidden)
    return torch.stack([own[-1] for own in outputs], dim=1)


def held_vectors(table: Tensor, scales: Tensor, tasks: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """The vectors ``[M, K, W]`` that a table represents."""
    vectors = table.to(dtype).reshape(len(table), tasks, table.shape[1] // tasks)
    return vectors * scales.to(dtype)[..., None] if table.dtype == torch.int8 else vectors


def _user_vectors(user: Tensor, table: Tensor, tasks: int) -> Tensor:
    vectors = user.reshape(len(user), tasks, user.shape[1] // tasks)
    return rounded(vectors, "int8") if table.dtype == torch.int8 else vectors


def twin_scores(
    user: Tensor,
    table: Tensor,
    scales: Tensor,
    fusion_weights: Tensor,
    parents: Sequence[int],
    non_increasing: bool = False,
    fusion: str = "additive",
    weights_per: str = "call",
) -> Scores:
    """Every item for every request, ``[R * M]`` candidates; computes in ``user``'s dtype. Arguments are the op's."""
    requests, items = len(user), len(table)
    ids = torch.arange(items, device=user.device).repeat(requests)
    offsets = torch.arange(requests + 1, device=user.device) * items
    if weights_per == "candidate":  # per item
        fusion_weights = fusion_weights[ids]
    settings = (parents, non_increasing, fusion, weights_per)
    return twin_ids_scores(user, ids, offsets, table, scales, fusion_weights, *settings)


def twin_ids_scores(
    user: Tensor,
    ids: Tensor,
    offsets: Tensor,
    table: Tensor,
    scales: Tensor,
    fusion_weights: Tensor,
    parents: Sequence[int],
    non_increasing: bool = False,
    fusion: str = "additive",
    weights_per: str = "call",
) -> Scores:
    """One list of items per request; computes in ``user``'s dtype. Arguments are the op's."""
    tasks = len(parents)
    request = request_of_candidates(offsets, len(ids))
    users = _user_vectors(user, table, tasks)[request]
    items = held_vectors(table, scales, tasks, user.dtype)[ids]
    logits = twin_logits(users, items, parents, non_increasing)
    return finish(logits, spread_weights(fusion_weights, weights_per, request), fusion)
