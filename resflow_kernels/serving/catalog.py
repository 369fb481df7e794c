"""The catalog form's table on disk: the part of the score that rarely changes, computed once.

The first layer is linear in ``[user, item]``, so the item's part of it, for all tasks, is a row of numbers that no
request changes. :func:`build_catalog` writes those rows to a memory-mapped safetensors file, block by block, so that a
catalog larger than memory can be built and opened; scoring gathers them by item number. Imports torch only for models
that are torch modules.

The file's tensors are ``table`` (``[M, plan.table_width_of(Di)]``, float32, bfloat16 or int8) and ``scales`` (float32
``[M]`` for int8, else ``[0]``); its ``__metadata__["resflow"]`` identifies the weights that the rows were made with.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError, safe_open

from ..contract import PRECISION_ROWS, TABLE_PRECISIONS
from ..core.program import AnyPlan
from .bundle import Bundle, atomic_path, weights_digest
from .library import Table, compiled

if TYPE_CHECKING:
    from ..nn import ResFlow

FORMAT = "resflow-catalog"
VERSION = 1
_DTYPES = {"float32": "F32", "bfloat16": "BF16", "int8": "I8"}
_NUMPY: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(np.uint16),
    "int8": np.dtype(np.int8),
}
# Space for the JSON header, which is written when the number of items is known; rows then begin on a cache line.
_HEADER_BYTES = 4096
_BLOCK_ITEMS = 1 << 14  # items projected at once: bounds the memory beyond the caller's own blocks


class CatalogError(ValueError):
    """A catalog file that cannot be read, or does not match the model: names the file, expected and got."""


@dataclass(frozen=True, eq=False)
class Catalog:
    """An open catalog file.

    ``table`` is memory-mapped: rows are read from disk when they are first used, once for all processes. With
    ``in_memory`` it is this process's own copy: see :meth:`open`.
    """

    path: Path
    table: Table
    dtype: str
    item_features: int
    weights: str  # digest of the canonical weights
    writable: bool = False

    def __len__(self) -> int:
        return len(self.table.rows)

    @classmethod
    def open(cls, path: str | os.PathLike[str], writable: bool = False, in_memory: bool = False) -> Catalog:
        """Map a catalog file into memory, or read it.

        Args:
            path: a file written by :func:`build_catalog`.
            writable: whether :meth:`update` may be called; only for a mapped catalog.
            in_memory: read it into this process's memory instead, in huge pages if the system grants them: random ids
                are then scored about 10 % faster, and updates of the file are not seen.

        Raises:
            CatalogError: the file is missing, damaged, foreign, or newer than this package.
            ValueError: both ``writable`` and ``in_memory``.
        """
        _require(not (writable and in_memory), "in_memory", "False where writable is True", in_memory)
        name = os.fspath(path)
        if not Path(path).is_file():
            raise CatalogError(
                f"{name}: must be a catalog file, got {'a directory' if Path(path).is_dir() else 'no file'}"
            )
        try:
            with safe_open(name, framework="np") as file:  # checks sizes and offsets
                facts = _facts(file.metadata())
            tensors, start = _header(Path(path))
            arrays = {key: _mapped(Path(path), start, tensors, key, writable) for key in ("table", "scales")}
            if in_memory:
                arrays = {key: _copied(array) for key, array in arrays.items()}
        except (SafetensorError, OSError) as error:
            raise CatalogError(f"{name}: must be a whole safetensors file, got {error}") from None
        except ValueError as error:
            raise CatalogError(f"{name}: {error}") from None
        table = Table(arrays["table"], arrays["scales"])
        return cls(Path(path), table, facts["element"], facts["item_features"], facts["weights"], writable)

    def update(self, model: Bundle | ResFlow, ids: ArrayLike, items: ArrayLike) -> None:
        """Replace some items' rows, in the file, without a rebuild.

        A process that scores meanwhile may read a row that is partly old and partly new.

        Args:
            model: the model that the catalog was built with.
            ids: int ``[n]``, positions in the catalog.
            items: float32 ``[n, Di]``, their new input rows.

        Raises:
            CatalogError: the catalog is not writable, or was built with other weights.
            ValueError: an id out of range, or items of the wrong number or width.
        """
        if not self.writable:
            raise CatalogError(f"{self.path}: must be opened with writable=True to update, got a read-only catalog")
        projection = _Projection.of(model)
        self.check(projection.digest)
        places, rows = np.asarray(ids), np.asarray(items)
        _require(
            places.ndim == 1 and np.issubdtype(places.dtype, np.integer), "ids", "a vector of integers", places.dtype
        )
        outside = places[(places < 0) | (places >= len(self))]
        _require(not len(outside), "ids", f"0 to {len(self) - 1}", outside[:1].tolist())
        fits = rows.ndim == 2 and rows.shape == (len(places), self.item_features)
        _require(fits, "items", f"of shape {[len(places), self.item_features]}", list(rows.shape))
        for start in range(0, len(places), _BLOCK_ITEMS):
            part = slice(start, start + _BLOCK_ITEMS)
            made = projection.rows(rows[part], self.dtype)
            self.table.rows[places[part]] = made.rows
            if self.dtype == "int8":
                self.table.scales[places[part]] = made.scales
        for array in self.table:
            if isinstance(array, np.memmap):
                array.flush()

    def check(self, weights: str) -> None:
        """Refuse a model whose weights are not those that the catalog was built with.

        Raises:
            CatalogError: ``weights`` is another digest (:func:`resflow_kernels.serving.bundle.weights_digest`).
        """
        if weights != self.weights:
            raise CatalogError(
                f"{self.path}: must be built with the model's weights ({weights}), got one built with {self.weights}"
            )


def build_catalog(
    model: Bundle | ResFlow,
    items: NDArray[np.float32] | Iterable[NDArray[np.float32]],
    path: str | os.PathLike[str],
    dtype: str = "bfloat16",
) -> Catalog:
    """Write the catalog of a model's items; the file appears complete or not at all.

    Args:
        model: a bundle or a torch module; the products are computed in float32 whatever its precision.
        items: float32 ``[M, Di]``, the last ``Di`` columns of the input row, or an iterable of such blocks, which is
            read once and never kept in memory.
        path: the file; replaced if it exists.
        dtype: how rows are stored: ``"float32"``, ``"bfloat16"`` (recommended) or ``"int8"`` (one scale per row: a
            quarter of float32's memory, 2 to 4 times bfloat16's error).

    Returns:
        The opened catalog.

    Raises:
        ValueError: an unknown dtype, or a block of the wrong width or dtype.
        OSError: the file cannot be written.

    Example:
        >>> catalog = build_catalog(bundle.load("ranker.safetensors"), items, "items.catalog")  # doctest: +SKIP
        >>> scorer.catalog_topk(user, ids, offsets, catalog, k=100)  # doctest: +SKIP
    """
    _require(dtype in TABLE_PRECISIONS, "dtype", f"one of {', '.join(TABLE_PRECISIONS)}", repr(dtype))
    projection = _Projection.of(model)
    blocks: Iterable[NDArray[np.float32]] = [items] if isinstance(items, np.ndarray) else items
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        _write(file, projection, blocks, dtype)
    return Catalog.open(path)


@dataclass(frozen=True, eq=False)
class _Projection:
    """The items' part of a model's first layers, in float32."""

    plan: AnyPlan
    packed: NDArray[np.uint8]
    digest: str

    @classmethod
    def of(cls, model: Any) -> _Projection:
        if isinstance(model, Bundle):
            weights: list[NDArray[np.float32]] = list(model.weights)
        elif hasattr(model, "canonical_weights"):
            weights = [weight.detach().cpu().numpy() for weight in model.canonical_weights()]
        else:
            _require(False, "model", "a Bundle or a ResFlow", type(model).__name__)
        plan: AnyPlan = model.plan if isinstance(model, Bundle) else model.served_plan
        plan = replace(plan, precision="float32")
        return cls(plan, compiled().pack_towers(weights, plan.encoded), weights_digest(weights))

    def rows(self, items: NDArray[np.float32], dtype: str) -> Table:
        return Table(*compiled().catalog_rows(items, self.packed, self.plan.encoded, PRECISION_ROWS[dtype].code))


def _write(file: BinaryIO, projection: _Projection, blocks: Iterable[Any], dtype: str) -> None:
    file.write(b"\0" * _HEADER_BYTES)
    scales: list[NDArray[np.float32]] = []
    count, width = 0, None
    for block in blocks:
        rows = np.asarray(block)
        _require(rows.ndim == 2, "items", "matrices [n, Di]", list(rows.shape))
        _require(width in (None, rows.shape[1]), "items", f"of one width ({width})", rows.shape[1])
        width = rows.shape[1]
        for start in range(0, len(rows), _BLOCK_ITEMS):
            made = projection.rows(rows[start : start + _BLOCK_ITEMS], dtype)
            file.write(made.rows.data)
            scales.append(made.scales)
        count += len(rows)
    _require(width is not None, "items", "at least one block, to tell their width", "none")
    held = np.concatenate(scales) if scales else np.zeros(0, np.float32)
    file.write(held.data)
    facts = {
        "format": FORMAT,
        "version": VERSION,
        "element": dtype,
        "item_features": width,
        "weights": projection.digest,
    }
    assert width is not None  # _require has seen a block
    columns = projection.plan.table_width_of(width)
    table_bytes = count * columns * _NUMPY[dtype].itemsize
    header = {
        "__metadata__": {"resflow": json.dumps(facts)},
        "table": {
            "dtype": _DTYPES[dtype],
            "shape": [count, columns],
            "data_offsets": [0, table_bytes],
        },
        "scales": {"dtype": "F32", "shape": [len(held)], "data_offsets": [table_bytes, table_bytes + held.nbytes]},
    }
    text = json.dumps(header).encode().ljust(_HEADER_BYTES - 8)
    file.seek(0)
    file.write(struct.pack("<Q", len(text)) + text)


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """A safetensors file's tensors, and the offset of their data."""
    with open(path, "rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        return json.loads(file.read(size)), 8 + size


def _mapped(path: Path, start: int, tensors: dict[str, Any], name: str, writable: bool) -> NDArray[Any]:
    if name not in tensors:
        raise ValueError(f"tensor {name} must be in the file, got none")
    shape, (first, last) = tuple(tensors[name]["shape"]), tensors[name]["data_offsets"]
    dtype = next((key for key, stored in _DTYPES.items() if stored == tensors[name]["dtype"]), None)
    if dtype is None:
        raise ValueError(f"{name} must be float32, bfloat16 or int8, got {tensors[name]['dtype']}")
    if first == last:
        return np.zeros(shape, _NUMPY[dtype])
    mode: Literal["r", "r+"] = "r+" if writable else "r"
    return np.memmap(path, _NUMPY[dtype], mode, start + first, shape)


def _copied(mapped: NDArray[Any]) -> NDArray[Any]:
    """A copy in memory allocated by NumPy, which requests huge pages from 4 MB on."""
    copy = np.empty(mapped.shape, mapped.dtype)
    np.copyto(copy, mapped)
    return copy


def _facts(metadata: dict[str, str] | None) -> dict[str, Any]:
    if not metadata or "resflow" not in metadata:
        raise ValueError(f"must be a {FORMAT} file, got a safetensors file without 'resflow' in its metadata")
    facts = json.loads(metadata["resflow"])
    form = facts.get("format") if isinstance(facts, dict) else facts
    if form != FORMAT:
        raise ValueError(f"format must be {FORMAT!r}, got {form!r}")
    if facts.get("version") != VERSION:
        raise ValueError(f"version must be {VERSION} (this package reads no other), got {facts.get('version')!r}")
    kinds = {"element": str, "item_features": int, "weights": str}
    for key, kind in kinds.items():
        if not isinstance(facts.get(key), kind):
            raise ValueError(f"metadata {key} must be {kind.__name__}, got {facts.get(key)!r}")
    return facts


def _require(holds: bool, argument: str, expected: str, got: object) -> None:
    if not holds:
        raise ValueError(f"catalog: {argument} must be {expected}, got {got}")
