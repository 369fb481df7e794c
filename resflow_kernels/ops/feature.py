"""The feature form's ops: embedding tables looked up and pooled in front of the towers; see :mod:`resflow_kernels.ops`.

A model's tables (:class:`FeatureTables`) are the same in every call; the rows that candidates look up are a
:class:`FeatureIds`. The pooled row is never in memory: a tile of candidates is pooled into cache while the table rows
of the next tile are prefetched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..contract import POOLING
from ..contract.results import Scores, TopK
from ..core import checks
from ..core.program import AnyPlan
from .call import OPS


class FeatureIds(NamedTuple):
    """The rows of the tables that ``n`` candidates (or users) look up.

    Lists have the layout of TorchRec's ``KeyedJaggedTensor``: those of the first ragged feature, candidate by
    candidate, then those of the next.
    """

    ids: Tensor  # [n, features of one id] int64, any strides
    values: Tensor  # [total] int64: the concatenated lists of the ragged features
    value_offsets: Tensor  # [ragged features * n + 1] int64: list i is values[value_offsets[i] : value_offsets[i + 1]]


class FeatureTables(NamedTuple):
    """Embedding tables, in the order of the input row's columns; one may stand for several features."""

    tables: Sequence[Tensor]  # [rows, width] float32, bfloat16 or int8, rows contiguous
    scales: Sequence[Tensor] = ()  # float32 [rows] for each int8 table: the factors of its rows
    ragged: Sequence[int] = ()  # ascending indices of the tables whose features are lists of ids
    pooling: Sequence[str] = ()  # for each ragged table "sum" or "mean"; empty: all lists are summed
    padding: Sequence[int] = ()  # for each ragged table the id that is left out of sums and means, or -1; empty: none

    @property
    def width(self) -> int:
        """Number of columns of the input row."""
        return sum(table.shape[1] for table in self.tables)


# Registered so that an exported program can describe its inputs, and be loaded with its example without unpickling.
torch.utils._pytree._register_namedtuple(FeatureIds, serialized_type_name="resflow_kernels.FeatureIds")
torch.serialization.add_safe_globals([FeatureIds])


def one_id_each(ids: Tensor) -> FeatureIds:
    """:class:`FeatureIds` from ``ids [n, features]``, without ragged features."""
    return FeatureIds(ids, ids.new_empty((0,)), ids.new_zeros((1,)))


def feature_scores(
    ids: FeatureIds,
    tables: FeatureTables,
    packed: Tensor,
    plan: AnyPlan,
    fusion_weights: Tensor,
    fusion: str = "additive",
    weights_per: str = "call",
    value_weights: Tensor | None = None,
) -> Scores:
    """Form 4: score candidates given by feature ids.

    A candidate's input row consists of one row per feature: its row of the table or, for a ragged feature, the sum or
    the mean of its rows in the order of the list, in float32. A list without ids, or with the padding id alone, is
    zeros. Weights multiply the rows; the mean is then that sum over the sum of the weights (zeros where it is 0).
    Results are bitwise those of :func:`~resflow_kernels.ops.dense_scores` for that row.

    Args:
        ids: the ids of ``B`` candidates.
        tables: the embedding tables; their widths add up to the plan's input row.
        packed: from :func:`~resflow_kernels.ops.pack_towers`.
        plan: the plan it was packed for.
        fusion_weights: ``[K]``, or ``[B, K]`` per candidate (``K + 1`` for expected values), float32.
        fusion: ``"additive"``, ``"multiplicative"`` or ``"expected_value"``.
        weights_per: ``"call"`` or ``"candidate"``.
        value_weights: float32, one for each of the ids' ``values``; ``None``: all are 1.

    Returns:
        :class:`Scores` of the ``B`` candidates.

    Raises:
        ValueError: bad input, such as an id out of range; the message names it.

    Example:
        >>> ids = ops.one_id_each(torch.tensor([[3, 0], [9, 1]]))
        >>> tables = ops.FeatureTables([torch.randn(10, 4), torch.randn(2, 2)])
        >>> ops.feature_scores(ids, tables, packed, plan, torch.ones(2)).score.shape  # of a Plan(6)
        torch.Size([2])
    """
    inputs, options = (*ids, *_lists(tables)), _options("feature_scores", tables, value_weights)
    op = OPS["feature_scores"]
    return Scores(*op.towers(inputs, packed, plan, fusion_weights, fusion, weights_per, options=options))


