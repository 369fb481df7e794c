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

Indices = NDArray[np.int64]


def of_table(table: pa.Table, name: str) -> pa.ChunkedArray:
    """The column called ``name``.

    Raises:
        ValueError: there is none, or more than one.
    """
    places = table.schema.get_all_field_indices(name)
    if len(places) != 1:
        got = f"columns {', '.join(table.column_names)}" if not places else f"{len(places)} of that name"
        raise ValueError(f"column {name!r} must be in the table, got {got}")
    return table.column(places[0])


def looked_up(name: str, column: pa.ChunkedArray, vocabulary: Any, ragged: bool) -> Any:
    """Row numbers of ids: index in the vocabulary + 1, or 0 if unknown; for lists, values and offsets."""
    find = _find_string(name, vocabulary) if isinstance(vocabulary, tuple) else _find_integer(name, vocabulary)
    element = _element_type(name, column.type, ragged)
    _expect_ids(name, column.type, element, "string" if isinstance(vocabulary, tuple) else "integer", ragged)
    if not ragged:
        return _joined([find(chunk) for chunk in column.chunks])
    lengths = [pc.fill_null(pc.list_value_length(chunk), 0).to_numpy(zero_copy_only=False) for chunk in column.chunks]
    values = _joined([find(chunk.flatten()) for chunk in column.chunks])
    return values, np.concatenate((np.zeros(1, np.int64), np.cumsum(_joined(lengths))))


def bucketed(name: str, column: pa.ChunkedArray, boundaries: NDArray[np.float64]) -> Indices:
    """Row numbers of numbers: bucket + 1, or 0 for null and NaN."""
    values = numbers(name, column)
    rows = np.searchsorted(boundaries, values, side="right").astype(np.int64) + 1
    rows[np.isnan(values)] = 0
    return rows


def flat_ids(name: str, column: pa.ChunkedArray, ragged: bool) -> pa.ChunkedArray:
    """A column's ids with lists flattened: int64 or large strings, including nulls.

    Raises:
        ValueError: the column is of another type, or an integer does not fit int64.
    """
    element = _element_type(name, column.type, ragged)
    _expect_ids(name, column.type, element, "string or integer", ragged)
    flat = pa.chunked_array([chunk.flatten() for chunk in column.chunks], column.type.value_type) if ragged else column
    if pa.types.is_null(element):
        return flat
    try:
        return flat.cast(element).cast(pa.large_string() if _is_string(element) else pa.int64())
    except pa.ArrowInvalid as error:  # uint64 beyond int64
        raise ValueError(f"column {name!r} must be integers that fit int64, got {error}") from None


def binary_labels(source: object, table: pa.Table, columns: Sequence[str]) -> NDArray[np.float32]:
    """Columns of labels as one float32 matrix ``[n, columns]``.

    Raises:
        ValueError: a value is neither 0 nor 1; the message names ``source`` and the column.
    """
    parts = []
    for name in columns:
        column = of_table(table, name)
        try:
            values = pc.fill_null(column.cast(pa.float64()), np.nan).to_numpy()
        except pa.ArrowException:
            raise ValueError(f"{source}: column {name!r} must be 0 or 1, got {column.type}") from None
        wrong = ~np.isin(values, (0, 1))
        if wrong.any():
            raise ValueError(f"{source}: column {name!r} must be 0 or 1, got {values[wrong][0]}")
        parts.append(values.astype(np.float32))
    return np.stack(parts, axis=1)


def _find_integer(name: str, vocabulary: Indices) -> Callable[[pa.Array], Indices]:
    def find(chunk: pa.Array) -> Indices:
        try:
            if pa.types.is_dictionary(chunk.type):
                chunk = chunk.dictionary_decode()
            chunk = chunk.cast(pa.int64())
        except pa.ArrowInvalid as error:  # uint64 beyond int64
            raise ValueError(f"column {name!r} must be integers that fit int64, got {error}") from None
        values = pc.fill_null(chunk, 0).to_numpy(zero_copy_only=False)
        if not len(vocabulary):
            return np.zeros(len(values), np.int64)
        places = np.minimum(np.searchsorted(vocabulary, values), len(vocabulary) - 1)
        known = vocabulary[places] == values
        if chunk.null_count:
            known &= chunk.is_valid().to_numpy(zero_copy_only=False)
        return np.where(known, places + 1, 0)

    return find


def _find_string(name: str, vocabulary: tuple[str, ...]) -> Callable[[pa.Array], Indices]:
    def find(chunk: pa.Array) -> Indices:
        if pa.types.is_dictionary(chunk.type):
            rows = np.append(find(chunk.dictionary), 0)  # the last entry serves null
            return rows[pc.fill_null(chunk.indices.cast(pa.int64()), len(rows) - 1).to_numpy(zero_copy_only=False)]
        places = pc.index_in(chunk, value_set=pa.array(vocabulary, chunk.type))
        return pc.fill_null(places, -1).to_numpy(zero_copy_only=False).astype(np.int64) + 1

    return find


def numbers(name: str, column: pa.ChunkedArray) -> NDArray[np.float64]:
    """A column as float64, null as NaN."""
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise ValueError(f"column {name!r} must be numbers, got {kind}")
    column = column.cast(pa.int8()) if pa.types.is_boolean(kind) else column
    values = column.cast(pa.float64(), safe=False)
    return _joined([pc.fill_null(chunk, np.nan).to_numpy(zero_copy_only=False) for chunk in values.chunks], np.float64)


def _element_type(name: str, kind: pa.DataType, ragged: bool) -> pa.DataType:
    """The type of a column's ids: its own, or its lists' elements'; a dictionary's is its values'."""
    if ragged:
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
            raise ValueError(f"column {name!r} must be lists, got {kind}")
        kind = kind.value_type
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _expect_ids(name: str, kind: pa.DataType, element: pa.DataType, expected: str, ragged: bool) -> None:
    is_integer = pa.types.is_integer(element) or pa.types.is_boolean(element)
    matches = (_is_string(element) and "string" in expected) or (is_integer and "integer" in expected)
    if not (matches or pa.types.is_null(element)):
        raise ValueError(f"column {name!r} must be {'lists of ' if ragged else ''}{expected} ids, got {kind}")


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _joined(parts: list[NDArray[Any]], dtype: type = np.int64) -> NDArray[Any]:
    """The chunks' results as one array; empty without chunks."""
    if len(parts) == 1:
        return parts[0].astype(dtype, copy=False)
    return np.concatenate(parts).astype(dtype, copy=False) if parts else np.zeros(0, dtype)
