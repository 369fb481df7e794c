"""A model's embedding tables as those of a bundle's features: which is whose, and which row is whose value."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from ..data.features import Feature
from .arguments import words_of
from .graph.dots import is_tensor, kind_of, where
from .graph.reach import Reach
from .graph.trace import Traced
from .patterns import CannotFuse

Vocabularies = Mapping[str, Mapping[Any, int] | Sequence[Any]]
Floats = NDArray[np.float32]


@dataclass
class LookUp:
    """A look-up of a table by what a feature's column holds."""

    node: fx.Node
    path: str  # the table's module
    table: Tensor
    leaf: int  # of the call
    columns: tuple[int, ...]  # of that leaf
    offset: int  # of the feature's rows in the table
    pooled: bool  # a list of ids, summed
    padding: int | None


def read_look_ups(
    name: str, traced: Traced, reach: Reach, tensors: Mapping[str, Tensor], node: fx.Node
) -> list[LookUp]:
    """What a region's input looks up: one row, a list, or a row for each of several columns.

    Raises:
        CannotFuse: it is no look-up of ids that the call holds.
    """
    call: Any = node.args[0] if node.target is operator.getitem else node
    kind = kind_of(call)
    const = traced.constants.get(call.args[0]) if kind in ("embedding", "embedding_bag") else None
    if const is None or const.op != "tensor":
        what = where(node) if node.op == "call_function" else f"the input {node.name}"
        raise CannotFuse(f"{name}: it reads {what}; a bundle's features are ids, lists of ids and buckets, looked up")
    path = traced.tensors[const.args[0]]
    index: Any = call.args[1]
    padding = None
    bag = kind == "embedding_bag"
    if bag:
        padding = _checked_bag(name, call)
    elif len(call.args) > 2 and isinstance(call.args[2], int) and call.args[2] >= 0:
        padding = call.args[2]
    numbers = reach.moved(index)
    if numbers is None:
        raise CannotFuse(f"{name}: rows of {path} are computed by {where(index)}; a bundle looks ids up as they are")
    leaf, first = _leaf_of(reach, traced, int(numbers.flatten()[0]))
    values = reach.values[traced.inputs[leaf]]  # type: ignore[index]
    per = max(1, values[0].numel()) if values.dim() > 1 else 1
    shape = (1, -1) if bag else (len(numbers), -1)
    columns = ((numbers - first) % per).reshape(shape)
    shifts = (reach.values[index] - values.flatten()[numbers - first].long()).reshape(shape)
    if bag:
        columns, shifts = columns.unique()[None], shifts.unique()[None]
    if (columns != columns[0]).any() or (shifts != shifts[0]).any() or (bag and shifts.numel() != 1):
        raise CannotFuse(f"{name}: {where(call)} does not look the same columns up for all candidates")
    parts = [tuple(columns[0].tolist())] if bag else [(column,) for column in columns[0].tolist()]
    found = (node, path.rpartition(".")[0], tensors[path], leaf)
    pairs = zip(parts, shifts[0].tolist(), strict=True)
    return [LookUp(*found, own, shift, bag, padding) for own, shift in pairs]


def _checked_bag(name: str, call: fx.Node) -> int | None:
    """An EmbeddingBag's padding_idx, if it sums."""
    schema = call.target._schema.arguments  # type: ignore[union-attr]
    given = {one.name: one.default_value for one in schema if one.has_default_value()}
    given |= dict(zip((one.name for one in schema), call.args, strict=False)) | dict(call.kwargs)
    if given["mode"] != 0 or given.get("per_sample_weights") is not None:
        raise CannotFuse(f"{name}: {where(call)} must sum the rows of a list for a bundle (mode='sum', no weights)")
    padding = given.get("padding_idx")
    return padding if isinstance(padding, int) and padding >= 0 else None


def _leaf_of(reach: Reach, traced: Traced, element: int) -> tuple[int, int]:
    """Which leaf of the call an element is of, and the number of its first element."""
    starts = [(reach.first[node], at) for at, node in enumerate(traced.inputs) if node is not None and is_tensor(node)]
    first, leaf = max(start for start in starts if start[0] <= element)
    return leaf, first


