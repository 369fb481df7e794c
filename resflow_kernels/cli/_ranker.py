"""A scorer on embedded requests: the request form, or the catalog form where all requests rank the same items."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from ..core.plan import Plan
from ..serving.scorer import Floats, Scorer, Table, TopK
from ._requests import Embedded, Indices


class Ranker:
    """Ranks one request after another.

    Args:
        scorer: a scorer with features.
        is_catalog: whether all requests have the same items.
    """

    def __init__(self, scorer: Scorer, is_catalog: bool) -> None:
        self.scorer = scorer
        # In int8 a program's request form rounds whole rows, its catalog form the user's and the item's part.
        splits = isinstance(scorer.plan, Plan) or scorer.plan.precision != "int8"
        self._is_catalog = is_catalog and splits
        self._table: Table | None = None

    def best(self, request: Embedded, k: int) -> TopK:
        """The ``k`` best of a request's items; rows are padded as in :meth:`Scorer.dense_topk` if there are fewer."""
        if self._is_catalog:
            return self.scorer.catalog_topk(request.user, self._all, [0, len(request.item)], self._rows(request), k)
        if len(request.user) != 1:
            return self.scorer.dense_topk(np.concatenate((request.user, request.item), axis=1), k)
        return self.scorer.request_topk(request.user, request.item, [0, len(request.item)], k)

    def probabilities(self, request: Embedded, positions: Indices) -> Floats:
        """Probabilities ``[n, K]`` of some of a request's items, bitwise those that ranked them."""
        offsets = [0, len(positions)]
        if self._is_catalog:
            return self.scorer.catalog_scores(request.user, positions, offsets, self._rows(request)).probs
        if len(request.user) != 1:
            rows = np.concatenate((request.user[positions], request.item[positions]), axis=1)
            return self.scorer.dense_scores(rows).probs
        return self.scorer.request_scores(request.user, request.item[positions], offsets).probs

    def prepare(self, request: Embedded) -> None:
        """Compute what all requests share, so that it is not counted as the time of any one."""
        if self._is_catalog:
            self._rows(request)

    def _rows(self, request: Embedded) -> Table:
        if self._table is None:
            # float32 rows: a single catalog's are small, and the ranking is that of the request form except for ties.
            self._table = self.scorer.catalog_rows(request.item, "float32")
        return self._table

    @cached_property
    def _all(self) -> Indices:
        assert self._table is not None
        return np.arange(len(self._table.rows))
