"""The feature form's ops: embedding tables looked up and pooled in front of the towers; see :mod:`.ops`.

A model's tables (:class:`FeatureTables`) stay the same from call to call; what candidates look up in them is a
:class:`FeatureIds`. The row of features is never in memory: a tile of candidates is pooled into cache, while the table
rows of the next tile are fetched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core import checks
from ..core.outputs import empty_scores, empty_topk
from ..core.plan import Plan
from ..reference import Scores, TopK
from . import library

library.load()
_ops = torch.ops.resflow


class FeatureIds(NamedTuple):
    """Rows of the tables that ``n`` candidates (or users) look up.

    The layout of lists is that of TorchRec's ``KeyedJaggedTensor``: those of the first ragged feature, candidate
    after candidate, then those of the next.
    """

    ids: Tensor  # [n, features of one id] int64, any strides
    values: Tensor  # [total] int64: the lists of the ragged features one after another
    value_offsets: Tensor  # [ragged features * n + 1] int64: list i is values[value_offsets[i] : value_offsets[i + 1]]


class FeatureTables(NamedTuple):
    """Embedding tables, in the order of the input row's columns; one may stand for several features."""

    tables: Sequence[Tensor]  # [rows, width] float32, bfloat16 or int8, rows contiguous
    scales: Sequence[Tensor] = ()  # float32 [rows] for each int8 table: what its rows are multiplied by
    ragged: Sequence[int] = ()  # ascending places of the tables whose features are lists of ids, summed

    @property
    def width(self) -> int:
        """Columns of the input row they make."""
        return sum(table.shape[1] for table in self.tables)


# So that an exported program can say what it takes, and be loaded with its example without unpickling at large.
torch.utils._pytree._register_namedtuple(FeatureIds, serialized_type_name="resflow_kernels.FeatureIds")
torch.serialization.add_safe_globals([FeatureIds])


def one_id_each(ids: Tensor) -> FeatureIds:
    """``ids [n, features]`` without ragged features."""
    return FeatureIds(ids, ids.new_empty((0,)), ids.new_zeros((1,)))


def feature_scores(
    ids: FeatureIds,
    tables: FeatureTables,
    packed: Tensor,
    plan: Plan,
    fusion_weights: Tensor,
    fusion: int = 0,
    weights_per: int = 0,
) -> Scores:
    """Form 4: score candidates given by feature ids.

    A candidate's input row is, feature by feature, its row of the table, or in a ragged feature the sum of its rows
    (zeros for none), in float32 and in the order of the list. To the bit what :func:`~resflow_kernels.ops.dense_scores`
    gives for that row.

    Args:
        ids: of ``B`` candidates.
        tables: whose widths add up to the plan's input row.
        packed: from :func:`~resflow_kernels.ops.pack_towers`.
        plan: the plan it was packed for.
        fusion_weights: ``[K]``, or ``[B, K]`` for ``weights_per=2`` (``K + 1`` for expected values), float32.
        fusion: place in ``contract.FUSIONS``.
        weights_per: place in ``contract.WEIGHTS_PER``.

    Returns:
        :class:`Scores` of the ``B`` candidates.

    Raises:
        ValueError: bad input, an id out of range among it; the message names it.

    Example:
        >>> ids = ops.one_id_each(torch.tensor([[3, 0], [9, 1]]))
        >>> tables = ops.FeatureTables([torch.randn(10, 4), torch.randn(2, 2)])
        >>> ops.feature_scores(ids, tables, packed, plan, torch.ones(2)).score.shape  # of a Plan(6)
        torch.Size([2])
    """
    _no_grad("feature_scores", tables, fusion_weights)
    settings = (packed, fusion_weights, plan.encoded, fusion, weights_per)
    return Scores(*_ops.feature_scores(*ids, *_lists(tables), *settings))


