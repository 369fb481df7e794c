"""Cuts drafts into regions: all that one pass can compute, between what stays the user's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import fx

from .lowering import Lowering
from .rows import Draft, Root, Rows, Size, values_of


@dataclass(eq=False)
class Region:
    """Drafts that one call computes; ``outputs`` are the nodes that others read."""

    level: int
    batch: tuple[Size, ...]
    drafts: list[int]
    outputs: list[fx.Node] = field(default_factory=list)
    exports: list[int] = field(default_factory=list)  # drafts that later regions read


@dataclass
class Cut:
    """What is left of a graph: regions, and the user's nodes in order."""

    regions: list[Region]
    kept: dict[fx.Node, int]  # the user's own in the graph's order, and after how many levels of regions each comes
    of_draft: dict[int, Region]


class Cutter:
    """Finds what is needed of a lowering, and which region computes it."""

    def __init__(self, low: Lowering) -> None:
        self.low = low
        self.needed: set[int] = set()  # drafts
        self.kept: set[fx.Node] = set()
        self.wanted: dict[fx.Node, None] = {}  # nodes that regions give to the user's graph
        self._pending: list[fx.Node] = []
        self._joined: set[fx.Node] = set()  # nodes that join what several regions compute

    def cut(self) -> Cut:
        while True:
            self.needed, self.kept, self.wanted = set(), set(), {}
            self._pending = [*next(iter(self.low.graph.find_nodes(op="output"))).all_input_nodes, *self._joined]
            while self._pending:
                self._want(self._pending.pop())
            levels, depths = self._levels()
            levels = self._sunk(levels)
            regions: dict[Any, Region] = {}
            of_draft: dict[int, Region] = {}
            for place in sorted(self.needed):
                draft = self._draft(place)
                key = (levels[place], draft.batch)
                region = regions.setdefault(key, Region(levels[place], draft.batch, []))
                region.drafts.append(place)
                of_draft[place] = region
            if self._placed_outputs(of_draft):
                break
        for place, region in of_draft.items():
            for value in self._read(place):
                if value in of_draft and of_draft[value] is not region and value not in of_draft[value].exports:
                    of_draft[value].exports.append(value)
        kept = {node: depths[node] for node in self.low.graph.nodes if node in self.kept}
        return Cut(sorted(regions.values(), key=lambda region: region.level), kept, of_draft)

    def _placed_outputs(self, of_draft: dict[int, Region]) -> bool:
        """Tell each region what the user's graph reads of it; ``False``: some node is of several regions."""
        for node in self.wanted:
            owners = {id(of_draft[place]): of_draft[place] for place in self._drafts_in(self.low.env[node])}
            if len(owners) != 1:  # the user's own op joins the pieces
                self._joined.add(node)
                return False
            next(iter(owners.values())).outputs.append(node)
        return True

    # What is needed

    def _want(self, node: fx.Node) -> None:
        """Somebody outside of regions reads a node."""
        if node in self.wanted or node in self.kept:
            return
        known = self.low.env.get(node)
        if isinstance(known, Rows) and node not in self._joined and self._all_drafts(known):
            self.wanted[node] = None
            for place in self._drafts_in(known):
                self._need(place)
        else:
            self._keep(node)

    def _keep(self, node: fx.Node) -> None:
        self.kept.add(node)
        self._pending.extend(node.all_input_nodes)

    def _need(self, place: int) -> None:
        stack = [place]
        while stack:
            at = stack.pop()
            if at in self.needed:
                continue
            self.needed.add(at)
            for value in self._read(at):
                made = self.low.values[value]
                if isinstance(made, Root):
                    self._pending.append(made.node)
                else:
                    stack.append(value)

    def _values_in(self, known: Rows) -> list[int]:
        return np.unique(values_of(known.flat)).tolist()

    def _drafts_in(self, known: Any) -> list[int]:
        return [place for place in self._values_in(known) if isinstance(self.low.values[place], Draft)]

    def _all_drafts(self, known: Rows) -> bool:
        return all(isinstance(self.low.values[place], Draft) for place in self._values_in(known))

    def _draft(self, place: int) -> Draft:
        made = self.low.values[place]
        assert isinstance(made, Draft)
        return made

    # Levels: how many of the user's own parts come before

    def _levels(self) -> tuple[dict[int, int], dict[fx.Node, int]]:
        levels: dict[int, int] = {}
        depths: dict[fx.Node, int] = {}
        for node in self.low.graph.nodes:
            for place in self.low.drafts_of.get(node, ()):
                if place in self.needed:
                    levels[place] = max((self._before(value, levels, depths) for value in self._read(place)), default=0)
            if node in self.wanted:
                depths[node] = 1 + max(levels[place] for place in self._drafts_in(self.low.env[node]))
            elif node in self.kept:
                depths[node] = max((depths.get(source, 0) for source in node.all_input_nodes), default=0)
        return levels, depths

    def _before(self, value: int, levels: dict[int, int], depths: dict[fx.Node, int]) -> int:
        made = self.low.values[value]
        return depths[made.node] if isinstance(made, Root) else levels[value]

    def _read(self, place: int) -> list[int]:
        """Values that a draft reads."""
        found: set[int] = set()
        for ids in self._draft(place).reads():
            found.update(np.unique(values_of(ids)).tolist())
        return sorted(found)

    def _sunk(self, levels: dict[int, int]) -> dict[int, int]:
        """Steps that only a later region reads belong to that one."""
        last = dict.fromkeys(levels, -1)
        most = max(levels.values(), default=0)
        readers: dict[int, list[int]] = {place: [] for place in levels}
        for place in levels:
            for value in self._read(place):
                if value in readers:
                    readers[value].append(place)
        outside = {place for node in self.wanted for place in self._drafts_in(self.low.env[node])}
        for place in sorted(levels, reverse=True):
            batch = self._draft(place).batch
            users = [last[reader] if self._draft(reader).batch == batch else levels[place] for reader in readers[place]]
            last[place] = levels[place] if place in outside or not users else max(levels[place], min([*users, most]))
        return last
