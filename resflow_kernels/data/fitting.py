"""Statistics that a feature is fitted to, block by block: counts of ids, or a bounded sample of numbers.

Blocks may come from files larger than memory. Memory use grows with the number of distinct ids, not with the rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from . import columns

SAMPLE = 1 << 20  # numbers from which quantiles are taken: their rank error is below 0.2 % (four standard deviations)


class Learner(Protocol):
    """Learns from a column's blocks, one after another."""

    def add(self, column: pa.ChunkedArray) -> None:
        """Learn from a block."""

    def result(self) -> Any:
        """The vocabulary or the boundaries, from all blocks."""


class IdCounts:
    """Ids seen at least ``min_count`` times, in ascending order: an int64 array or a tuple of strings."""

    def __init__(self, name: str, ragged: bool, min_count: int) -> None:
        self._name, self._ragged, self._min_count = name, ragged, min_count
        self._counted: pa.Table | None = None  # columns id and count, each id once
        self._waiting: list[pa.Table] = []  # like _counted, for blocks that are not merged yet

    def add(self, column: pa.ChunkedArray) -> None:
        """Count a block's ids."""
        ids = columns.flat_ids(self._name, column, self._ragged)
        values, counts = pc.value_counts(ids).flatten()
        known = pc.is_valid(values)
        if not pa.types.is_null(values.type):
            self._waiting.append(pa.table({"id": values.filter(known), "count": counts.filter(known)}))
        size = 0 if self._counted is None else self._counted.num_rows
        if sum(block.num_rows for block in self._waiting) > max(size, 1 << 16):  # keeps the cost of merging linear
            self._add_up()

    def result(self) -> Any:
        """The vocabulary of all blocks."""
        self._add_up()
        if self._counted is None:
            return np.zeros(0, np.int64)
        ids = self._counted.filter(pc.greater_equal(self._counted["count"], self._min_count))["id"]
        if pa.types.is_large_string(ids.type):
            return tuple(sorted(ids.to_pylist()))
        return np.sort(ids.to_numpy())

    def _add_up(self) -> None:
        blocks = self._waiting if self._counted is None else [self._counted, *self._waiting]
        kinds = {block.schema.field("id").type for block in blocks}
        if len(kinds) > 1:
            raise ValueError(f"column {self._name!r} must be of one type in all blocks, got strings and integers")
        if self._waiting:
            grouped = pa.concat_tables(blocks).group_by("id", use_threads=False).aggregate([("count", "sum")])
            self._counted = grouped.select(["id", "count_sum"]).rename_columns(["id", "count"])
            self._waiting = []


class Quantiles:
    """Boundaries that divide a column's finite numbers into at most ``buckets`` buckets of about equal size.

    More than ``sample`` numbers are represented by a random sample, the same however they are divided into blocks.
    """

    def __init__(self, name: str, buckets: int, sample: int | None) -> None:
        self._name, self._buckets, self._sample = name, buckets, sample
        self._draws = np.random.default_rng([2411, 9705])  # a seed that no data is likely to be drawn with
        self._values, self._keys = np.zeros(0), np.zeros(0)
        self._least = np.inf

    def add(self, column: pa.ChunkedArray) -> None:
        """Sample a block's numbers."""
        values = columns.numbers(self._name, column)
        values = values[np.isfinite(values)]
        self._least = min(self._least, values.min(initial=np.inf))
        self._values = np.append(self._values, values)
        if self._sample is None:
            return
        # The numbers with the smallest random keys are a sample without replacement.
        self._keys = np.append(self._keys, self._draws.random(len(values)))
        if len(self._keys) > self._sample:
            kept = np.argpartition(self._keys, self._sample - 1)[: self._sample]
            self._values, self._keys = self._values[kept], self._keys[kept]

    def result(self) -> NDArray[np.float64]:
        """The boundaries of all blocks."""
        if not len(self._values):
            return np.zeros(0)
        cuts = np.unique(np.quantile(self._values, np.linspace(0, 1, self._buckets + 1)[1:-1]))
        return cuts[cuts > self._least]  # a boundary at the minimum would leave the first bucket empty


def is_table(source: pa.Table | Iterable[pa.Table]) -> bool:
    """Whether a source of rows is a single table in memory."""
    return isinstance(source, pa.Table)


def blocks(source: pa.Table | Iterable[pa.Table]) -> Iterable[pa.Table]:
    """A table as its only block; an iterable of blocks unchanged."""
    return [source] if is_table(source) else source
