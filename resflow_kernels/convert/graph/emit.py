"""A region as a tile program: its inputs one after another, its steps, its weights and its outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
from torch import fx

from ...core.program import Program, ProgramBuilder, Row, Segment, Step, joined
from .constants import Const, numbers
from .lowering import Lowering
from .regions import Region
from .rows import Draft, Ids, Root, columns_in, ids_of, runs, values_of
from .simplify import Simplifier

_LONGEST_SUM = 2048  # columns of a linear step; a longer one is computed in parts
_PART = 512


@dataclass(frozen=True)
class Source:
    """What a region reads: a node's tensor, or what an earlier region computed of a draft."""

    value: int
    node: fx.Node | None
    width: int


@dataclass(frozen=True)
class Output:
    """Columns of a region's result: a node's tensor, or a draft that later regions read."""

    node: fx.Node | None
    draft: int | None
    column: int
    width: int


@dataclass
class Emitted:
    """A region's program, what it is called with and what it gives."""

    region: Region
    program: Program
    weights: list[Const]
    sources: list[Source]
    outputs: list[Output]
    lookups: list[Any] = field(default_factory=list)  # per source the table that it is rows of, or None


def emit(low: Lowering, region: Region, order: Callable[[Source], Any] | None = None) -> Emitted:
    """The program of a region; ``order`` sorts its inputs."""
    rows = [low.env[node].flat for node in region.outputs]
    rows += [ids_of(place, low.values[place].width) for place in region.exports]
    drafts: dict[int, Draft] = {}
    for place in region.drafts:
        draft = low.values[place]
        assert isinstance(draft, Draft)
        drafts[place] = draft
    simple = Simplifier(drafts, rows)
    simple.run()
    sources = _sources(low, simple)
    if order is not None:
        sources.sort(key=order)
    writer = _Writer(sources)
    for place in simple.order:
        writer.write(place, simple.drafts[place])
    outputs: list[Output] = []
    placed: Row = ()
    column = 0
    named = [(node, None) for node in region.outputs] + [(None, place) for place in region.exports]
    for (node, draft_place), ids in zip(named, rows, strict=True):
        placed = (*placed, *writer.row(ids))
        outputs.append(Output(node, draft_place, column, len(ids)))
        column += len(ids)
    return Emitted(region, writer.builder.build(joined(placed)), writer.builder.weights, sources, outputs)


def _sources(low: Lowering, simple: Simplifier) -> list[Source]:
    read: set[int] = set()
    for ids in [*simple.outputs, *(one for draft in simple.drafts.values() for one in draft.reads())]:
        read.update(np.unique(values_of(ids)).tolist())
    made: list[Source] = []
    for place in sorted(read - set(simple.drafts)):
        value = low.values[place]
        made.append(Source(place, value.node if isinstance(value, Root) else None, value.width))
    return made


class _Writer:
    """Writes drafts into a ProgramBuilder, one after another."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.builder = ProgramBuilder(sum(source.width for source in sources))
        self._place: dict[int, tuple[int, int]] = {}  # a draft's or source's value and first column there
        column = 0
        for source in sources:
            self._place[source.value] = (0, column)
            column += source.width

    def row(self, ids: Ids) -> Row:
        segments: list[Segment] = []
        for begin, end in runs(ids):
            value, first = self._place[int(values_of(ids[begin : begin + 1])[0])]
            segments.append(Segment(value, first + int(columns_in(ids[begin : begin + 1])[0]), end - begin))
        return joined(segments)

    def one(self, ids: Ids) -> Segment:
        return self.builder.one(self.row(ids))

    def write(self, place: int, draft: Draft) -> None:
        if draft.kind == "linear" and len(draft.inputs) > _LONGEST_SUM:
            draft = self._in_parts(draft)
        step = Step(
            draft.kind,
            draft.width,
            self._mixed(draft) if draft.kind == "mix" else self.row(draft.inputs),
            draft.activation,
            draft.scale is not None,
            1 if draft.kind == "mix" else draft.groups,
            draft.epsilon,
            tuple(self.one(ids) for ids in draft.factors),
            tuple(self.one(ids) for ids in draft.addends),
        )
        (made,) = self.builder.add(step, _weights(draft, step.columns))
        self._place[place] = (made.value, 0)

    def _in_parts(self, draft: Draft) -> Draft:
        """A long sum in parts, which rounds less: what is left is a copy of the last part plus the others."""
        assert draft.weight is not None
        count = -(-len(draft.inputs) // _PART)
        edges = [at * len(draft.inputs) // count for at in range(count + 1)]
        parts: list[Segment] = []
        for begin, end in pairwise(edges):
            last = end == edges[-1]
            bias = draft.bias if last and draft.bias is not None else numbers(0.0, draft.width)
            step = Step("linear", draft.width, self.row(draft.inputs[begin:end]), addends=tuple(parts) if last else ())
            parts += self.builder.add(step, (draft.weight.part(0, begin, end), bias))
        whole = -2 - len(self._place)  # a number of its own, which no value has
        self._place[whole] = (parts[-1].value, 0)
        return replace(draft, kind="copy", inputs=ids_of(whole, draft.width), weight=None, bias=None)

    def _mixed(self, draft: Draft) -> Row:
        gates, values = draft.inputs[: draft.groups], draft.inputs[draft.groups :]
        return (self.one(gates), *(self.one(one) for one in values.reshape(draft.groups, -1)))


def _weights(draft: Draft, columns: int) -> list[Const]:
    made: list[Const] = []
    if draft.kind == "linear":
        assert draft.weight is not None
        made += [draft.weight, draft.bias or numbers(0.0, draft.width)]
    if draft.activation == "prelu":
        assert draft.slope is not None
        made.append(draft.slope)
    if draft.scale is not None:
        assert draft.shift is not None
        made += [draft.scale, draft.shift]
    return made