def feature_topk(
    ids: FeatureIds,
    offsets: Tensor,
    tables: FeatureTables,
    packed: Tensor,
    plan: Plan,
    fusion_weights: Tensor,
    fusion: int = 0,
    weights_per: int = 0,
    k: int = 100,
) -> TopK:
    """The ``k`` best candidates of each request of form 4; ``offsets [R + 1]`` int64 cuts them into requests.

    Arguments as in :func:`feature_scores`.

    Returns:
        :class:`TopK` of scores ``[R, k]`` float32 and positions ``[R, k]`` int64.

    Raises:
        ValueError: bad input; the message names it.
    """
    _no_grad("feature_topk", tables, fusion_weights)
    settings = (packed, fusion_weights, plan.encoded, fusion, weights_per, k)
    return TopK(*_ops.feature_topk(*ids, *_lists(tables), offsets, *settings))


def feature_request_scores(
    user: FeatureIds,
    item: FeatureIds,
    offsets: Tensor,
    tables: FeatureTables,
    user_features: int,
    packed: Tensor,
    plan: Plan,
    fusion_weights: Tensor,
    fusion: int = 0,
    weights_per: int = 0,
) -> Scores:
    """Form 4 in front of form 2: the first ``user_features`` tables are looked up and multiplied once a request.

    Args:
        user: of ``R`` requests, in the first ``user_features`` tables.
        item: of ``N`` candidates, the candidates of all requests one after another, in the other tables.
        offsets: ``[R + 1]`` int64; request ``r`` owns candidates ``offsets[r]`` to ``offsets[r + 1]``.
        tables: the user's, then the items'.
        user_features: how many of them are the user's.
        packed: from :func:`~resflow_kernels.ops.pack_towers`.
        plan: the plan it was packed for.
        fusion_weights: ``[K]``, ``[R, K]`` or ``[N, K]`` float32 as ``weights_per`` says.
        fusion: place in ``contract.FUSIONS``.
        weights_per: place in ``contract.WEIGHTS_PER``.

    Returns:
        :class:`Scores` of the ``N`` candidates.

    Raises:
        ValueError: bad input; the message names it.
    """
    _no_grad("feature_request_scores", tables, fusion_weights)
    settings = (packed, fusion_weights, plan.encoded, fusion, weights_per)
    inputs = (*user, *item, offsets, *_lists(tables), user_features)
    return Scores(*_ops.feature_request_scores(*inputs, *settings))


def feature_request_topk(
    user: FeatureIds,
    item: FeatureIds,
    offsets: Tensor,
    tables: FeatureTables,
    user_features: int,
    packed: Tensor,
    plan: Plan,
    fusion_weights: Tensor,
    fusion: int = 0,
    weights_per: int = 0,
    k: int = 100,
) -> TopK:
    """The ``k`` best candidates of each request of :func:`feature_request_scores`.

    Arguments as in :func:`feature_request_scores`.

    Returns:
        :class:`TopK` of scores ``[R, k]`` float32 and positions ``[R, k]`` int64.

    Raises:
        ValueError: bad input; the message names it.
    """
    _no_grad("feature_request_topk", tables, fusion_weights)
    settings = (packed, fusion_weights, plan.encoded, fusion, weights_per, k)
    inputs = (*user, *item, offsets, *_lists(tables), user_features)
    return TopK(*_ops.feature_request_topk(*inputs, *settings))


def _no_grad(op: str, tables: FeatureTables, fusion_weights: Tensor) -> None:
    if torch.is_grad_enabled():
        checks.no_grad(op, fusion_weights=fusion_weights)
        for at, table in enumerate(tables.tables):
            checks.no_grad(op, **{f"tables[{at}]": table})


def _lists(tables: FeatureTables) -> tuple[list[Tensor], list[Tensor], list[int]]:
    return list(tables.tables), list(tables.scales), list(tables.ragged)


# Shapes for tracing, and the checks that need no data.


def _check_dense(
    op: str,
    ids: FeatureIds,
    offsets: Tensor | None,
    tables: FeatureTables,
    fusion_weights: Tensor,
    plan: Plan,
    fusion: int,
    weights_per: int,
) -> None:
    checks.feature_tables(op, tables.tables, tables.scales, tables.ragged, plan)
    lists = len(tables.ragged)
    checks.feature_ids(op, "", *ids, len(tables.tables) - lists, lists)
    if offsets is not None:
        checks.offsets(op, offsets, None)
    requests = None if offsets is None else offsets.shape[0] - 1
    checks.fusion(op, fusion_weights, fusion, weights_per, plan.tasks, ids.ids.shape[0], requests, torch.float32)


