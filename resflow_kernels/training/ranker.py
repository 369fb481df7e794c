"""One embedding table per feature, concatenated, in front of any towers: the model that is trained and bundled.

:class:`FeatureModel` takes rows of a :class:`~resflow_kernels.data.features.FeatureSet` in one of two layouts: one
tensor per feature by name (:func:`encode_rows`, lists padded), or :class:`~resflow_kernels.ops.FeatureIds`
(:func:`encode_ids`, lists ragged), which suits lists of very different lengths.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..data import embedding
from ..data.features import Feature, FeatureSet
from ..ops import FeatureIds
from ..reference import Scores

if TYPE_CHECKING:
    import pyarrow as pa

Rows = Mapping[str, Tensor]

EMBEDDING_STD = 0.05  # of the initial vectors: small compared with the towers' first outputs


class FeatureModel(nn.Module):
    """Embedding tables of features, whose rows are concatenated, dropout, and towers that return :class:`Scores`.

    Args:
        features: the fitted features.
        towers: takes rows ``[B, D]`` with ``D = features.user_width + features.item_width`` and returns
            :class:`Scores`: :class:`~resflow_kernels.ResFlow`, or a baseline.
        dropout: share of the input row's elements dropped in training.
        embeddings: the tables by feature, as made by :func:`feature_embeddings` (e.g. before the towers, or trained
            elsewhere); ``None``: new ones.

    Raises:
        ValueError: features that are not fitted, towers of another width, embeddings that do not match the features.

    Example:
        >>> model = FeatureModel(features, ResFlow(features.user_width + features.item_width))  # doctest: +SKIP
        >>> logits, probs, score = model(encode_rows(features.all, table))                      # doctest: +SKIP
    """

    def __init__(
        self, features: FeatureSet, towers: nn.Module, dropout: float = 0.0, embeddings: nn.ModuleDict | None = None
    ) -> None:
        super().__init__()
        self.features = features
        self.embeddings = feature_embeddings(features) if embeddings is None else embeddings
        self.dropout = nn.Dropout(dropout)
        self.towers = towers
        self._check_fit()

    def forward(self, rows: Rows | FeatureIds) -> Scores:
        """Score candidates.

        Args:
            rows: rows of all features, as returned by :func:`encode_rows` or :func:`encode_ids`.

        Returns:
            :class:`Scores`: logits ``[B, K]``, probs ``[B, K]``, score ``[B]``.
        """
        return cast(Scores, self.towers(self.dropout(self.embed(rows))))

    def embed(self, rows: Rows | FeatureIds) -> Tensor:
        """The concatenated embeddings ``[B, width]`` of the given features, in the features' order."""
        if isinstance(rows, FeatureIds):
            return torch.cat(self._looked_up(rows), dim=1)
        known = [feature for feature in self.features.all if feature.name in rows]
        return torch.cat([self.embeddings[feature.name](rows[feature.name]) for feature in known], dim=1)

    def tables(self) -> dict[str, NDArray[np.float32]]:
        """Each feature's embedding table, float32 ``[V, dim]``, as stored in a bundle."""
        tables = {f.name: self._weight(f).detach()[: f.rows].cpu() for f in self.features.all}
        return {name: table.float().numpy() for name, table in tables.items()}

    @torch.inference_mode()
    def probabilities(self, batches: Iterable[Rows | FeatureIds]) -> Tensor:
        """Probabilities ``[n, K]`` of the candidates of all batches, in eval mode, on the CPU."""
        training = self.training
        self.eval()
        try:
            return torch.cat([self(rows).probs.cpu() for rows in batches])
        finally:
            self.train(training)

    def _looked_up(self, ids: FeatureIds) -> list[Tensor]:
        parts, singles, lists = [], 0, 0
        count = ids.ids.shape[0]
        for feature in self.features.all:
            if feature.kind == "ids":
                offsets = ids.value_offsets[lists * count : (lists + 1) * count + 1]
                values = ids.values[offsets[0] : offsets[-1]]
                weight = self._weight(feature)
                bags = offsets - offsets[0]
                parts.append(F.embedding_bag(values, weight, bags, mode=feature.pooling, include_last_offset=True))
                lists += 1
            else:
                parts.append(self.embeddings[feature.name](ids.ids[:, singles]))
                singles += 1
        return parts

    def _weight(self, feature: Feature) -> Tensor:
        return cast(Tensor, self.embeddings[feature.name].weight)

    def _check_fit(self) -> None:
        names = [feature.name for feature in self.features.all]
        if list(self.embeddings) != names:
            raise ValueError(
                f"FeatureModel: embeddings must be of {', '.join(names)}, got {', '.join(self.embeddings)}"
            )
        for feature in self.features.all:
            expected = (feature.rows + (feature.kind == "ids"), feature.dim)
            got = tuple(self._weight(feature).shape)
            if got != expected:
                raise ValueError(
                    f"FeatureModel: the embedding of {feature.name!r} must be {list(expected)}, got {list(got)}"
                )
        width = self.features.user_width + self.features.item_width
        towers_width = getattr(getattr(self.towers, "plan", self.towers), "in_features", width)
        if towers_width != width:
            raise ValueError(
                f"FeatureModel: towers must take rows {width} wide, as the features are, got {towers_width}"
            )


def feature_embeddings(features: FeatureSet, std: float = EMBEDDING_STD) -> nn.ModuleDict:
    """A table for each feature, with vectors drawn from a normal distribution.

    The table of a list feature has one more row than the feature: the padding, which adds nothing to the sum.
    """
    return nn.ModuleDict({feature.name: _embedding_of(feature, std) for feature in features.all})


def encode_rows(features: Sequence[Feature], table: pa.Table) -> dict[str, Tensor]:
    """A table's columns as row numbers of the embedding tables.

    Returns:
        By feature int64 ``[n]``, or for lists of ids ``[n, longest]``, padded with the table's padding row.

    Raises:
        ValueError: as :meth:`Feature.encode`.
    """
    return {feature.name: _padded(feature, feature.encode(table)) for feature in features}


def encode_ids(features: Sequence[Feature], table: pa.Table) -> FeatureIds:
    """A table's columns as :class:`FeatureIds`: single ids as columns, lists concatenated, without padding."""
    encoded = {feature.name: feature.encode(table) for feature in features}
    lists = {feature.name for feature in features if feature.kind == "ids"}
    ids, values, offsets = embedding.looked_up(encoded, [feature.name for feature in features], lists)
    return FeatureIds(torch.from_numpy(ids), torch.from_numpy(values), torch.from_numpy(offsets))


def _padded(feature: Feature, encoded: Any) -> Tensor:
    if feature.kind != "ids":
        return torch.from_numpy(encoded)
    values, offsets = encoded
    counts = np.diff(offsets)
    padded = np.full((len(counts), max(1, int(counts.max(initial=0)))), feature.rows, np.int64)
    padded[np.arange(padded.shape[1]) < counts[:, None]] = values
    return torch.from_numpy(padded)


def _embedding_of(feature: Feature, std: float) -> nn.Module:
    if feature.kind == "ids":
        rows, pooling = feature.rows, feature.pooling
        table: nn.Module = nn.EmbeddingBag(rows + 1, feature.dim, mode=pooling, padding_idx=rows)
    else:
        table = nn.Embedding(feature.rows, feature.dim)
    with torch.no_grad():
        cast(Tensor, table.weight)[: feature.rows].normal_(std=std)
    return table