def feature_of(
    name: str,
    look_up: LookUp,
    features: Sequence[Feature],
    names: Sequence[str],
    inputs: Mapping[str, str | int],
    tables: Mapping[str, str],
) -> int:
    """Which feature a look-up is of: by the input that it reads, or by its table's module.

    Raises:
        CannotFuse: it is of none, or could be of several.
    """
    words = words_of(names[look_up.leaf])
    found: list[int] = []
    for at, feature in enumerate(features):
        wanted = inputs.get(feature.name, feature.name)
        if isinstance(wanted, int):
            matches = look_up.columns == (wanted,)
        else:
            matches = wanted in words and (feature.name in inputs or wanted == words[-1])
        by_table = feature.name in tables and feature.name not in inputs and tables[feature.name] == look_up.path
        if matches or by_table:
            found.append(at)
    if len(found) != 1:
        got = ", ".join(features[at].name for at in found) or "none"
        raise CannotFuse(
            f"{name}: the table {look_up.path}, looked up by {names[look_up.leaf]} (columns {list(look_up.columns)}), "
            f"must be of one feature, got {got}; name it by inputs= or tables="
        )
    feature = features[found[0]]
    if look_up.pooled != (feature.kind == "ids"):
        wanted = "'ids', the model sums a list," if look_up.pooled else "'id' or 'bucket', the model looks up one row,"
        raise CannotFuse(f"{name}: the kind of feature {feature.name} must be {wanted} got {feature.kind!r}")
    return found[0]


def rows_of(look_up: LookUp, others: Sequence[LookUp]) -> Floats:
    """The rows of a feature's part of a table that several features may share by offsets."""
    starts = sorted({one.offset for one in others if one.table is look_up.table} | {len(look_up.table)})
    end = next(start for start in starts if start > look_up.offset)
    with torch.no_grad():
        rows = look_up.table[look_up.offset : end].float().cpu().clone()
    if look_up.padding is not None and look_up.pooled:
        rows[look_up.padding - look_up.offset] = 0
    made: Floats = rows.numpy()
    return made


def placed(feature: Feature, tables: Sequence[Floats], vocabularies: Vocabularies) -> tuple[Feature, Floats]:
    """A feature with its vocabulary and its table, in which row 0 is of unknown values.

    Args:
        feature: as the user declared it; its ``dim`` becomes the tables' width.
        tables: the model's, side by side.
        vocabularies: the values of the model's rows by feature, as :func:`resflow_kernels.bundle.from_model` has them.

    Raises:
        ValueError: values and rows do not match.
    """
    count = min(map(len, tables))
    table = np.concatenate([one[:count] for one in tables], axis=1)
    feature = replace(feature, dim=table.shape[1])
    zeros = np.zeros((1, table.shape[1]), np.float32)
    who = f"feature {feature.name!r}"
    if feature.kind == "bucket":
        if not feature.fitted:
            raise ValueError(f"{who}: boundaries must be given for a bucket, got None")
        if count == feature.rows:
            return feature, table
        if count != feature.rows - 1:
            wanted = f"{feature.rows} rows, or {feature.rows - 1} without one for null"
            raise ValueError(f"{who}: its table must have {wanted}, got {count}")
        return feature, np.concatenate([zeros, table])
    given = vocabularies.get(feature.name)
    if given is None and feature.vocabulary is not None and count > len(feature.vocabulary):
        return feature, table[: feature.rows]
    if given is None:
        given = range(count) if feature.vocabulary is None else list(feature.vocabulary)
    rows = dict(given) if isinstance(given, Mapping) else {value: row for row, value in enumerate(given)}
    values = sorted(rows)
    places = np.array([rows[value] for value in values], np.int64)
    if len(places) and not (places.min() >= 0 and places.max() < count):
        raise ValueError(f"{who}: vocabulary must be of rows 0 to {count - 1}, got {places.min()} to {places.max()}")
    strings = bool(values) and isinstance(values[0], str)
    known = tuple(values) if strings else np.array(values, np.int64)
    unknown = zeros if 0 in places or not count else table[:1]
    return replace(feature, vocabulary=known), np.concatenate([unknown, table[places]])
