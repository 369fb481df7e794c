"""The feature form's ops: embedding tables looked up and pooled in front of the towers; see :mod:`resflow_kernels.ops`.

A model's tables (:class:`FeatureTables`) are the same in every call; the rows that candidates look up are a
:class:`FeatureIds`. The pooled row is never in memory: a tile of candidates is pooled into cache while the table rows
of the next tile are prefetched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..contract.results import Scores, TopK
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
    ragged: Sequence[int] = ()  # ascending indices of the tables whose features are lists of ids, which are summed

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
) -> Scores:
    """Form 4: score candidates given by feature ids.

    A candidate's input row consists of one row per feature: its row of the table or, for a ragged feature, the sum of
    its rows in the order of the list (zeros for an empty list), in float32. Results are bitwise those of
    :func:`~resflow_kernels.ops.dense_scores` for that row.

    Args:
        ids: the ids of ``B`` candidates.
        tables: the embedding tables; their widths add up to the plan's input row.
        packed: from :func:`~resflow_kernels.ops.pack_towers`.
        plan: the plan it was packed for.
        fusion_weights: ``[K]``, or ``[B, K]`` per candidate (``K + 1`` for expected values), float32.
        fusion: ``"additive"``, ``"multiplicative"`` or ``"expected_value"``.
        weights_per: ``"call"`` or ``"candidate"``.

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
    inputs = (*ids, *_lists(tables))
    return Scores(*OPS["feature_scores"].towers(inputs, packed, plan, fusion_weights, fusion, weights_per))


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
) -> TopK:
    """The ``k`` best candidates of each request of form 4; ``offsets [R + 1]`` int64 divides them into requests.

    Arguments are those of :func:`feature_scores`.

    Returns:
        :class:`TopK` of scores ``[R, k]`` float32 and positions ``[R, k]`` int64.

    Raises:
        ValueError: bad input; the message names it.
    """
    inputs = (*ids, *_lists(tables), offsets)
    return TopK(*OPS["feature_topk"].towers(inputs, packed, plan, fusion_weights, fusion, weights_per, k))


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

    Returns:
        :class:`Scores` of the ``N`` candidates.

    Raises:
        ValueError: bad input; the message names it.
    """
    inputs = (*user, *item, offsets, *_lists(tables), user_features)
    return Scores(*OPS["feature_request_scores"].towers(inputs, packed, plan, fusion_weights, fusion, weights_per))


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
) -> TopK:
    """The ``k`` best candidates of each request of :func:`feature_request_scores`.

    Arguments are those of :func:`feature_request_scores`.

    Returns:
        :class:`TopK` of scores ``[R, k]`` float32 and positions ``[R, k]`` int64.

    Raises:
        ValueError: bad input; the message names it.
    """
    inputs = (*user, *item, offsets, *_lists(tables), user_features)
    return TopK(*OPS["feature_request_topk"].towers(inputs, packed, plan, fusion_weights, fusion, weights_per, k))


def _lists(tables: FeatureTables) -> tuple[list[Tensor], list[Tensor], list[int]]:
    return list(tables.tables), list(tables.scales), list(tables.ragged)