def _check_request(
    op: str,
    user: FeatureIds,
    item: FeatureIds,
    offsets: Tensor,
    tables: FeatureTables,
    user_features: int,
    fusion_weights: Tensor,
    plan: Plan,
    fusion: int,
    weights_per: int,
) -> None:
    checks.feature_tables(op, tables.tables, tables.scales, tables.ragged, plan)
    count = len(tables.tables)
    checks.user_features(op, user_features, count)
    lists = sum(at < user_features for at in tables.ragged)
    checks.feature_ids(op, "user_", *user, user_features - lists, lists)
    lists = len(tables.ragged) - lists
    checks.feature_ids(op, "item_", *item, count - user_features - lists, lists)
    requests, candidates = user.ids.shape[0], item.ids.shape[0]
    checks.offsets(op, offsets, requests)
    checks.fusion(op, fusion_weights, fusion, weights_per, plan.tasks, candidates, requests, torch.float32)


def _fake_feature_scores(
    ids: Tensor,
    values: Tensor,
    value_offsets: Tensor,
    tables: list[Tensor],
    scales: list[Tensor],
    ragged: list[int],
    packed: Tensor,
    fusion_weights: Tensor,
    plan: list[int],
    fusion: int,
    weights_per: int,
) -> tuple[Tensor, Tensor, Tensor]:
    decoded, looked_up = Plan.decode(plan), FeatureIds(ids, values, value_offsets)
    all_tables = FeatureTables(tables, scales, ragged)
    _check_dense("feature_scores", looked_up, None, all_tables, fusion_weights, decoded, fusion, weights_per)
    checks.precision("feature_scores", decoded, packed)
    return empty_scores(ids, ids.shape[0], decoded.tasks)


def _fake_feature_topk(
    ids: Tensor,
    values: Tensor,
    value_offsets: Tensor,
    tables: list[Tensor],
    scales: list[Tensor],
    ragged: list[int],
    offsets: Tensor,
    packed: Tensor,
    fusion_weights: Tensor,
    plan: list[int],
    fusion: int,
    weights_per: int,
    k: int,
) -> tuple[Tensor, Tensor]:
    decoded, looked_up = Plan.decode(plan), FeatureIds(ids, values, value_offsets)
    all_tables = FeatureTables(tables, scales, ragged)
    _check_dense("feature_topk", looked_up, offsets, all_tables, fusion_weights, decoded, fusion, weights_per)
    checks.precision("feature_topk", decoded, packed)
    checks.positive("feature_topk", "k", k)
    return empty_topk(ids, offsets.shape[0] - 1, k)


def _fake_request(op: str, arguments: tuple[Any, ...]) -> tuple[Plan, Tensor, Tensor]:
    """The checks that both request ops make of what they have in common; the plan, user ids and item ids."""
    user, item, offsets = FeatureIds(*arguments[:3]), FeatureIds(*arguments[3:6]), arguments[6]
    tables, user_features = FeatureTables(*arguments[7:10]), arguments[10]
    packed, fusion_weights, plan, fusion, weights_per = arguments[11:]
    decoded = Plan.decode(plan)
    _check_request(op, user, item, offsets, tables, user_features, fusion_weights, decoded, fusion, weights_per)
    checks.precision(op, decoded, packed)
    return decoded, user.ids, item.ids


def _fake_feature_request_scores(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    plan, _, item = _fake_request("feature_request_scores", arguments)
    return empty_scores(item, item.shape[0], plan.tasks)


def _fake_feature_request_topk(*arguments: Any) -> tuple[Tensor, Tensor]:
    *common, k = arguments
    _, user, _ = _fake_request("feature_request_topk", tuple(common))
    checks.positive("feature_request_topk", "k", k)
    return empty_topk(user, user.shape[0], k)


FAKES: dict[str, Callable[..., Any]] = {
    "feature_scores": _fake_feature_scores,
    "feature_topk": _fake_feature_topk,
    "feature_request_scores": _fake_feature_request_scores,
    "feature_request_topk": _fake_feature_request_topk,
}
