"""Requests from Parquet files: their rows grouped by request, and the rows' embeddings block by block."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..data.embedding import rows_of
from ..data.features import FeatureSet
from ..serving.scorer import Floats, Scorer

Indices = NDArray[np.int64]

_BLOCK_ROWS = 1 << 18  # candidates encoded at once: bounds the memory beyond the file's own


@dataclass(frozen=True)
class Requests:
    """Requests and their candidates, in order of first appearance."""

    ids: pa.Array  # [R]
    users: pa.Table  # R rows
    items: pa.Table  # candidates, request by request; or the catalog
    offsets: NDArray[np.int64]  # [R + 1]; unused with a catalog
    is_catalog: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    def span(self, request: int) -> tuple[int, int]:
        """The range of rows of ``items`` that a request ranks."""
        if self.is_catalog:
            return 0, self.items.num_rows
        return int(self.offsets[request]), int(self.offsets[request + 1])

    @property
    def candidates(self) -> int:
        """Number of candidates that all requests rank."""
        return len(self) * self.items.num_rows if self.is_catalog else self.items.num_rows


@dataclass(frozen=True)
class Embedded:
    """One request with its embedded user and items."""

    request: int
    user: Floats  # [1, Du]
    item: Floats  # [n, Di]
    seconds: float  # time of gathering and pooling


def read_table(path: Path, columns: list[str]) -> pa.Table:
    """Read some columns of a Parquet file.

    Raises:
        ValueError: there is no such file, it is not Parquet, or it lacks a column.
    """
    if not path.is_file():
        raise ValueError(f"{path}: must be a Parquet file, got {'a directory' if path.is_dir() else 'no file'}")
    wanted = list(dict.fromkeys(columns))
    try:
        present = pq.read_schema(path).names
        missing = [column for column in wanted if column not in present]
        if missing:
            raise ValueError(f"{path}: column {missing[0]!r} must be in the file, got columns {', '.join(present)}")
        return pq.read_table(path, columns=wanted, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, pa.ArrowInvalid | OSError):
            raise ValueError(f"{path}: must be a readable Parquet file, got {error}") from None
        raise


def read_requests(path: Path, features: FeatureSet) -> Requests:
    """Requests of candidates with their users, grouped by request id; rows of one request need not be adjacent."""
    columns = [features.request_id, features.item_id, *(feature.name for feature in features.all)]
    return grouped_requests(path, read_table(path, columns), features)


def grouped_requests(path: Path, table: pa.Table, features: FeatureSet) -> Requests:
    """Requests of a table of candidates read from ``path``; further columns stay with the candidates."""
    ids, codes = _numbered(path, table, features.request_id)
    order = np.argsort(codes, kind="stable")
    offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(np.bincount(codes, minlength=len(ids)))))
    if not bool((np.diff(codes) >= 0).all()):
        table = table.take(pa.array(order))
    users = table.select(_user_columns(features)).take(pa.array(offsets[:-1]))
    return Requests(ids, users, table, offsets)


def read_catalog_requests(path: Path, catalog: Path, features: FeatureSet) -> Requests:
    """Requests of users, one row each, that all rank the same catalog."""
    users = read_table(path, _user_columns(features))
    ids, codes = _numbered(path, users, features.request_id)
    if len(ids) != len(codes):
        first = ids[int(np.flatnonzero(np.bincount(codes) > 1)[0])].as_py()
        raise ValueError(f"{path}: must hold one row per request with --catalog, got request {first!r} more than once")
    items = read_table(catalog, [features.item_id, *(feature.name for feature in features.item)])
    return Requests(ids, users, items, np.zeros(len(ids) + 1, np.int64), is_catalog=True)


def embedded_requests(requests: Requests, scorer: Scorer) -> Iterator[Embedded]:
    """Embed each request's user row and item rows; a catalog's items are embedded once, before the first request."""
    features = scorer.features
    assert features is not None
    catalog = _embedded_items(requests.items, scorer) if requests.is_catalog else None
    for first, last in _blocks(requests):
        users = features.encode_user(requests.users.slice(first, last - first))
        base, end = requests.span(first)[0], requests.span(last - 1)[1]
        items = {} if catalog is not None else features.encode_item(requests.items.slice(base, end - base))
        for request in range(first, last):
            start, stop = requests.span(request)
            began = time.perf_counter()
            user = features.embed(rows_of(users, request - first, request - first + 1), scorer.tables)
            if catalog is None:
                item = features.embed(rows_of(items, start - base, stop - base), scorer.tables)
            else:
                item = catalog
            yield Embedded(request, user, item, time.perf_counter() - began)


def _user_columns(features: FeatureSet) -> list[str]:
    return list(dict.fromkeys([features.request_id, *(feature.name for feature in features.user)]))


def _numbered(path: Path, table: pa.Table, column: str) -> tuple[pa.Array, NDArray[np.int64]]:
    """Distinct request ids in order of first appearance, and each row's index among them."""
    ids = table.column(column)
    if ids.null_count:
        raise ValueError(f"{path}: column {column!r} must be without nulls, got {ids.null_count}")
    kind = ids.type
    plain = ids.cast(kind.value_type) if pa.types.is_dictionary(kind) else ids
    if pa.types.is_nested(plain.type):
        raise ValueError(f"{path}: column {column!r} must be integer or string ids, got {plain.type}")
    encoded = pa.concat_arrays(plain.chunks).dictionary_encode() if len(plain) else pa.array([], plain.type)
    if not len(plain):
        return encoded, np.zeros(0, np.int64)
    return encoded.dictionary, encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)


def _embedded_items(items: pa.Table, scorer: Scorer) -> Floats:
    assert scorer.features is not None
    out = np.empty((items.num_rows, scorer.features.item_width), np.float32)
    for start in range(0, len(out), _BLOCK_ROWS):
        out[start : start + _BLOCK_ROWS] = scorer.embed_items(items.slice(start, _BLOCK_ROWS))
    return out


def _blocks(requests: Requests) -> Iterator[tuple[int, int]]:
    """Ranges of requests with at most ``_BLOCK_ROWS`` candidates (or a single larger request)."""
    if requests.is_catalog:
        for first in range(0, len(requests), _BLOCK_ROWS):
            yield first, min(first + _BLOCK_ROWS, len(requests))
        return
    first, offsets = 0, requests.offsets
    while first < len(requests):
        last = int(np.searchsorted(offsets, offsets[first] + _BLOCK_ROWS, side="right")) - 1
        last = max(last, first + 1)
        yield first, last
        first = last
