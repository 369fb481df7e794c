"""Turns encoded columns into embeddings: gathers and pools, in NumPy.

A column is encoded as int64 row numbers ``[n]`` of its table, or, if a row has a list, as values ``[total]`` and
offsets ``[n + 1]``: row ``r`` owns ``values[offsets[r] : offsets[r + 1]]``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Ragged = tuple[Indices, Indices]
Encoded = dict[str, Indices | Ragged]

_POOLED_ROWS = 8192  # rows pooled at once: bounds the gathered vectors of a long ragged column


def row_count(encoded: Encoded) -> int:
    """``n``, the number of rows that all encoded columns have."""
    lengths = {name: len(v[1]) - 1 if isinstance(v, tuple) else len(v) for name, v in encoded.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"embed: encoded must be columns of one length, got {lengths}")
    return next(iter(lengths.values()))


def looked_up(encoded: Encoded, names: Sequence[str], ragged: Collection[str]) -> tuple[Indices, Indices, Indices]:
    """Columns as the feature ops take them: ids ``[n, columns]``, the lists' values, and their offsets.

    Args:
        encoded: at least the columns ``names``.
        names: in the order of the tables.
        ragged: those of them that are lists.
    """
    for name in names:
        _check_kind(name, encoded[name], name in ragged)
    rows = row_count({name: encoded[name] for name in names})
    singles = [cast(Indices, encoded[name]) for name in names if name not in ragged]
    lists = [cast(Ragged, encoded[name]) for name in names if name in ragged]
    ids = np.stack(singles).T if singles else np.empty((rows, 0), np.int64)
    none = np.empty(0, np.int64)
    counts = np.concatenate([none, *(np.diff(offsets) for _, offsets in lists)])
    return ids, np.concatenate([none, *(values for values, _ in lists)]), np.append(0, counts.cumsum())


def rows_of(encoded: Encoded, start: int, stop: int) -> Encoded:
    """Rows ``start`` to ``stop`` of encoded columns, without copying their values."""

    def cut(column: Indices | Ragged) -> Indices | Ragged:
        if not isinstance(column, tuple):
            return column[start:stop]
        values, offsets = column
        first, last = offsets[start], offsets[stop]
        return values[first:last], offsets[start : stop + 1] - first

    return {name: cut(column) for name, column in encoded.items()}


def gather(
    name: str, column: Indices | Ragged, table: NDArray[np.float32], out: NDArray[np.float32], pooling: str | None
) -> None:
    """Fill ``out [n, dim]`` with a column's rows of ``table [V, dim]``; lists become the sum or the mean of theirs."""
    _check_kind(name, column, pooling is not None)
    indices = column[0] if isinstance(column, tuple) else column
    if len(indices):
        low, high = int(indices.min()), int(indices.max())
        if low < 0 or high >= len(table):
            raise ValueError(f"embed: {name} must be indices of 0 to {len(table) - 1}, got {low} to {high}")
    if not isinstance(column, tuple):
        out[:] = table[column]
        return
    for start in range(0, len(out), _POOLED_ROWS):
        stop = min(start + _POOLED_ROWS, len(out))
        offsets = column[1][start : stop + 1]
        _pool(column[0], offsets, table, out[start:stop])
        if pooling == "mean":
            out[start:stop] /= np.maximum(np.diff(offsets), 1).astype(np.float32)[:, None]


def _check_kind(name: str, column: Indices | Ragged, ragged: bool) -> None:
    if isinstance(column, tuple) != ragged:
        expected = "values and offsets" if ragged else "one index a row"
        raise ValueError(f"embed: {name} must be encoded as {expected}, got {type(column).__name__}")


def _pool(values: Indices, offsets: Indices, table: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """Sum each row's vectors into ``out``; an empty row is zeros."""
    out[:] = 0
    filled = np.flatnonzero(np.diff(offsets))  # reduceat would give an empty row its successor's first vector
    if len(filled):
        vectors = table[values[offsets[0] : offsets[-1]]]
        out[filled] = np.add.reduceat(vectors, offsets[filled] - offsets[0], axis=0)
