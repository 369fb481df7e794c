"""How a region is called in a fused module's source: its input rows, or ids and tables, and where its columns go."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from ...contract import POOLING
from .emit import Emitted, Output, Source
from .keyed import keyed
from .lookups import Columns, Lookup, one_base
from .lowering import Lowering
from .pools import Pool
from .rows import Root, shape_of


class RegionCalls(ABC):
    """The part of the writer that writes regions."""

    low: Lowering
    _names: dict[fx.Node, str]
    _drafts: dict[int, str]
    _tensor_at: dict[fx.Node, int]
    _sizes: dict[str, str]

    @abstractmethod
    def _new(self, prefix: str = "v") -> str:
        """A name that is not used yet."""

    @abstractmethod
    def _add(self, line: str) -> None:
        """Append a line."""

    @abstractmethod
    def _named(self, kind: str, what: Any, prefix: str) -> str:
        """The name of an entry of the table."""

    def _region(self, at: int, emitted: Emitted) -> None:
        lists = ""
        if any(emitted.lookups):
            tables = self._tables(emitted)
            x = f"{self._looked_up(emitted, tables)}, [{', '.join(name for own in tables for name in own)}]"
            lists = self._lists(emitted, tables)
        else:
            x = self._rows(emitted.sources)
        made = self._new("r")
        self._add(f"{made} = run{at}({x}, p[{at}]{lists})")
        self._take(made, emitted.outputs)

    def _tables(self, emitted: Emitted) -> list[list[str]]:
        """The tables of each source; what is no table is one of which each candidate has a row."""
        tables: list[list[str]] = []
        for source, lookup in zip(emitted.sources, emitted.lookups, strict=True):
            if lookup is None:
                tables.append([self._assigned(f"matrix({self._rows([source])})")])
            else:
                count = lookup.count if isinstance(lookup, Lookup) else 1
                tables.append([f"t[{self._tensor_at[lookup.table]}]"] * count)
        return tables

    def _looked_up(self, emitted: Emitted, tables: list[list[str]]) -> str:
        """A region's ids ``[B, tables without lists]``, as the feature form takes them."""
        single = [
            (lookup, own[0])
            for lookup, own in zip(emitted.lookups, tables, strict=True)
            if not isinstance(lookup, Pool)
        ]
        if not single:
            return f"no_ids({self._candidates([one for one in emitted.lookups if isinstance(one, Pool)])})"
        base = one_base(emitted.lookups)
        if base is not None:
            parts = self._by_base(base, single)
        else:
            parts = [f"places({table}.shape[0])" if one is None else self._column(one.ids) for one, table in single]
        ids = self._assigned(f"cat([{', '.join(parts)}], 1)" if len(parts) > 1 else parts[0])
        if any(one is not None and one.ids.meta["val"].dtype != torch.int64 for one, _ in single):
            ids = self._assigned(f"{ids}.long()")
        return ids

    def _column(self, ids: fx.Node) -> str:
        return self._names[ids] if len(shape_of(ids) or ()) == 2 else f"{self._names[ids]}.unsqueeze(1)"

    def _candidates(self, pools: Sequence[Pool]) -> str:
        """The number of lists that each feature has."""
        whole = keyed(pools)
        return self._count_of(pools[0]) if whole is None else f"{self._names[whole.lengths]}.shape[0] // {len(pools)}"

    def _count_of(self, pool: Pool) -> str:
        """The number of a feature's lists."""
        lists = pool.values if pool.offsets is None else pool.offsets
        return f"{self._names[lists]}.shape[0]{' - 1' if pool.ends else ''}"

    def _lists(self, emitted: Emitted, tables: list[list[str]]) -> str:
        """A region's lists: ids, offsets, weights, then which tables have one, how it is pooled, and its padding id."""
        pools = [one for one in emitted.lookups if isinstance(one, Pool)]
        if not pools:
            return ""
        places, at = [], 0
        for lookup, own in zip(emitted.lookups, tables, strict=True):
            places += [at] if isinstance(lookup, Pool) else []
            at += len(own)
        how = places, [POOLING.index(one.mode) for one in pools], [one.mask.padding for one in pools]
        return f", {self._values(pools)}, {', '.join(map(str, how))}"

    def _values(self, pools: Sequence[Pool]) -> str:
        """The ids, offsets and weights of lists, one feature after another."""
        whole = keyed(pools)
        if whole is not None:
            weights = "None" if whole.weights is None else self._names[whole.weights]
            return f"{self._integers(whole.values)}, starts({self._names[whole.lengths]}), {weights}"
        values = [self._integers(one.values) + (".reshape(-1)" if one.offsets is None else "") for one in pools]
        lengths = [one.length for one in pools]
        weighted = any(one.mask.weights is not None or one.divisor is not None for one in pools)
        if weighted or None in lengths:
            values = [self._assigned(one) for one in values]
        if None not in lengths:
            offsets = f"evenly({self._count_of(pools[0])}, {(*lengths,)})"
        else:
            sizes = ", ".join(f"{one}.shape[0]" for one in values)
            offsets = f"joined([{', '.join(map(self._begins, pools))}], {self._count_of(pools[0])}, [{sizes}])"
        weights = "None"
        if weighted:
            weights = _joined([self._weights(one, ids) for one, ids in zip(pools, values, strict=True)])
        return f"{_joined(values)}, {offsets}, {weights}"

    def _begins(self, pool: Pool) -> str:
        """Where the lists of a feature begin."""
        if pool.offsets is None:
            return f"evenly({self._count_of(pool)}, {(pool.length,)})"
        return self._integers(pool.offsets)

    def _weights(self, pool: Pool, values: str) -> str:
        """The weights of a feature's ids, given those."""
        weights, length = pool.mask.weights, pool.length
        factor = "" if weights is None else self._names[weights]
        if weights is not None and weights.meta["val"].dtype != torch.float32:
            factor += ".float()"
        if pool.divisor is None:
            return f"{factor}.reshape(-1)" if factor else f"ones({values}.shape[0])"
        divisor = f"{self._names[pool.divisor]}.reshape(-1, 1)"
        if not factor:
            return f"{divisor}.reciprocal().expand(-1, {length}).reshape(-1)"
        return f"({factor}.reshape(-1, {length}) / {divisor}).reshape(-1)"

    def _integers(self, node: fx.Node) -> str:
        return self._names[node] + ("" if node.meta["val"].dtype == torch.int64 else ".long()")

    def _by_base(self, base: Columns, single: Sequence[tuple[Lookup | None, str]]) -> list[str]:
        """The ids of all tables from one matrix: its columns in one step, and places for what is no table."""
        name, columns = self._names[base.base], base.columns
        if columns == tuple(range(columns[0], columns[0] + len(columns))):
            expression = f"{name}[:, {columns[0]}:{columns[0] + len(columns)}].long()"
        else:
            chosen = self._named("value", torch.tensor(columns), "c")
            expression = f"{name}.index_select(1, {chosen}).long()"
        looked = self._assigned(expression)
        if all(lookup for lookup, _ in single):
            return [looked]
        parts: list[str] = []
        at = begun = 0
        for lookup, table in single:
            if lookup is not None:
                at += lookup.count
                continue
            if at > begun:
                parts.append(f"{looked}[:, {begun}:{at}]")
            parts.append(f"places({table}.shape[0])")
            begun = at
        return [*parts, f"{looked}[:, {begun}:{at}]"] if at > begun else parts

    def _rows(self, sources: Sequence[Source]) -> str:
        """The region's input rows ``[B, D]``."""
        shaped: list[tuple[str, tuple[int, ...], int]] = []
        for source in sources:
            value = self.low.values[source.value]
            if source.node is None:
                shaped.append((self._drafts[source.value], (source.width,), 1))
                continue
            assert isinstance(value, Root)
            shape = shape_of(source.node)
            assert shape is not None
            rank, name = len(value.batch), self._names[source.node]
            row = [axis for axis in range(len(shape)) if axis not in value.axes]
            if value.axes != tuple(range(rank)):
                name = f"{name}.permute({[*value.axes, *row]})"
            shaped.append((name, tuple(int(shape[axis]) for axis in row), rank))
        deep = [one for one in shaped if one[2] == 1 and len(one[1]) == 2 and one[1][0] == 1]
        if len(deep) > 2 and all(one in deep or (one[2] == 1 and len(one[1]) == 1) for one in shaped):
            parts = [name if len(shape) == 2 else f"{name}.unsqueeze(1)" for name, shape, _ in shaped]
            return self._assigned(f"cat([{', '.join(parts)}], 2).flatten(1)")
        parts = [_flat(name, shape, rank) for name, shape, rank in shaped]
        return parts[0] if len(parts) == 1 else self._assigned(f"cat([{', '.join(parts)}], 1)")

    def _assigned(self, expression: str) -> str:
        name = self._new("x")
        self._add(f"{name} = {expression}")
        return name

    def _take(self, made: str, outputs: Sequence[Output]) -> None:
        if len(outputs) == 1:
            self._place(made, outputs[0], outputs[0].width)
            return
        parts = [self._new() for _ in outputs]
        self._add(f"{', '.join(parts)} = {made}.split_with_sizes([{', '.join(str(one.width) for one in outputs)}], 1)")
        for part, output in zip(parts, outputs, strict=True):
            self._place(part, output, 0)

    def _place(self, name: str, output: Output, whole: int) -> None:
        if output.node is None:
            assert output.draft is not None
            self._drafts[output.draft] = name
            return
        known = self.low.env[output.node]
        shape, rank = known.row_shape, len(known.batch)
        expression = name
        if shape == ():
            expression += ".squeeze(1)"
        elif len(shape) > 1:
            expression += f".unflatten(1, {list(shape)})"
        if rank > 1:
            first = [self._size(known.batch[0]), *(self._size(one) for one in known.batch[1:])]
            expression += f".unflatten(0, [-1, {', '.join(first[1:])}])"
        order = [axis for axis in range(known.ids.ndim) if axis not in known.axes]
        places = [*known.axes, *order]
        if places != sorted(places):
            expression += f".permute({[places.index(axis) for axis in range(known.ids.ndim)]})"
        if expression == name:
            self._names[output.node] = name
        else:
            own = self._names[output.node] = self._new()
            self._add(f"{own} = {expression}")

    def _size(self, size: int | str) -> str:
        return self._sizes.get(size, "-1") if isinstance(size, str) else str(size)


def _joined(vectors: Sequence[str]) -> str:
    return f"{vectors[0]}.contiguous()" if len(vectors) == 1 else f"cat([{', '.join(vectors)}])"


def _flat(name: str, shape: tuple[int, ...], rank: int) -> str:
    if rank == 1:
        return name if len(shape) == 1 else f"{name}.unsqueeze(1)" if not shape else f"{name}.flatten(1)"
    width = 1
    for size in shape:
        width *= size
    return f"{name}.reshape(-1, {width})"
