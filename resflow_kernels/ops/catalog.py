"""The ops of the catalogue form: candidates are rows of a table that holds the items' side of all first layers.

==================  ================================================================
``catalog_rows``    items' side of the first layers, for the table of the next two
``catalog_scores``  one user row and many ids of table rows a request
``catalog_topk``    the k best of each request of that form
==================  ================================================================

Part of :mod:`resflow_kernels.ops`, which re-exports these functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..contract import PRECISION_ROWS, TABLE_PRECISIONS
from ..core import checks
from ..core.outputs import empty_scores, empty_topk
from ..core.plan import Plan
from ..reference import Scores, TopK
from . import backends, library

library.load()
_ops = torch.ops.resflow


def catalog_rows(
    item: Tensor, packed: Tensor, plan: Plan, element: str = "bfloat16", *, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """The items' side of the first layer of all tasks, computed once for the catalogue form.

    Args:
        item: ``[M, Di]`` float32 or bfloat16, the last ``Di`` columns of the input row.
        packed: from :func:`pack_towers`.
        plan: the plan it was packed for.
        element: what the rows are rounded to: ``"float32"``, ``"bfloat16"`` or ``"int8"`` (a scale a row).
        backend: as in :func:`resflow_kernels.ops.dense_scores`.

    Returns:
        table ``[M, plan.table_width]`` of that dtype, and scales: float32 ``[M]`` for int8, else ``[0]``.

    Raises:
        ValueError: bad input; the message names the argument, what was expected and what was got.
    """
    checks.no_grad("catalog_rows", item=item)
    if element not in TABLE_PRECISIONS:
        raise ValueError(f"catalog_rows: element must be one of {', '.join(TABLE_PRECISIONS)}, got {element!r}")
    if not (backend is None and (backends.direct_cpu if item.is_cpu else backends.direct_cuda)):
        other = backends.function_of("catalog_rows", "catalogue", item.device.type, plan, backend)
        if other is not None:
            return other(item, packed, plan, element)
    return _ops.catalog_rows(item, packed, plan.encoded, PRECISION_ROWS[element].code)


def catalog_scores(
    user: Tensor,
    ids: Tensor,
    offsets: Tensor,
    table: Tensor,
    scales: Tensor,
    packed: Tensor,
    plan: Plan,
    fusion_weights: Tensor,
    fusion: int = 0,
    weights_per: int = 0,
    *,
    backend: str | None = None,
) -> Scores:
    """Form 3: score items of a catalogue by id.

    Args:
        user: ``[R, Du]`` float32 or bfloat16, the first ``Du`` columns of the input row.
        ids: ``[N]`` int64, rows of ``table``, the candidates of all requests one after another.
        offsets: ``[R + 1]`` int64; request ``r`` owns candidates ``offsets[r]`` to ``offsets[r + 1]``.
        table: ``[M, plan.table_width]`` from :func:`catalog_rows`, made with the same weights.
        scales: from :func:`catalog_rows` as well.
        packed: from :func:`pack_towers`.
        plan: the plan it was packed for.
        fusion_weights: ``[K]``, ``[R, K]`` or ``[N, K]`` float32 as ``weights_per`` says.
        fusion: place in ``contract.FUSIONS``.
        weights_per: place in ``contract.WEIGHTS_PER``.
        backend: as in :func:`resflow_kernels.ops.dense_scores`.

    Returns:
        :class:`Scores` of the ``N`` candidates.

    Raises:
        ValueError: bad input, an id out of range among it; the message names it.
    """
    checks.no_grad("catalog_scores", user=user, fusion_weights=fusion_weights)
    catalogue = (user, ids, offsets, table, scales)
    if not (backend is None and (backends.direct_cpu if user.is_cpu else backends.direct_cuda)):
        other = backends.function_of("catalog_scores", "catalogue", user.device.type, plan, backend)
        if other is not None:
            return Scores(*other(*catalogue, packed, plan, fusion_weights, fusion, weights_per))
    return Scores(*_ops.catalog_scores(*catalogue, packed, fusion_weights, plan.encoded, fusion, weights_per))


def catalog_topk(
    user: Tensor,
    ids: Tensor,
    offsets: Tensor,
    table: Tensor,
    scales: Tensor,
    packed: Tensor,
    plan: Plan,
    fusion_weights: Tensor,
    fusion: int = 0,
    weights_per: int = 0,
    k: int = 100,
    *,
    backend: str | None = None,
) -> TopK:
    """The ``k`` best candidates of each request of form 3; positions are places in the request, not ids.

    Arguments as in :func:`catalog_scores`.

    Returns:
        :class:`TopK` of scores ``[R, k]`` float32 and positions ``[R, k]`` int64.

    Raises:
        ValueError: bad input; the message names it.
    """
    checks.no_grad("catalog_topk", user=user, fusion_weights=fusion_weights)
    catalogue = (user, ids, offsets, table, scales)
    if not (backend is None and (backends.direct_cpu if user.is_cpu else backends.direct_cuda)):
        other = backends.function_of("catalog_topk", "catalogue", user.device.type, plan, backend)
        if other is not None:
            return TopK(*other(*catalogue, packed, plan, fusion_weights, fusion, weights_per, k))
    return TopK(*_ops.catalog_topk(*catalogue, packed, fusion_weights, plan.encoded, fusion, weights_per, k))


def _check_catalog(
    op: str,
    user: Tensor,
    ids: Tensor,
    offsets: Tensor,
    table: Tensor,
    scales: Tensor,
    fusion_weights: Tensor,
    plan: Plan,
    fusion: int,
    weights_per: int,
) -> None:
    checks.side(op, "user", user, plan)
    checks.table(op, table, scales, plan)
    checks.ids(op, ids)
    checks.offsets(op, offsets, user.shape[0])
    checks.fusion(op, fusion_weights, fusion, weights_per, plan.tasks, ids.shape[0], user.shape[0], torch.float32)


def _fake_catalog_rows(item: Tensor, packed: Tensor, plan: list[int], element: int) -> tuple[Tensor, Tensor]:
    decoded = Plan.decode(plan)
    checks.side("catalog_rows", "item", item, decoded)
    checks.element("catalog_rows", element)
    checks.precision("catalog_rows", decoded, packed)
    dtype = checks.ELEMENT_DTYPES[element]
    table = item.new_empty((item.shape[0], decoded.table_width), dtype=dtype)
    return table, item.new_empty((item.shape[0] if dtype == torch.int8 else 0,), dtype=torch.float32)


def _fake_catalog_scores(
    user: Tensor,
    ids: Tensor,
    offsets: Tensor,
    table: Tensor,
    scales: Tensor,
    packed: Tensor,
    fusion_weights: Tensor,
    plan: list[int],
    fusion: int,
    weights_per: int,
) -> tuple[Tensor, Tensor, Tensor]:
    decoded, inputs = Plan.decode(plan), (user, ids, offsets, table, scales)
    _check_catalog("catalog_scores", *inputs, fusion_weights, decoded, fusion, weights_per)
    checks.precision("catalog_scores", decoded, packed)
    return empty_scores(user, ids.shape[0], decoded.tasks)


def _fake_catalog_topk(
    user: Tensor,
    ids: Tensor,
    offsets: Tensor,
    table: Tensor,
    scales: Tensor,
    packed: Tensor,
    fusion_weights: Tensor,
    plan: list[int],
    fusion: int,
    weights_per: int,
    k: int,
) -> tuple[Tensor, Tensor]:
    decoded, inputs = Plan.decode(plan), (user, ids, offsets, table, scales)
    _check_catalog("catalog_topk", *inputs, fusion_weights, decoded, fusion, weights_per)
    checks.precision("catalog_topk", decoded, packed)
    checks.positive("catalog_topk", "k", k)
    return empty_topk(user, user.shape[0], k)


FAKES: dict[str, Callable[..., Any]] = {
    "catalog_rows": _fake_catalog_rows,
    "catalog_scores": _fake_catalog_scores,
    "catalog_topk": _fake_catalog_topk,
}
