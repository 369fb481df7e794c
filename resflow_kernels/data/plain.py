"""Arrow columns of any type as one of a few plain ones: null, bool, int64, float64, large strings, large lists of them.

Files of different writers hold the same values as string views, dictionaries, small integers, decimals, tensors.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def type_of(kind: pa.DataType) -> pa.DataType | None:
    """The plain type of a type; ``None``: it has none.

    >>> type_of(pa.dictionary(pa.int32(), pa.string()))
    DataType(large_string)
    """
    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return type_of(kind.storage_type)
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return type_of(kind.value_type)
    if types.is_null(kind) or types.is_boolean(kind):
        return kind
    if types.is_integer(kind) or (types.is_decimal(kind) and kind.scale == 0):
        return pa.int64()
    if types.is_floating(kind) or types.is_decimal(kind):
        return pa.float64()
    if is_text(kind) or types.is_binary(kind) or types.is_large_binary(kind) or types.is_temporal(kind):
        return pa.large_string()
    if is_list(kind):
        element = type_of(kind.value_type)
        return None if element is None or is_list(element) else pa.large_list(element)
    return None


def named(kind: pa.DataType) -> str:
    """A plain type's name in messages, such as ``list<item: string>``."""
    return str(kind).replace("large_", "")


def is_text(kind: pa.DataType) -> bool:
    """Whether values are text, as one of Arrow's types of strings."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_list(kind: pa.DataType) -> bool:
    """Whether values are lists, as one of Arrow's types of lists."""
    types = pa.types
    views = getattr(types, "is_list_view", types.is_list)(kind) or getattr(types, "is_large_list_view", types.is_list)(
        kind
    )
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind) or views)


def column(name: str, values: pa.ChunkedArray, wanted: pa.DataType | None = None) -> pa.ChunkedArray:
    """A column in its plain type, or in a wider plain one.

    Raises:
        ValueError: a type without a plain one, or a value that the type does not hold; the message names the column.
    """
    kind = type_of(values.type) if wanted is None else wanted
    if kind is None:
        raise ValueError(f"column {name!r} must be numbers, text, or lists of these, got {values.type}")
    if values.type == kind and not pa.types.is_large_string(kind):
        return values
    try:
        return pa.chunked_array([_converted(chunk, kind) for chunk in values.chunks], kind)
    except pa.ArrowInvalid as error:
        element = _element(kind)
        expected = "UTF-8 text" if pa.types.is_large_string(element) else f"{element}"
        expected = "integers that fit int64" if pa.types.is_int64(element) else expected
        raise ValueError(f"column {name!r} must be {expected}, got {error}") from None


def joined_type(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    """The plain type that holds the values of two plain types; ``None``: none does."""
    if a == b or pa.types.is_null(b):
        return a
    if pa.types.is_null(a):
        return b
    if is_list(a) and is_list(b):
        element = joined_type(a.value_type, b.value_type)
        return None if element is None else pa.large_list(element)
    numbers = [pa.bool_(), pa.int64(), pa.float64()]
    return max(a, b, key=numbers.index) if a in numbers and b in numbers else None


def _element(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if is_list(kind) else kind


def _converted(chunk: pa.Array, kind: pa.DataType) -> pa.Array:
    if isinstance(chunk, pa.ExtensionArray):
        return _converted(chunk.storage, kind)
    if pa.types.is_dictionary(chunk.type):
        return _converted(chunk.dictionary_decode(), kind)
    if pa.types.is_run_end_encoded(chunk.type):
        return _converted(pc.run_end_decode(chunk), kind)
    if is_list(kind) and is_list(chunk.type):
        # Not by a cast, which keeps what lies under null lists, and damages views of lists.
        lengths = pc.fill_null(pc.list_value_length(chunk), 0).to_numpy(zero_copy_only=False)
        offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)))
        return pa.LargeListArray.from_arrays(pa.array(offsets), _converted(chunk.flatten(), kind.value_type))
    made = chunk.cast(kind)
    if pa.types.is_large_string(kind):
        made.validate(full=True)  # files do not promise that their text is UTF-8
    return made
