"""The ops of the twin tower form: a task's logit is the dot product of a user's vector and an item's.

===================  ==============================================================================
``twin_rows``        item vectors into the table of the others: float32, bfloat16 or int8
``twin_scores``      logits, probabilities and score of all items for every request
``twin_topk``        the k best of all items for every request, in one stream over the table
``twin_ids_scores``  the same of a list of items a request
``twin_ids_topk``    the k best of each request's list
===================  ==============================================================================

Part of :mod:`resflow_kernels.ops`, which re-exports these functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..contract import PRECISION_ROWS, TABLE_PRECISIONS
from ..core import checks
from ..core.outputs import empty_scores, empty_topk
from ..reference import Scores, TopK
from . import library

library.load()
_ops = torch.ops.resflow


def twin_rows(vectors: Tensor, tasks: int, element: str = "int8") -> tuple[Tensor, Tensor]:
    """Round item vectors to a table.

    Args:
        vectors: ``[M, K * W]`` float32 or bfloat16, each item's vectors of all tasks side by side.
        tasks: ``K``.
        element: what the table holds: ``"float32"``, ``"bfloat16"``, or ``"int8"`` with a scale an item and task.

    Returns:
        table ``[M, K * W]`` of that dtype, and scales: float32 ``[M, K]`` for int8, else ``[0, K]``. A vector with
        a NaN or an infinity has the scale NaN.

    Raises:
        ValueError: bad input; the message names the argument, what was expected and what was got.

    Example:
        >>> table, scales = twin_rows(torch.randn(1000, 3 * 64), tasks=3)
        >>> table.dtype, scales.shape
        (torch.int8, torch.Size([1000, 3]))
    """
    checks.no_grad("twin_rows", vectors=vectors)
    if element not in TABLE_PRECISIONS:
        raise ValueError(f"twin_rows: element must be one of {', '.join(TABLE_PRECISIONS)}, got {element!r}")
    return _ops.twin_rows(vectors, tasks, PRECISION_ROWS[element].code)


def twin_scores(
    user: Tensor,
    table: Tensor,
    scales: Tensor,
    fusion_weights: Tensor,
    parents: Sequence[int],
    non_increasing: bool = False,
    fusion: int = 0,
    weights_per: int = 0,
) -> Scores:
    """Form 5: score every item of a table for every request.

    Args:
        user: ``[R, K * W]`` float32 or bfloat16, each user's vectors of all tasks side by side.
        table: ``[M, K * W]`` from :func:`twin_rows`; float32, bfloat16 or int8, any row stride.
        scales: from :func:`twin_rows` as well.
        fusion_weights: ``[K]``, ``[R, K]``, or one set an item ``[M, K]``, float32, as ``weights_per`` says.
        parents: for each of the ``K`` tasks the task whose logit is added to its own, -1 for none.
        non_increasing: pass a task's own logit through ``min(., 0)`` before its parent's is added.
        fusion: place in ``contract.FUSIONS``.
        weights_per: place in ``contract.WEIGHTS_PER``.

    Returns:
        :class:`Scores` of ``[R * M]`` candidates: all items for the first request, then for the second, ...

    Raises:
        ValueError: bad input; the message names the argument, what was expected and what was got.
    """
    checks.no_grad("twin_scores", user=user, fusion_weights=fusion_weights)
    settings = (list(parents), non_increasing, fusion, weights_per)
    return Scores(*_ops.twin_scores(user, table, scales, fusion_weights, *settings))


def twin_topk(
    user: Tensor,
    table: Tensor,
    scales: Tensor,
    fusion_weights: Tensor,
    parents: Sequence[int],
    non_increasing: bool = False,
    fusion: int = 0,
    weights_per: int = 0,
    k: int = 100,
) -> TopK:
    """The ``k`` best of all items for every request, without their scores in memory; arguments as in
    :func:`twin_scores`.

    Returns:
        :class:`TopK` of scores ``[R, k]`` and positions ``[R, k]``, rows of the table.

    Example:
        >>> table, scales = twin_rows(torch.randn(1000, 2 * 32), tasks=2)
        >>> best = twin_topk(torch.randn(4, 2 * 32), table, scales, torch.ones(2), parents=(-1, 0), k=10)
        >>> best.positions.shape
        torch.Size([4, 10])

    Raises:
        ValueError: bad input; the message names it.
    """
    checks.no_grad("twin_topk", user=user, fusion_weights=fusion_weights)
    settings = (list(parents), non_increasing, fusion, weights_per)
    return TopK(*_ops.twin_topk(user, table, scales, fusion_weights, *settings, k))


def twin_ids_scores(
    user: Tensor,
    ids: Tensor,
    offsets: Tensor,
    table: Tensor,
    scales: Tensor,
    fusion_weights: Tensor,
    parents: Sequence[int],
    non_increasing: bool = False,
    fusion: int = 0,
    weights_per: int = 0,
) -> Scores:
    """Form 5 on lists of items: ``ids [N]`` int64 are rows of the table, ``offsets [R + 1]`` int64 cut them into
    requests; a candidate's fusion weights are ``[N, K]``. The rest as in :func:`twin_scores`, to the bit.

    Returns:
        :class:`Scores` of the ``N`` candidates.

    Raises:
        ValueError: bad input, an id out of range among it; the message names it.
    """
    checks.no_grad("twin_ids_scores", user=user, fusion_weights=fusion_weights)
    settings = (list(parents), non_increasing, fusion, weights_per)
    return Scores(*_ops.twin_ids_scores(user, ids, offsets, table, scales, fusion_weights, *settings))


def twin_ids_topk(
    user: Tensor,
    ids: Tensor,
    offsets: Tensor,
    table: Tensor,
    scales: Tensor,
    fusion_weights: Tensor,
    parents: Sequence[int],
    non_increasing: bool = False,
    fusion: int = 0,
    weights_per: int = 0,
    k: int = 100,
) -> TopK:
    """The ``k`` best of each request's list of items; positions are places in the request, not ids.

    Arguments as in :func:`twin_ids_scores`.

    Returns:
        :class:`TopK` of scores ``[R, k]`` float32 and positions ``[R, k]`` int64.

    Raises:
        ValueError: bad input; the message names it.
    """
    checks.no_grad("twin_ids_topk", user=user, fusion_weights=fusion_weights)
    settings = (list(parents), non_increasing, fusion, weights_per)
    return TopK(*_ops.twin_ids_topk(user, ids, offsets, table, scales, fusion_weights, *settings, k))


# Shapes for tracing, and the checks that need no data.


def _check_vectors(op: str, user: Tensor, table: Tensor, scales: Tensor, parents: list[int]) -> None:
    checks.twin_parents(op, parents)
    checks.twin_table(op, table, scales, len(parents))
    checks.matrix(op, "user", user, table.shape[1])


def _check_all(
    op: str,
    user: Tensor,
    table: Tensor,
    scales: Tensor,
    fusion_weights: Tensor,
    parents: list[int],
    fusion: int,
    weights_per: int,
) -> None:
    _check_vectors(op, user, table, scales, parents)
    candidates, requests = table.shape[0], user.shape[0]
    checks.fusion(op, fusion_weights, fusion, weights_per, len(parents), candidates, requests, torch.float32)


def _check_ids(
    op: str,
    user: Tensor,
    ids: Tensor,
    offsets: Tensor,
    table: Tensor,
    scales: Tensor,
    fusion_weights: Tensor,
    parents: list[int],
    fusion: int,
    weights_per: int,
) -> None:
    _check_vectors(op, user, table, scales, parents)
    checks.ids(op, ids)
    checks.offsets(op, offsets, user.shape[0])
    candidates, requests = ids.shape[0], user.shape[0]
    checks.fusion(op, fusion_weights, fusion, weights_per, len(parents), candidates, requests, torch.float32)


def _fake_twin_rows(vectors: Tensor, tasks: int, element: int) -> tuple[Tensor, Tensor]:
    checks.matrix("twin_rows", "vectors", vectors, None)
    checks.task_count("twin_rows", tasks)
    checks.task_columns("twin_rows", "vectors", vectors, tasks)
    checks.element("twin_rows", element)
    dtype = checks.ELEMENT_DTYPES[element]
    count = vectors.shape[0] if dtype == torch.int8 else 0
    return vectors.new_empty(vectors.shape, dtype=dtype), vectors.new_empty((count, tasks), dtype=torch.float32)


def _fake_twin_scores(
    user: Tensor,
    table: Tensor,
    scales: Tensor,
    fusion_weights: Tensor,
    parents: list[int],
    non_increasing: bool,
    fusion: int,
    weights_per: int,
) -> tuple[Tensor, Tensor, Tensor]:
    _check_all("twin_scores", user, table, scales, fusion_weights, parents, fusion, weights_per)
    return empty_scores(user, user.shape[0] * table.shape[0], len(parents))


def _fake_twin_topk(
    user: Tensor,
    table: Tensor,
    scales: Tensor,
    fusion_weights: Tensor,
    parents: list[int],
    non_increasing: bool,
    fusion: int,
    weights_per: int,
    k: int,
) -> tuple[Tensor, Tensor]:
    _check_all("twin_topk", user, table, scales, fusion_weights, parents, fusion, weights_per)
    checks.positive("twin_topk", "k", k)
    return empty_topk(user, user.shape[0], k)


def _fake_twin_ids_scores(
    user: Tensor,
    ids: Tensor,
    offsets: Tensor,
    table: Tensor,
    scales: Tensor,
    fusion_weights: Tensor,
    parents: list[int],
    non_increasing: bool,
    fusion: int,
    weights_per: int,
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = (user, ids, offsets, table, scales)
    _check_ids("twin_ids_scores", *inputs, fusion_weights, parents, fusion, weights_per)
    return empty_scores(user, ids.shape[0], len(parents))


def _fake_twin_ids_topk(
    user: Tensor,
    ids: Tensor,
    offsets: Tensor,
    table: Tensor,
    scales: Tensor,
    fusion_weights: Tensor,
    parents: list[int],
    non_increasing: bool,
    fusion: int,
    weights_per: int,
    k: int,
) -> tuple[Tensor, Tensor]:
    inputs = (user, ids, offsets, table, scales)
    _check_ids("twin_ids_topk", *inputs, fusion_weights, parents, fusion, weights_per)
    checks.positive("twin_ids_topk", "k", k)
    return empty_topk(user, user.shape[0], k)


FAKES: dict[str, Callable[..., Any]] = {
    "twin_rows": _fake_twin_rows,
    "twin_scores": _fake_twin_scores,
    "twin_topk": _fake_twin_topk,
    "twin_ids_scores": _fake_twin_ids_scores,
    "twin_ids_topk": _fake_twin_ids_topk,
}
