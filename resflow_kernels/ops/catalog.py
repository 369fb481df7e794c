"""Form 3, catalog: candidates are rows of a table of the items' products with all first layers."""

from __future__ import annotations

from torch import Tensor

from ..contract.results import Scores, TopK
from ..core import checks
from ..core.plan import Plan
from . import library
from .call import OPS, other_backend, table_dtype

_SCORES, _TOPK = OPS["catalog_scores"], OPS["catalog_topk"]


def catalog_rows(
    item: Tensor, packed: Tensor, plan: Plan, dtype: str = "bfloat16", *, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """Compute the items' part of the first layer of all tasks, once for all calls of the catalog form.

    Args:
        item: ``[M, Di]`` float32 or bfloat16, the last ``Di`` columns of the input row.
        packed: from :func:`pack_towers`.
        plan: the plan it was packed for.
        dtype: the precision to which rows are rounded: ``"float32"``, ``"bfloat16"`` or ``"int8"`` (one scale per row).
        backend: as in :func:`resflow_kernels.ops.dense_scores`.

    Returns:
        table ``[M, plan.table_width_of(Di)]`` of that dtype, and scales: float32 ``[M]`` for int8, else ``[0]``.

    Raises:
        ValueError: bad input; the message names the argument, what was expected and what was got.
    """
    checks.no_grad("catalog_rows", item=item)
    arguments = (item, packed, plan.encoded, table_dtype("catalog_rows", dtype))
    other = other_backend("catalog_rows", "catalog", item, plan, backend)
    return library.call("catalog_rows", *arguments) if other is None else other(*arguments)


def catalog_scores(
    user: Tensor,
    ids: Tensor,
    offsets: Tensor,
    table: Tensor,
    scales: Tensor,
    packed: Tensor,
    plan: Plan,
    fusion_weights: Tensor,
    fusion: str = "additive",
    weights_per: str = "call",
    *,
    backend: str | None = None,
) -> Scores:
    """Form 3: score items of a catalog by id.

    Args:
        user: ``[R, Du]`` float32 or bfloat16, the first ``Du`` columns of the input row.
        ids: ``[N]`` int64, rows of ``table``, the candidates of all requests, concatenated.
        offsets: ``[R + 1]`` int64; request ``r`` owns candidates ``offsets[r]`` to ``offsets[r + 1]``.
        table: ``[M, plan.table_width_of(Di)]`` from :func:`catalog_rows`, made with the same weights.
        scales: also from :func:`catalog_rows`.
        packed: from :func:`pack_towers`.
        plan: the plan it was packed for.
        fusion_weights: ``[K]``, ``[R, K]`` or ``[N, K]`` float32, depending on ``weights_per``.
        fusion: ``"additive"``, ``"multiplicative"`` or ``"expected_value"``.
        weights_per: ``"call"``, ``"request"`` or ``"candidate"``.
        backend: as in :func:`resflow_kernels.ops.dense_scores`.

    Returns:
        :class:`Scores` of the ``N`` candidates.

    Raises:
        ValueError: bad input, such as an id out of range; the message names it.
    """
    inputs = (user, ids, offsets, table, scales)
    return Scores(*_SCORES.towers(inputs, packed, plan, fusion_weights, fusion, weights_per, backend=backend))


def catalog_topk(
    user: Tensor,
    ids: Tensor,
    offsets: Tensor,
    table: Tensor,
    scales: Tensor,
    packed: Tensor,
    plan: Plan,
    fusion_weights: Tensor,
    fusion: str = "additive",
    weights_per: str = "call",
    k: int = 100,
    *,
    backend: str | None = None,
) -> TopK:
    """The ``k`` best candidates of each request of form 3; positions are indices in the request, not ids.

    Arguments are those of :func:`catalog_scores`.

    Returns:
        :class:`TopK` of scores ``[R, k]`` float32 and positions ``[R, k]`` int64.

    Raises:
        ValueError: bad input; the message names it.
    """
    inputs = (user, ids, offsets, table, scales)
    return TopK(*_TOPK.towers(inputs, packed, plan, fusion_weights, fusion, weights_per, k, backend=backend))
