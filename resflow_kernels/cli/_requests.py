"""Requests from files: their rows grouped by request, and the rows' embeddings block by block."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..data.embedding import rows_of
from ..data.features import FeatureSet
from ..data.files import CsvSettings, Files
from ..data.plain import named
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
    varying: tuple[str, ...] = ()  # user columns that differ between candidates of a request: each has its own

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
    user: Floats  # [1, Du], or [n, Du] where each candidate has its own
    item: Floats  # [n, Di]
    seconds: float  # time of gathering and pooling


def read_table(path: Path | str, columns: list[str], csv: CsvSettings | None = None) -> pa.Table:
    """Read some columns of a file, of a folder or of all files of a pattern, in plain types.

    Raises:
        ValueError: there is no such file, it cannot be read, or it lacks a column.
    """
    files = Files([str(path)], columns, csv=csv)
    blocks = list(files.tables())
    if blocks:
        return pa.concat_tables(blocks)
    return pa.table({name: pa.array([], kind) for name, kind in files.types.items()})


def csv_settings(features: FeatureSet) -> CsvSettings:
    """How CSV files of candidates are read: ids are of the type of the features' vocabularies."""
    types = {
        feature.name: "text" if isinstance(feature.vocabulary, tuple) else "integer"
        for feature in features.all
        if feature.vocabulary is not None
    }
    lists = [feature.name for feature in features.all if feature.kind == "ids"]
    return CsvSettings(types=types, lists=lists)


def read_requests(path: Path, features: FeatureSet) -> Requests:
    """Requests of candidates with their users, grouped by request id; rows of one request need not be adjacent."""
    columns = [features.request_id, features.item_id, *(feature.name for feature in features.all)]
    table = read_table(path, columns, csv_settings(features))
    requests = grouped_requests(path, table, features)
    return replace(requests, varying=tuple(varying_users(requests, features)))


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
    users = read_table(path, _user_columns(features), csv_settings(features))
    ids, codes = _numbered(path, users, features.request_id)
    if len(ids) != len(codes):
        first = ids[int(np.flatnonzero(np.bincount(codes) > 1)[0])].as_py()
        raise ValueError(f"{path}: must hold one row per request with --catalog, got request {first!r} more than once")
    items = read_table(catalog, [features.item_id, *(f.name for f in features.item)], csv_settings(features))
    return Requests(ids, users, items, np.zeros(len(ids) + 1, np.int64), is_catalog=True)


def embedded_requests(requests: Requests, scorer: Scorer) -> Iterator[Embedded]:
    """Embed each request's user row and item rows; a catalog's items are embedded once, before the first request."""
    features = scorer.features
    assert features is not None
    catalog = _embedded_items(requests.items, scorer) if requests.is_catalog else None
    for first, last in _blocks(requests):
        base, end = requests.span(first)[0], requests.span(last - 1)[1]
        users_table = requests.items if requests.varying else requests.users
        begin, count = (base, end - base) if requests.varying else (first, last - first)
        users = features.encode_user(users_table.slice(begin, count))
        items = {} if catalog is not None else features.encode_item(requests.items.slice(base, end - base))
        for request in range(first, last):
            start, stop = requests.span(request)
            began = time.perf_counter()
            own = (start - base, stop - base) if requests.varying else (request - first, request - first + 1)
            user = features.embed(rows_of(users, *own), scorer.tables)
            if catalog is None:
                item = features.embed(rows_of(items, start - base, stop - base), scorer.tables)
            else:
                item = catalog
            yield Embedded(request, user, item, time.perf_counter() - began)


def _user_columns(features: FeatureSet) -> list[str]:
    return list(dict.fromkeys([features.request_id, *(feature.name for feature in features.user)]))


def varying_users(requests: Requests, features: FeatureSet) -> list[str]:
    """The user columns that differ between rows of one request, as a log's context does."""
    owners = np.repeat(np.arange(len(requests)), np.diff(requests.offsets))
    first = requests.offsets[:-1][owners]
    return [feature.name for feature in features.user if _varies(feature.encode(requests.items), first)]


def _varies(encoded: Any, first: Indices) -> bool:
    """Whether a feature of any row is another than that of the first row of its request."""
    if not isinstance(encoded, tuple):
        return bool((encoded != encoded[first]).any())
    values, offsets = encoded
    lengths = np.diff(offsets)
    if (lengths != lengths[first]).any():
        return True
    within = _within(lengths)
    return bool((values != values[np.repeat(offsets[:-1][first], lengths) + within]).any())


def _within(lengths: Indices) -> Indices:
    """0, 1, ... within each of consecutive groups of these lengths."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)


def _numbered(path: Path, table: pa.Table, column: str) -> tuple[pa.Array, NDArray[np.int64]]:
    """Distinct request ids in order of first appearance, and each row's index among them."""
    ids = table.column(column)
    if ids.null_count:
        raise ValueError(f"{path}: column {column!r} must be without nulls, got {ids.null_count}")
    if pa.types.is_nested(ids.type):
        raise ValueError(f"{path}: column {column!r} must be integer or string ids, got {named(ids.type)}")
    if not len(ids):
        return pa.array([], ids.type), np.zeros(0, np.int64)
    encoded = pa.concat_arrays(ids.chunks).dictionary_encode()
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
