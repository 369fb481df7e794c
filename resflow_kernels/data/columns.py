"""Converts Arrow columns to numbers: the part of :mod:`resflow_kernels.data.features` that needs pyarrow.

Columns are processed chunk by chunk, so no chunked column is first joined into one array.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from . import plain

Indices = NDArray[np.int64]


def of_table(table: pa.Table, name: str) -> pa.ChunkedArray:
    """The column called ``name``, in its plain type.

    Raises:
        ValueError: there is none, or more than one, or it has no plain type (:mod:`.plain`).
    """
    places = table.schema.get_all_field_indices(name)
    if len(places) != 1:
        got = f"columns {', '.join(table.column_names)}" if not places else f"{len(places)} of that name"
        raise ValueError(f"column {name!r} must be in the table, got {got}")
    return plain.column(name, table.column(places[0]))


def looked_up(name: str, column: pa.ChunkedArray, vocabulary: Any, ragged: bool) -> Any:
    """Row numbers of ids: index in the vocabulary + 1, or 0 if unknown; for lists, values and offsets."""
    expected = "string" if isinstance(vocabulary, tuple) else "integer"
    flat = flat_ids(name, column, ragged, expected)
    find = _find_string(vocabulary) if isinstance(vocabulary, tuple) else _find_integer(vocabulary)
    if pa.types.is_null(flat.type):
        rows = np.zeros(len(flat), np.int64)
    else:
        rows = _joined([find(chunk) for chunk in flat.chunks])
    if not ragged:
        return rows
    if pa.types.is_null(column.type):
        return rows[:0], np.zeros(len(column) + 1, np.int64)
    lengths = [pc.fill_null(pc.list_value_length(chunk), 0).to_numpy(zero_copy_only=False) for chunk in column.chunks]
    return rows, np.concatenate((np.zeros(1, np.int64), np.cumsum(_joined(lengths))))


def bucketed(name: str, column: pa.ChunkedArray, boundaries: NDArray[np.float64]) -> Indices:
    """Row numbers of numbers: bucket + 1, or 0 for null and NaN."""
    values = numbers(name, column)
    rows = np.searchsorted(boundaries, values, side="right").astype(np.int64) + 1
    rows[np.isnan(values)] = 0
    return rows


def flat_ids(name: str, column: pa.ChunkedArray, ragged: bool, expected: str = "string or integer") -> pa.ChunkedArray:
    """A column's ids with lists flattened: int64 or large strings, including nulls; of no type where all are null.

    Raises:
        ValueError: the column is of another type, or has a number that is not whole.
    """
    kind = column.type
    if pa.types.is_null(kind):
        return column
    if ragged and not plain.is_list(kind):
        raise ValueError(f"column {name!r} must be lists, got {plain.named(kind)}")
    if plain.is_list(kind) and not ragged:
        raise ValueError(f"column {name!r} must be {expected} ids, got {plain.named(kind)}")
    flat = pa.chunked_array([chunk.flatten() for chunk in column.chunks], kind.value_type) if ragged else column
    if pa.types.is_floating(flat.type) and "integer" in expected:
        flat = _whole(name, flat)
    if pa.types.is_boolean(flat.type):
        flat = flat.cast(pa.int64())
    is_integer = pa.types.is_integer(flat.type)
    matches = (plain.is_text(flat.type) and "string" in expected) or (is_integer and "integer" in expected)
    if not (matches or pa.types.is_null(flat.type)):
        raise ValueError(
            f"column {name!r} must be {'lists of ' if ragged else ''}{expected} ids, got {plain.named(kind)}"
        )
    return flat


def binary_labels(table: pa.Table, columns: Sequence[str]) -> NDArray[np.float32]:
    """Columns of labels as one float32 matrix ``[n, columns]``; NaN where a label is null or NaN: not observed.

    Raises:
        ValueError: a value is neither 0 nor 1 nor missing; the message names the column.
    """
    parts = []
    for name in columns:
        column = of_table(table, name)
        try:
            values = numbers(name, column)
        except ValueError:
            raise ValueError(f"column {name!r} must be 0 or 1, got {plain.named(column.type)}") from None
        wrong = ~(np.isin(values, (0, 1)) | np.isnan(values))
        if wrong.any():
            raise ValueError(f"column {name!r} must be 0 or 1, got {values[wrong][0]}")
        parts.append(values.astype(np.float32))
    return np.stack(parts, axis=1)


def _whole(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Ids that were stored as floats, as pandas does where some are missing."""
    values = pc.fill_null(column, np.nan).to_numpy()
    wrong = np.flatnonzero(~np.isnan(values) & ((values != np.floor(values)) | (np.abs(values) >= 2**53)))
    if len(wrong):
        raise ValueError(
            f"column {name!r} must be ids, whole numbers below 2^53 where they are floats, "
            f"got {values[wrong[0]]} in row {wrong[0]}"
        )
    missing = np.isnan(values)
    return pa.chunked_array([pa.array(np.where(missing, 0, values).astype(np.int64), mask=missing)])


def _find_integer(vocabulary: Indices) -> Callable[[pa.Array], Indices]:
    def find(chunk: pa.Array) -> Indices:
        values = pc.fill_null(chunk, 0).to_numpy(zero_copy_only=False)
        if not len(vocabulary):
            return np.zeros(len(values), np.int64)
        places = np.minimum(np.searchsorted(vocabulary, values), len(vocabulary) - 1)
        known = vocabulary[places] == values
        if chunk.null_count:
            known &= chunk.is_valid().to_numpy(zero_copy_only=False)
        return np.where(known, places + 1, 0)

    return find


def _find_string(vocabulary: tuple[str, ...]) -> Callable[[pa.Array], Indices]:
    known = pa.array(vocabulary, pa.large_string())

    def find(chunk: pa.Array) -> Indices:
        places = pc.index_in(chunk, value_set=known)
        return pc.fill_null(places, -1).to_numpy(zero_copy_only=False).astype(np.int64) + 1

    return find


def numbers(name: str, column: pa.ChunkedArray) -> NDArray[np.float64]:
    """A column as float64, null as NaN."""
    kind = column.type
    if pa.types.is_null(kind):
        return np.full(len(column), np.nan)
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise ValueError(f"column {name!r} must be numbers, got {plain.named(kind)}")
    column = column.cast(pa.int8()) if pa.types.is_boolean(kind) else column
    values = column.cast(pa.float64(), safe=False)
    return _joined([pc.fill_null(chunk, np.nan).to_numpy(zero_copy_only=False) for chunk in values.chunks], np.float64)


def _joined(parts: list[NDArray[Any]], dtype: type = np.int64) -> NDArray[Any]:
    """The chunks' results as one array; empty without chunks."""
    if len(parts) == 1:
        return parts[0].astype(dtype, copy=False)
    return np.concatenate(parts).astype(dtype, copy=False) if parts else np.zeros(0, dtype)
