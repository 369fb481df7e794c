"""Features of a candidate: its columns, how their values become row numbers, and how those become an input row.

A value is encoded as a row number of its feature's embedding table; row 0 always means *unknown or null*, and is a
trained vector like any other. The table's rows, gathered (and, for lists, pooled) and concatenated, are a candidate's
input row: the user's features first, each side in its declared order, so that ``D = Du + Di``. Imports neither torch
nor (until a table is encoded or fitted) pyarrow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from ..contract import POOLING
from . import embedding
from .embedding import Encoded, Indices, Ragged

if TYPE_CHECKING:
    import pyarrow as pa

    from . import fitting

Kind = Literal["id", "ids", "bucket"]
Vocabulary = NDArray[np.int64] | tuple[str, ...]

KINDS: tuple[str, ...] = get_args(Kind)


@dataclass(frozen=True, eq=False)
class Feature:
    """One feature: a column's name, the width of its embedding, and the numbering of its values.

    Args:
        name: the column.
        dim: the width of its embedding, at least 1.
        kind: ``"id"``: one integer or string per row; ``"ids"``: a list of them per row, pooled (an empty or
            null list pools to zeros); ``"bucket"``: one number per row, divided at boundaries.
        vocabulary: the known ids, ascending and distinct: an int64 array or a tuple of strings. Id number
            ``i`` has row ``i + 1``; every other id and null have row 0. ``None`` until fitted.
        boundaries: ascending float64 cuts of a ``"bucket"``; ``boundaries[b - 1] <= value < boundaries[b]`` has
            row ``b + 1``, null and NaN have row 0. ``None`` until fitted.
        pooling: what an ``"ids"`` list becomes: ``"sum"`` or ``"mean"``.

    Raises:
        ValueError: a field is out of range or contradicts the kind.

    Example:
        >>> Feature("tab", 8, "id", vocabulary=np.array([1, 4])).rows
        3
    """

    name: str
    dim: int
    kind: Kind
    vocabulary: Vocabulary | None = None
    boundaries: NDArray[np.float64] | None = None
    pooling: str = "sum"

    def __post_init__(self) -> None:
        _require(isinstance(self.name, str) and self.name != "", "Feature", "name", "a column's name", repr(self.name))
        _require(_is_count(self.dim), self._who, "dim", "an integer of at least 1", repr(self.dim))
        _require(self.kind in KINDS, self._who, "kind", f"one of {', '.join(KINDS)}", repr(self.kind))
        _require(self.pooling in POOLING, self._who, "pooling", f"one of {', '.join(POOLING)}", repr(self.pooling))
        lists = self.kind == "ids" or self.pooling == "sum"
        _require(lists, self._who, "pooling", f"sum in a feature of kind {self.kind!r}", repr(self.pooling))
        bucket = self.kind == "bucket"
        _require(not bucket or self.vocabulary is None, self._who, "vocabulary", "None in a bucket feature", "one")
        _require(bucket or self.boundaries is None, self._who, "boundaries", f"None in an {self.kind} feature", "some")
        if self.vocabulary is not None:
            object.__setattr__(self, "vocabulary", _checked_vocabulary(self._who, self.vocabulary))
        if self.boundaries is not None:
            object.__setattr__(self, "boundaries", _checked_boundaries(self._who, self.boundaries))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Feature) and self.to_json() == other.to_json() and self._same_arrays(other)

    def __hash__(self) -> int:
        return hash((self.name, self.dim, self.kind))

    @property
    def fitted(self) -> bool:
        """Whether values of this feature can be encoded."""
        return (self.boundaries if self.kind == "bucket" else self.vocabulary) is not None

    @property
    def rows(self) -> int:
        """``V``, the number of rows of its embedding table, including row 0."""
        if self.kind == "bucket":
            return len(self._known(self.boundaries)) + 2
        return len(self._known(self.vocabulary)) + 1

    def fit(self, table: pa.Table, min_count: int = 1, buckets: int = 16) -> Feature:
        """This feature with a vocabulary, or boundaries, fitted to a table's column.

        Args:
            table: holds the column :attr:`name`.
            min_count: an id seen fewer times than this counts as unknown.
            buckets: largest number of buckets, divided at quantiles (``"bucket"`` only).

        Raises:
            ValueError: the column is missing or of a type that the kind does not take.
        """
        from . import columns

        learner = self._learner(min_count, buckets, None)
        learner.add(columns.of_table(table, self.name))
        return self._learnt(learner)

    def _learner(self, min_count: int, buckets: int, sample: int | None) -> fitting.Learner:
        from . import fitting

        _require(_is_count(min_count), self._who, "min_count", "an integer of at least 1", repr(min_count))
        _require(_is_count(buckets), self._who, "buckets", "an integer of at least 1", repr(buckets))
        if self.kind == "bucket":
            return fitting.Quantiles(self.name, buckets, sample)
        return fitting.IdCounts(self.name, self.kind == "ids", min_count)

    def _learnt(self, learner: fitting.Learner) -> Feature:
        return replace(self, **{"boundaries" if self.kind == "bucket" else "vocabulary": learner.result()})

    def encode(self, table: pa.Table) -> Indices | Ragged:
        """Encode a table's column as row numbers of the embedding table.

        Returns:
            int64 ``[n]``, or for ``"ids"`` values ``[total]`` and offsets ``[n + 1]``.

        Raises:
            ValueError: the feature is not fitted, or the column is missing or of another type than its
                vocabulary's.
        """
        from . import columns

        column = columns.of_table(table, self.name)
        if self.kind == "bucket":
            return columns.bucketed(self.name, column, self._known(self.boundaries))
        return columns.looked_up(self.name, column, self._known(self.vocabulary), self.kind == "ids")

    def to_json(self) -> dict[str, Any]:
        """Everything except the numeric arrays (:attr:`arrays`), as JSON data."""
        strings = list(self.vocabulary) if isinstance(self.vocabulary, tuple) else None
        pooling = {} if self.pooling == "sum" else {"pooling": self.pooling}  # older versions know sums alone
        return {"name": self.name, "dim": self.dim, "kind": self.kind, "vocabulary": strings, **pooling}

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """``vocabulary`` (int64) or ``boundaries`` (float64), if the feature has them."""
        arrays: dict[str, NDArray[Any]] = {}
        if isinstance(self.vocabulary, np.ndarray):
            arrays["vocabulary"] = self.vocabulary
        if self.boundaries is not None:
            arrays["boundaries"] = self.boundaries
        return arrays

    @classmethod
    def from_json(cls, data: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]] | None = None) -> Feature:
        """The inverse of :meth:`to_json` and :attr:`arrays`."""
        arrays = {} if arrays is None else arrays
        pooling = {"pooling"} & set(data)
        _require_keys("Feature", data, {"name", "dim", "kind", "vocabulary"} | pooling)
        strings = data["vocabulary"]
        _require(strings is None or isinstance(strings, list), "Feature", "JSON vocabulary", "a list or null", strings)
        vocabulary = arrays.get("vocabulary") if strings is None else tuple(strings)
        own = data.get("pooling", "sum")
        return cls(data["name"], data["dim"], data["kind"], vocabulary, arrays.get("boundaries"), own)

    @property
    def _who(self) -> str:
        return f"feature {self.name!r}"

    def _known(self, fitted: Any) -> Any:
        _require(fitted is not None, self._who, "vocabulary or boundaries", "fitted (see FeatureSet.fit)", "None")
        return fitted

    def _same_arrays(self, other: Feature) -> bool:
        mine, theirs = self.arrays, other.arrays
        return mine.keys() == theirs.keys() and all(np.array_equal(mine[name], theirs[name]) for name in mine)


@dataclass(frozen=True)
class FeatureSet:
    """The features of a model's input row: the user's and the item's.

    Args:
        user: the user's (and request's) features, at least one.
        item: the item's features, at least one.
        request_id: the column that tells which request a candidate belongs to.
        item_id: the column that names an item.

    Raises:
        ValueError: a side is empty or two features share a name.

    Example:
        >>> features = FeatureSet((Feature("user_id", 16, "id"),), (Feature("tags", 8, "ids"),), "request", "video")
        >>> features = features.fit(log, min_count=5)                       # doctest: +SKIP
        >>> user = features.embed(features.encode_user(log), tables)        # doctest: +SKIP
    """

    user: tuple[Feature, ...]
    item: tuple[Feature, ...]
    request_id: str
    item_id: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "user", tuple(self.user))
        object.__setattr__(self, "item", tuple(self.item))
        _require(len(self.user) > 0, "FeatureSet", "user", "at least one feature", "none")
        _require(len(self.item) > 0, "FeatureSet", "item", "at least one feature", "none")
        names = [feature.name for feature in self.all]
        twice = sorted({name for name in names if names.count(name) > 1})
        _require(not twice, "FeatureSet", "features", "of different names", f"{', '.join(twice)} twice")
        for field in ("request_id", "item_id"):
            value = getattr(self, field)
            _require(isinstance(value, str) and value != "", "FeatureSet", field, "a column's name", repr(value))

    @property
    def all(self) -> tuple[Feature, ...]:
        """The user's features, then the item's, in the order of the input row."""
        return (*self.user, *self.item)

    @cached_property
    def user_width(self) -> int:
        """``Du``, the width of the user's embeddings."""
        return sum(feature.dim for feature in self.user)

    @cached_property
    def item_width(self) -> int:
        """``Di``, the width of the item's embeddings."""
        return sum(feature.dim for feature in self.item)

    def fit(
        self,
        table: pa.Table | Iterable[pa.Table],
        items: pa.Table | Iterable[pa.Table] | None = None,
        min_count: int | Mapping[str, int] = 1,
        buckets: int | Mapping[str, int] = 16,
    ) -> FeatureSet:
        """This set with every unfitted feature fitted to a table's columns.

        Args:
            table: the rows that vocabularies and boundaries are fitted to (a training log); or, if it is larger than
                memory, its blocks one after another. Quantiles of more than 2^20 numbers are then those of a random
                sample of that size; everything else is the same.
            items: the item's columns, if they are not in ``table``; likewise.
            min_count: ids seen fewer times count as unknown: one number, or one per feature by name (others: 1).
            buckets: the number of quantile buckets, likewise (others: 16).

        Raises:
            ValueError: a column is missing or of the wrong type.
        """
        from . import columns, fitting

        def learnt(features: Iterable[Feature], source: pa.Table | Iterable[pa.Table]) -> dict[str, Feature]:
            sample = None if fitting.is_table(source) else fitting.SAMPLE
            new = [(f, f._learner(_setting(min_count, f, 1), _setting(buckets, f, 16), sample)) for f in features]
            for block in fitting.blocks(source) if new else ():
                for feature, learner in new:
                    learner.add(columns.of_table(block, feature.name))
            return {feature.name: feature._learnt(learner) for feature, learner in new}

        user, item = ([f for f in side if not f.fitted] for side in (self.user, self.item))
        fitted = learnt(user + item, table) if items is None else learnt(user, table) | learnt(item, items)
        done_user, done_item = (tuple(fitted.get(f.name, f) for f in side) for side in (self.user, self.item))
        return replace(self, user=done_user, item=done_item)

    def encode_user(self, table: pa.Table) -> Encoded:
        """The user's columns of a table, encoded by name (see :meth:`Feature.encode`)."""
        return {feature.name: feature.encode(table) for feature in self.user}

    def encode_item(self, table: pa.Table) -> Encoded:
        """The item's columns of a table, encoded by name."""
        return {feature.name: feature.encode(table) for feature in self.item}

    def embed(self, encoded: Encoded, tables: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        """Concatenated embeddings of encoded features.

        Args:
            encoded: the result of :meth:`encode_user` or :meth:`encode_item`, or both in one dict.
            tables: float32 ``[V, dim]`` for each feature by name.

        Returns:
            float32 ``[n, width]``, the features of ``encoded`` in their declared order.

        Raises:
            ValueError: a feature without a table, a table of the wrong shape, an index out of range, columns
                of different lengths.
        """
        features = [feature for feature in self.all if feature.name in encoded]
        unknown = sorted(encoded.keys() - {feature.name for feature in features})
        _require(len(features) > 0 and not unknown, "embed", "encoded", "this set's features", unknown or "none")
        rows = embedding.row_count(encoded)
        out = np.empty((rows, sum(feature.dim for feature in features)), np.float32)
        at = 0
        for feature in features:
            check_table(feature, tables.get(feature.name))
            part = out[:, at : at + feature.dim]
            pooling = feature.pooling if feature.kind == "ids" else None
            embedding.gather(feature.name, encoded[feature.name], tables[feature.name], part, pooling)
            at += feature.dim
        return out

    def to_json(self) -> dict[str, Any]:
        """Everything except the features' numeric arrays."""
        sides = {"user": [f.to_json() for f in self.user], "item": [f.to_json() for f in self.item]}
        return {**sides, "request_id": self.request_id, "item_id": self.item_id}

    @classmethod
    def from_json(
        cls, data: Mapping[str, Any], arrays: Mapping[str, Mapping[str, NDArray[Any]]] | None = None
    ) -> FeatureSet:
        """The inverse of :meth:`to_json`; ``arrays`` are the features' :attr:`Feature.arrays` by name."""
        arrays = {} if arrays is None else arrays
        _require_keys("FeatureSet", data, {"user", "item", "request_id", "item_id"})

        def side(name: str) -> tuple[Feature, ...]:
            entries = data[name]
            valid = isinstance(entries, list) and all(isinstance(e, Mapping) for e in entries)
            _require(valid, "FeatureSet", f"JSON {name}", "a list of objects", entries)
            return tuple(Feature.from_json(entry, arrays.get(str(entry.get("name")))) for entry in entries)

        return cls(side("user"), side("item"), data["request_id"], data["item_id"])


def check_table(feature: Feature, table: object) -> None:
    """Check that a feature's embedding table is float32 ``[V, dim]``."""
    who, expected = f"table of feature {feature.name!r}", f"a float32 array of shape [{feature.rows}, {feature.dim}]"
    if not isinstance(table, np.ndarray):
        raise ValueError(f"{who} must be {expected}, got {'none' if table is None else type(table).__name__}")
    if table.dtype != np.float32 or table.shape != (feature.rows, feature.dim):
        raise ValueError(f"{who} must be {expected}, got {table.dtype} {list(table.shape)}")


def _setting(value: int | Mapping[str, int], feature: Feature, default: int) -> int:
    return value.get(feature.name, default) if isinstance(value, Mapping) else value


def _checked_vocabulary(who: str, vocabulary: object) -> Vocabulary:
    if isinstance(vocabulary, np.ndarray):
        integers = vocabulary.ndim == 1 and np.issubdtype(vocabulary.dtype, np.signedinteger)
        _require(integers, who, "vocabulary", "a vector of int64", f"{vocabulary.dtype} {list(vocabulary.shape)}")
        known = vocabulary.astype(np.int64)
        _require(bool((np.diff(known) > 0).all()), who, "vocabulary", "ascending and distinct", "other")
        return known
    strings = isinstance(vocabulary, (tuple, list)) and all(isinstance(word, str) for word in vocabulary)
    _require(strings, who, "vocabulary", "an int64 array or a tuple of strings", type(vocabulary).__name__)
    words = tuple(cast("tuple[str, ...]", vocabulary))
    ascending = all(a < b for a, b in pairwise(words))
    _require(ascending, who, "vocabulary", "ascending and distinct", "other")
    return words


def _checked_boundaries(who: str, boundaries: object) -> NDArray[np.float64]:
    cuts = np.asarray(boundaries)
    numbers = cuts.ndim == 1 and (cuts.size == 0 or np.issubdtype(cuts.dtype, np.number))
    _require(numbers, who, "boundaries", "a vector of numbers", f"{cuts.dtype} {list(cuts.shape)}")
    cuts = cuts.astype(np.float64)
    ascending = bool(np.isfinite(cuts).all() and (np.diff(cuts) > 0).all())
    _require(ascending, who, "boundaries", "finite, ascending and distinct", cuts.tolist())
    return cuts


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _require_keys(who: str, data: object, keys: set[str]) -> None:
    _require(isinstance(data, Mapping) and set(data) == keys, who, "JSON", f"an object of {sorted(keys)}", data)


def _require(holds: bool, who: str, argument: str, expected: str, got: object) -> None:
    if not holds:
        raise ValueError(f"{who}: {argument} must be {expected}, got {got}")
