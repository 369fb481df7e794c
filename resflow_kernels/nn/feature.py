"""Embedding tables in front of a ranker, as ``nn.Module``s: the feature form of :mod:`resflow_kernels.nn`.

:class:`FeatureRanker` trains like any PyTorch model and scores through the fused feature ops in eval mode;
:meth:`FeatureRanker.packed` returns the form to export and to serve, with tables in float32, bfloat16 or int8.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from .. import ops, reference
from ..contract import POOLING, TABLE_PRECISIONS
from ..core import checks
from ..ops import FeatureIds, FeatureTables
from ..reference import Scores, TopK
from .baselines import Baseline
from .packed import PackedResFlow
from .resflow import ResFlow


def round_table(table: Tensor, dtype: str) -> tuple[Tensor, Tensor | None]:
    """Round a float32 table ``[rows, width]`` for the feature ops.

    Args:
        table: float32.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"int8"`` (symmetric; a row's scale is its largest magnitude over 127).

    Returns:
        The rounded table and, in int8, its scales ``[rows]`` float32, else ``None``. In int8 a row with a NaN or an
        infinity has the scale NaN.

    Raises:
        ValueError: an unknown dtype.
    """
    if dtype not in TABLE_PRECISIONS:
        raise ValueError(f"round_table: dtype must be one of {', '.join(TABLE_PRECISIONS)}, got {dtype!r}")
    if dtype != "int8":
        return table.detach().to(getattr(torch, dtype)), None
    return reference.int8_rows(table.detach().float())


class _Lists(NamedTuple):
    """The fields of :class:`FeatureTables` after the tensors."""

    ragged: tuple[int, ...]
    pooling: tuple[str, ...]
    padding: tuple[int, ...]


class _FeatureScorer(nn.Module, ABC):
    """The calls that :class:`FeatureRanker` and :class:`PackedFeatureRanker` share."""

    towers: ResFlow | Baseline | PackedResFlow
    user_features: int

    @property
    @abstractmethod
    def feature_tables(self) -> FeatureTables:
        """The tables as passed to the ops."""

    @abstractmethod
    def _fused_weights(self) -> Tensor | None:
        """The towers' packed weights, or ``None`` if plain PyTorch has to score."""

    def forward(
        self,
        ids: FeatureIds,
        fusion_weights: Tensor | None = None,
        weights_per: str = "call",
        value_weights: Tensor | None = None,
    ) -> Scores:
        """Score ``B`` candidates.

        Args:
            ids: the rows of the tables that the candidates look up.
            fusion_weights: for this call, as in :meth:`ResFlow.forward`.
            weights_per: ``"call"`` or ``"candidate"``.
            value_weights: float32, one for each of the ids' ``values``: factors of their rows.

        Returns:
            :class:`Scores`: logits ``[B, K]``, probs ``[B, K]``, score ``[B]``.

        Raises:
            ValueError: bad input, such as an id out of range; the message names it.
        """
        packed = self._fused_weights()
        if packed is None:
            return cast(Scores, self.towers(self.rows(ids, value_weights), fusion_weights, weights_per))
        inputs = (ids, self.feature_tables, packed, self.towers.served_plan)
        fusion = self.towers._fusion(fusion_weights, weights_per)
        return ops.feature_scores(*inputs, *fusion, value_weights=value_weights)

    feature_scores = forward

    def feature_request_scores(
        self,
        user: FeatureIds,
        item: FeatureIds,
        offsets: Tensor,
        fusion_weights: Tensor | None = None,
        weights_per: str = "call",
        user_value_weights: Tensor | None = None,
        item_value_weights: Tensor | None = None,
    ) -> Scores:
        """Score the candidates of requests: the user's features are looked up once per request.

        Args:
            user: ids of ``R`` requests in the first ``user_features`` tables.
            item: ids of ``N`` candidates, concatenated over the requests, in the other tables.
            offsets: ``[R + 1]`` int64; request ``r`` owns candidates ``offsets[r]`` to ``offsets[r + 1]``.
            fusion_weights: as in :meth:`ResFlow.request_scores`.
            weights_per: likewise.
            user_value_weights, item_value_weights: as ``value_weights`` of :meth:`forward`.
        """
        packed = self._fused_weights()
        if packed is None:
            rows = self._split_rows(user, item, user_value_weights, item_value_weights)
            return self.towers.request_scores(*rows, offsets, fusion_weights, weights_per)
        fusion = self.towers._fusion(fusion_weights, weights_per)
        inputs = (user, item, offsets, self.feature_tables, self.user_features, packed, self.towers.served_plan)
        return ops.feature_request_scores(*inputs, *fusion, user_value_weights, item_value_weights)

    def feature_topk(
        self,
        ids: FeatureIds,
        k: int,
        offsets: Tensor | None = None,
        fusion_weights: Tensor | None = None,
        weights_per: str = "call",
        value_weights: Tensor | None = None,
    ) -> TopK:
        """The ``k`` best candidates of each request, see :meth:`ResFlow.dense_topk`; no offsets: of one request."""
        packed = self._fused_weights()
        if packed is None:
            return self.towers.dense_topk(self.rows(ids, value_weights), k, offsets, fusion_weights, weights_per)
        if offsets is None:
            offsets = torch.tensor([0, ids.ids.shape[0]], dtype=torch.int64)
        fusion = self.towers._fusion(fusion_weights, weights_per)
        inputs = (ids, offsets, self.feature_tables, packed, self.towers.served_plan)
        return ops.feature_topk(*inputs, *fusion, k, value_weights=value_weights)

    def feature_request_topk(
        self,
        user: FeatureIds,
        item: FeatureIds,
        offsets: Tensor,
        k: int,
        fusion_weights: Tensor | None = None,
        weights_per: str = "call",
        user_value_weights: Tensor | None = None,
        item_value_weights: Tensor | None = None,
    ) -> TopK:
        """:meth:`feature_topk` of requests; arguments as in :meth:`feature_request_scores`."""
        packed = self._fused_weights()
        if packed is None:
            rows = self._split_rows(user, item, user_value_weights, item_value_weights)
            return self.towers.request_topk(*rows, offsets, k, fusion_weights, weights_per)
        fusion = self.towers._fusion(fusion_weights, weights_per)
        inputs = (user, item, offsets, self.feature_tables, self.user_features, packed, self.towers.served_plan)
        return ops.feature_request_topk(*inputs, *fusion, k, user_value_weights, item_value_weights)

    def rows(self, ids: FeatureIds, value_weights: Tensor | None = None) -> Tensor:
        """Input rows ``[n, D]`` in plain PyTorch, differentiable in the tables and the weights."""
        return self._part(ids, value_weights, "", 0, len(self.feature_tables.tables))

    def _split_rows(
        self, user: FeatureIds, item: FeatureIds, user_weights: Tensor | None, item_weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        users, count = self.user_features, len(self.feature_tables.tables)
        return self._part(user, user_weights, "user_", 0, users), self._part(item, item_weights, "item_", users, count)

    def _part(self, ids: FeatureIds, weights: Tensor | None, prefix: str, first: int, last: int) -> Tensor:
        """The columns of tables ``first`` to ``last``, with the ops' checks."""
        all_ = self.feature_tables
        own = all_.tables[first:last]
        lists = [at for at, table in enumerate(all_.ragged) if first <= table < last]
        places = [all_.ragged[at] - first for at in lists]
        op = "feature_request_scores" if prefix else "feature_scores"
        checks.feature_ids(op, prefix, *ids, weights, len(own) - len(places), len(places))
        checks.feature_id_values(op, prefix, *ids, own, places, first)
        if not own:
            return self.towers.fusion_weights.new_zeros((ids.ids.shape[0], 0))
        codes = ops.pooling_codes(op, all_.pooling)
        pooling, padding = ([each[at] for at in lists] if each else () for each in (codes, all_.padding))
        return reference.feature_rows(*ids, own, (), places, pooling, padding, weights)


class FeatureRanker(_FeatureScorer):
    """Embedding tables and a :class:`ResFlow` (or a baseline) over their concatenated rows.

    Args:
        embeddings: one per feature, in the order of the input row's columns: an ``nn.Embedding`` for a feature of one
            id, an ``nn.EmbeddingBag`` with ``mode="sum"`` or ``"mean"`` for lists of ids, of which those that are its
            ``padding_idx`` are left out. Several features may share one module.
        towers: a ranker whose input width is the sum of the tables' widths. Both are shared, not copied.
        user_features: number of user features, which come first.

    Raises:
        ValueError: an embedding that does more than look up and pool, or widths that do not add up.

    Example:
        >>> features = [nn.Embedding(1000, 32), nn.EmbeddingBag(500, 16, mode="sum")]
        >>> model = FeatureRanker(features, ResFlow(48)).eval()
        >>> ids = FeatureIds(torch.tensor([[7], [3]]), torch.tensor([1, 4, 4]), torch.tensor([0, 2, 3]))
        >>> with torch.inference_mode():
        ...     model(ids).score.shape
        torch.Size([2])
    """

    def __init__(
        self, embeddings: Sequence[nn.Embedding | nn.EmbeddingBag], towers: ResFlow | Baseline, user_features: int = 0
    ) -> None:
        super().__init__()
        for at, embedding in enumerate(embeddings):
            _check_embedding(at, embedding)
        self.embeddings = nn.ModuleList(embeddings)
        self.towers: ResFlow | Baseline = towers
        self.user_features = user_features
        bags = {at: one for at, one in enumerate(embeddings) if isinstance(one, nn.EmbeddingBag)}
        self.lists = _Lists(
            tuple(bags),
            tuple(bag.mode for bag in bags.values()),
            tuple(-1 if bag.padding_idx is None else bag.padding_idx for bag in bags.values()),
        )
        tables = self.feature_tables.tables
        columns, expected = self.feature_tables.width, towers.plan.in_features
        if columns != expected:
            raise ValueError(f"FeatureRanker: embeddings must be {expected} columns in all, got {columns}")
        checks.user_features("FeatureRanker", user_features, len(tables))

    @property
    def feature_tables(self) -> FeatureTables:
        """The embeddings' weights."""
        weights = [cast(Tensor, embedding.weight) for embedding in self.embeddings]
        return FeatureTables(weights, (), *self.lists)

    def packed(self, dtype: str = "float32") -> PackedFeatureRanker:
        """This model for serving and export: weights packed, tables copied and rounded to ``dtype``.

        Args:
            dtype: ``"float32"``, ``"bfloat16"`` or ``"int8"``; see :func:`round_table`.
        """
        rounded: dict[int, tuple[Tensor, Tensor | None]] = {}
        for table in self.feature_tables.tables:
            if id(table) not in rounded:  # features keep sharing tables
                held, own_scales = round_table(table, dtype)
                rounded[id(table)] = (held.clone(), own_scales)
        parts = [rounded[id(table)] for table in self.feature_tables.tables]
        scales = [one for _, one in parts if one is not None]
        tables = FeatureTables([held for held, _ in parts], scales, *self.lists)
        return PackedFeatureRanker(tables, self.towers.packed(), self.user_features).eval()

    def _fused_weights(self) -> Tensor | None:
        return self.towers._served_weights("feature", self.feature_tables.tables)


class PackedFeatureRanker(_FeatureScorer):
    """A ranker that consists of buffers, made by :meth:`FeatureRanker.packed`, with :class:`FeatureRanker`'s calls."""

    def __init__(self, tables: FeatureTables, towers: PackedResFlow, user_features: int) -> None:
        super().__init__()
        self.towers: PackedResFlow = towers
        self.user_features = user_features
        self.lists = _Lists(tuple(tables.ragged), tuple(tables.pooling), tuple(tables.padding))
        self._counts = (len(tables.tables), len(tables.scales))
        for name, tensors in (("table", tables.tables), ("scale", tables.scales)):
            for at, tensor in enumerate(tensors):
                self.register_buffer(f"{name}_{at}", tensor)

    @property
    def feature_tables(self) -> FeatureTables:
        """The buffers."""
        tables, scales = self._counts
        return FeatureTables(
            [self.get_buffer(f"table_{at}") for at in range(tables)],
            [self.get_buffer(f"scale_{at}") for at in range(scales)],
            *self.lists,
        )

    def _fused_weights(self) -> Tensor:
        return self.towers.packed_weights


def _check_embedding(at: int, embedding: nn.Module) -> None:
    argument = f"FeatureRanker: embeddings[{at}] must be"
    if not isinstance(embedding, nn.Embedding | nn.EmbeddingBag):
        raise ValueError(f"{argument} an nn.Embedding or an nn.EmbeddingBag, got {type(embedding).__name__}")
    if embedding.max_norm is not None:
        raise ValueError(f"{argument} without max_norm, got {embedding.max_norm}")
    if isinstance(embedding, nn.EmbeddingBag) and embedding.mode not in POOLING:
        raise ValueError(f"{argument} of mode {' or '.join(map(repr, POOLING))}, got {embedding.mode!r}")
