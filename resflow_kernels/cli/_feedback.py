"""Feedback on candidates for Weighted Recall@K: the file is read once and looked up per request."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..data.features import FeatureSet
from ..data.plain import named
from ..metrics import weighted_recall_of_ranking
from ._requests import Requests, read_table


class Feedback:
    """The labels' weights by request and item; the weights of rows of the same request and item are summed.

    Raises:
        ValueError: a column is missing, of a type that does not match the candidates', or a weight is null,
            negative or not finite.
    """

    def __init__(self, path: Path, features: FeatureSet, requests: Requests) -> None:
        table = read_table(path, [features.request_id, features.item_id, "weight"])
        self._requests = requests
        weights = _weights(path, table)
        item_ids = requests.items.column(features.item_id)
        names = pc.drop_null(item_ids.unique())
        self._item_codes = _codes(path, features.item_id, item_ids, names)
        items = _codes(path, features.item_id, table.column(features.item_id), names)
        owners = _codes(path, features.request_id, table.column(features.request_id), requests.ids)
        known = np.flatnonzero((items >= 0) & (owners >= 0))
        known = known[np.lexsort((items[known], owners[known]))]
        self._items, self._weights = items[known], weights[known]
        self._starts = np.searchsorted(owners[known], np.arange(len(requests) + 1))
        self._recalls: list[float] = []

    def add(self, request: int, positions: NDArray[np.int64]) -> None:
        """Add a request's ranking ``[k]`` to the mean."""
        start, stop = self._requests.span(request)
        weights = self.candidate_weights(request)
        recall = weighted_recall_of_ranking(positions[None], weights, [0, stop - start])
        if not np.isnan(recall):
            self._recalls.append(recall)

    def candidate_weights(self, request: int) -> NDArray[np.float64]:
        """The weight of each of a request's candidates, ``[n]``."""
        start, stop = self._requests.span(request)
        own = slice(self._starts[request], self._starts[request + 1])
        items, places = np.unique(self._items[own], return_inverse=True)
        weights = np.zeros(stop - start)
        if len(items):
            sums = np.bincount(places, self._weights[own])
            codes = self._item_codes[start:stop]
            at = np.minimum(np.searchsorted(items, codes), len(items) - 1)
            weights = np.where(items[at] == codes, sums[at], 0.0)
        return weights

    @property
    def recall(self) -> float:
        """The mean over the requests with feedback on at least one candidate; NaN if there are none."""
        return float(np.mean(self._recalls)) if self._recalls else float("nan")

    @property
    def requests_with_feedback(self) -> int:
        """Number of requests in the mean."""
        return len(self._recalls)


def _weights(path: Path, table: pa.Table) -> NDArray[np.float64]:
    column = table.column("weight")
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise ValueError(f"{path}: column 'weight' must be numbers, got {named(column.type)}")
    weights: NDArray[np.float64] = pc.fill_null(column.cast(pa.float64(), safe=False), np.nan).to_numpy()
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(bad):
        raise ValueError(f"{path}: column 'weight' must be finite and not negative, got {weights[bad[0]]}")
    return weights


def _codes(path: Path, name: str, column: pa.ChunkedArray, names: pa.Array) -> NDArray[np.int64]:
    """Each value's index in ``names``; -1 for other values."""
    try:
        places = pc.index_in(column.cast(names.type), value_set=names)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise ValueError(
            f"{path}: column {name!r} must be {named(names.type)} like the candidates', got {named(column.type)}"
        ) from None
    codes: NDArray[np.int64] = pc.fill_null(places, -1).to_numpy().astype(np.int64)
    return codes
