"""Types of columns that were read as text, from all of their values: CSV files do not tell them.

A column is of integers, numbers or booleans only if every value is; ``NA`` and the like then stand for a missing one.
Otherwise it is text, as it stands in the file: ``NA`` is a country, ``007`` an agent. A field of nothing, not even
quotes, is always missing.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

KINDS = {"text": pa.large_string(), "integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_()}

_MISSING = pa.array(["", "NA", "N/A", "#N/A", "NaN", "nan", "null", "NULL", "None", "\\N"], pa.large_string())
# Integers that int64 holds, without leading zeros; numbers that float64 holds to the last digit of their integral part.
_PATTERNS = {
    "boolean": r"^([Tt]rue|TRUE|[Ff]alse|FALSE)$",
    "integer": r"^-?(0|[1-9][0-9]{0,17})$",
    "number": r"^[+-]?((0|[1-9][0-9]{0,14})(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?$",
}


class TypeOfText:
    """Learns a column's type from its blocks."""

    def __init__(self) -> None:
        self._kinds = list(_PATTERNS)
        self._any = False

    def add(self, values: pa.ChunkedArray) -> None:
        """Look at a block's large strings."""
        if not self._kinds:
            return
        seen = values.unique().drop_null()
        seen = seen.filter(pc.invert(pc.is_in(seen, value_set=_MISSING)))
        self._any = self._any or len(seen) > 0
        self._kinds = [
            kind for kind in self._kinds if pc.all(pc.match_substring_regex(seen, _PATTERNS[kind]), min_count=0).as_py()
        ]

    @property
    def kind(self) -> str:
        """A name of :data:`KINDS`."""
        return self._kinds[0] if self._any and self._kinds else "text"


def converted(name: str, values: pa.ChunkedArray, kind: str) -> pa.ChunkedArray:
    """A column of large strings in the type of a kind.

    Raises:
        ValueError: a value is of another kind; the message names the column.
    """
    if kind == "text":
        return values
    missing = pc.is_in(values, value_set=_MISSING)
    values = pc.if_else(missing, pa.scalar(None, pa.large_string()), values)
    if kind == "boolean":
        values = pc.utf8_lower(values)
    try:
        return values.cast(KINDS[kind])
    except pa.ArrowInvalid as error:
        raise ValueError(f"column {name!r} must be of kind {kind}, got {error}") from None
