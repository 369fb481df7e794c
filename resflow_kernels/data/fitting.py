"""What a feature learns of a column, block by block: counts of ids, a bounded sample of numbers.

Blocks may come from files larger than memory. What is kept grows with the number of different ids, not with the rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from . import columns

SAMPLE = 1 << 20  # numbers a quantile is taken of: its rank is then off by less than 0.2 % (four standard deviations)


class Learner(Protocol):
    """Takes in a column's blocks one after another."""

    def add(self, column: pa.ChunkedArray) -> None:
        """Take in a block."""

    def result(self) -> Any:
        """The vocabulary or the boundaries of all blocks."""


class IdCounts:
    """Ids seen at least ``min_count`` times, ascending: an int64 array or a tuple of strings."""

    def __init__(self, name: str, ragged: bool, min_count: int) -> None:
        self._name, self._ragged, self._min_count = name, ragged, min_count
        self._counted: pa.Table | None = None  # columns id, count; ids once
        self._waiting: list[pa.Table] = []  # the same of blocks, not added up yet

    def add(self, column: pa.ChunkedArray) -> None:
        """Take in a block."""
        ids = columns.flat_ids(self._name, column, self._ragged)
        values, counts = pc.value_counts(ids).flatten()
        known = pc.is_valid(values)
        if not pa.types.is_null(values.type):
            self._waiting.append(pa.table({"id": values.filter(known), "count": counts.filter(known)}))
        size = 0 if self._counted is None else self._counted.num_rows
        if sum(block.num_rows for block in self._waiting) > max(size, 1 << 16):  # adding up stays linear in all
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
    """Cuts that split a column's finite numbers into at most ``buckets`` of about equal size.

    Of more than ``sample`` numbers a random sample stands for all, the same however they are cut into blocks.
    """

    def __init__(self, name: str, buckets: int, sample: int | None) -> None:
        self._name, self._buckets, self._sample = name, buckets, sample
        self._draws = np.random.default_rng([2411, 9705])  # a seed that no data is likely to be drawn with
        self._values, self._keys = np.zeros(0), np.zeros(0)
        self._least = np.inf

    def add(self, column: pa.ChunkedArray) -> None:
        """Take in a block."""
        values = columns.numbers(self._name, column)
        values = values[np.isfinite(values)]
        self._least = min(self._least, values.min(initial=np.inf))
        self._values = np.append(self._values, values)
        if self._sample is None:
            return
        # Those of the smallest random keys are a sample without replacement.
        self._keys = np.append(self._keys, self._draws.random(len(values)))
        if len(self._keys) > self._sample:
            kept = np.argpartition(self._keys, self._sample - 1)[: self._sample]
            self._values, self._keys = self._values[kept], self._keys[kept]

    def result(self) -> NDArray[np.float64]:
        """The boundaries of all blocks."""
        if not len(self._values):
            return np.zeros(0)
        cuts = np.unique(np.quantile(self._values, np.linspace(0, 1, self._buckets + 1)[1:-1]))
        return cuts[cuts > self._least]  # a cut at the minimum would leave an empty first bucket


def is_table(source: pa.Table | Iterable[pa.Table]) -> bool:
    """Whether a source of rows is one table in memory."""
    return isinstance(source, pa.Table)


def blocks(source: pa.Table | Iterable[pa.Table]) -> Iterable[pa.Table]:
    """A table as its only block, or blocks as they are."""
    return [source] if is_table(source) else source