def feature_topk(
    ids: FeatureIds,
    offsets: Tensor,
    tables: FeatureTables,
    packed: Tensor,
    plan: AnyPlan,
    fusion_weights: Tensor,
    fusion: str = "additive",
    weights_per: str = "call",
    k: int = 100,
    value_weights: Tensor | None = None,
) -> TopK:
    """The ``k`` best candidates of each request of form 4; ``offsets [R + 1]`` int64 divides them into requests.

    Arguments are those of :func:`feature_scores`.

    Returns:
        :class:`TopK` of scores ``[R, k]`` float32 and positions ``[R, k]`` int64.

    Raises:
        ValueError: bad input; the message names it.
    """
    inputs, options = (*ids, *_lists(tables), offsets), _options("feature_topk", tables, value_weights)
    op = OPS["feature_topk"]
    return TopK(*op.towers(inputs, packed, plan, fusion_weights, fusion, weights_per, k, options=options))


def feature_request_scores(
    user: FeatureIds,
    item: FeatureIds,
    offsets: Tensor,
    tables: FeatureTables,
    user_features: int,
    packed: Tensor,
    plan: AnyPlan,
    fusion_weights: Tensor,
    fusion: str = "additive",
    weights_per: str = "call",
    user_value_weights: Tensor | None = None,
    item_value_weights: Tensor | None = None,
) -> Scores:
    """Form 4 in front of form 2: the first ``user_features`` tables are looked up and multiplied once per request.

    Args:
        user: the ids of ``R`` requests in the first ``user_features`` tables.
        item: the ids of ``N`` candidates, concatenated over the requests, in the other tables.
        offsets: ``[R + 1]`` int64; request ``r`` owns candidates ``offsets[r]`` to ``offsets[r + 1]``.
        tables: the user's, then the items'.
        user_features: number of the user's tables.
        packed: from :func:`~resflow_kernels.ops.pack_towers`.
        plan: the plan it was packed for.
        fusion_weights: ``[K]``, ``[R, K]`` or ``[N, K]`` float32, depending on ``weights_per``.
        fusion: ``"additive"``, ``"multiplicative"`` or ``"expected_value"``.
        weights_per: ``"call"``, ``"request"`` or ``"candidate"``.
        user_value_weights, item_value_weights: as ``value_weights`` of :func:`feature_scores`.

    Returns:
        :class:`Scores` of the ``N`` candidates.

    Raises:
        ValueError: bad input; the message names it.
    """
    inputs, op = (*user, *item, offsets, *_lists(tables), user_features), OPS["feature_request_scores"]
    options = _options("feature_request_scores", tables, user_value_weights, item_value_weights)
    return Scores(*op.towers(inputs, packed, plan, fusion_weights, fusion, weights_per, options=options))


def feature_request_topk(
    user: FeatureIds,
    item: FeatureIds,
    offsets: Tensor,
    tables: FeatureTables,
    user_features: int,
    packed: Tensor,
    plan: AnyPlan,
    fusion_weights: Tensor,
    fusion: str = "additive",
    weights_per: str = "call",
    k: int = 100,
    user_value_weights: Tensor | None = None,
    item_value_weights: Tensor | None = None,
) -> TopK:
    """The ``k`` best candidates of each request of :func:`feature_request_scores`.

    Arguments are those of :func:`feature_request_scores`.

    Returns:
        :class:`TopK` of scores ``[R, k]`` float32 and positions ``[R, k]`` int64.

    Raises:
        ValueError: bad input; the message names it.
    """
    inputs, op = (*user, *item, offsets, *_lists(tables), user_features), OPS["feature_request_topk"]
    options = _options("feature_request_topk", tables, user_value_weights, item_value_weights)
    return TopK(*op.towers(inputs, packed, plan, fusion_weights, fusion, weights_per, k, options=options))


def _lists(tables: FeatureTables) -> tuple[list[Tensor], list[Tensor], list[int]]:
    return list(tables.tables), list(tables.scales), list(tables.ragged)


def _options(op: str, tables: FeatureTables, *value_weights: Tensor | None) -> tuple[Any, ...]:
    """What follows at the end of the op's schema."""
    return (*value_weights, pooling_codes(op, tables.pooling), list(tables.padding))


def pooling_codes(op: str, names: Sequence[str]) -> list[int]:
    """The codes of ways of pooling.

    Raises:
        ValueError: an unknown name.
    """
    for at, name in enumerate(names):
        checks.name_of(op, f"pooling[{at}]", name, POOLING)
    return [POOLING.index(name) for name in names]
