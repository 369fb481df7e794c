"""Tells a two-tower model's sides apart, and writes what makes each side's vectors into its graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from ..arguments import words_of
from ..patterns import CannotFuse
from .dots import Ending, Term, Vectors, joined_dim, kind_of, unscaled, where
from .reach import Reach
from .sides import SideWriter
from .trace import Traced


class Split:
    """A graph's two sides: what each reads, and its columns.

    Args:
        name: the model's, for messages.
        traced: its graph.
        reach: what the graph's nodes read.
        names: of the call's leaves, for messages.
    """

    def __init__(self, name: str, traced: Traced, reach: Reach, names: Sequence[str]) -> None:
        self.name, self.traced, self.reach, self.names = name, traced, reach, names
        self.sides: list[int] = []  # the elements that the user's and the item's side read

    def find(self, endings: Sequence[Ending], user: str | None) -> None:
        """Divide what is read by the first product of two sides."""
        pairs = [term.pair for ending in endings for term in ending.terms if term.pair is not None]
        for pair in pairs:
            read = [self.reach.of(one.node) for one in pair]
            if all(read) and not read[0] & read[1]:
                self.sides = read[::-1] if self._swapped(pair, read, user) else read
                return
        if pairs:
            first, second = pairs[0]
            both = self.reach.of(first.node) & self.reach.of(second.node)
            raise CannotFuse(
                f"{self.name}: the factors of its product, {where(first.node)} and {where(second.node)}, "
                + (f"both read {self._spoken(both)}" if both else "do not both read inputs")
                + "; in a two-tower model each reads inputs of its own"
            )
        last = next((term.number for ending in endings for term in ending.terms if term.number is not None), None)
        what = "a number" if last is None else where(unscaled(last))
        raise CannotFuse(
            f"{self.name}: it ends in {what}, which is no dot product or cosine of a user's and an item's vectors; "
            "fuse takes such models"
        )

    def _swapped(self, pair: tuple[Vectors, Vectors], read: Sequence[int], user: str | None) -> bool:
        """Whether the second factor is the user's."""
        if user is None:
            return _several(pair[0]) and not _several(pair[1])
        named = self._elements_of(user)
        if not named & (read[0] | read[1]):
            raise CannotFuse(f"{self.name}: user must be what a factor of the product reads, got {user!r}")
        return bool(named & read[1]) and not named & read[0]

    def of_the_item(self, endings: Sequence[Ending]) -> list[Ending]:
        """The outputs without those of negatives: the user's vectors with what neither side reads."""

        def known(ending: Ending) -> bool:
            read = [self.reach.of(one.node) for term in ending.terms if term.pair is not None for one in term.pair]
            return all(own & (self.sides[0] | self.sides[1]) for own in read if own)

        return [ending for ending in endings if known(ending)]

    def side(self, node: fx.Node) -> int | None:
        """0: the user's; 1: the item's; ``None``: it depends on parameters alone."""
        read = self.reach.of(node)
        if not read:
            return None
        met = [bool(read & side) for side in self.sides]
        if all(met):
            raise CannotFuse(
                f"{self.name}: {where(node)} reads inputs of both sides, the user's "
                f"{self._spoken(read & self.sides[0])} and the item's {self._spoken(read & self.sides[1])}"
            )
        found = 1 if met[1] else 0
        self.sides[found] |= read
        return found

    def write(self, endings: Sequence[Ending]) -> list[SideWriter]:
        """Add both sides' columns to the graph, task after task, all tasks as wide."""
        writers = [SideWriter(self.traced.graph, side) for side in ("user", "item")]
        begun: list[list[int]] = []
        widths: list[int] = []
        for ending in endings:
            if all(term.pair is None for term in ending.terms):
                raise CannotFuse(f"{self.name}: one of its outputs is no product of two sides")
            begun.append([len(writer.columns) for writer in writers])
            terms = sorted(ending.terms, key=lambda term: term.pair is None)
            widths.append(sum(self._term(term, writers) for term in terms))
        self._pad(writers, begun, widths)
        return writers

    def _term(self, term: Term, writers: Sequence[SideWriter]) -> int:
        """A term's columns on both sides; returns how many."""
        times: list[list[Any]] = [[], []]
        over: list[list[fx.Node]] = [[], []]
        for kind, factors in ((times, term.times), (over, term.over)):
            for factor in factors:
                kind[(self.side(factor) if isinstance(factor, fx.Node) else None) or 0].append(factor)
        if term.pair is None:
            side = (self.side(term.number) if term.number is not None else None) or 0
            for at, writer in enumerate(writers):
                writer.number(term.number if at == side else None, times[at], over[at])
            return 1
        first, second = term.pair
        sides = [self.side(one.node) for one in (first, second)]
        if sides == [1, 0]:
            first, second = second, first
        elif sides != [0, 1]:
            raise CannotFuse(f"{self.name}: {where(first.node)} meets {where(second.node)} of the same side")
        writers[0].vectors(first, times[0], over[0])
        writers[1].vectors(_first_group(second), times[1], over[1])
        return first.width

    def _pad(self, writers: Sequence[SideWriter], begun: Sequence[Sequence[int]], widths: Sequence[int]) -> None:
        """Columns of zeros after the tasks with fewer than the widest one has."""
        for at, writer in enumerate(writers):
            ends = [*(places[at] for places in begun[1:]), len(writer.columns)]
            for width, end in reversed(list(zip(widths, ends, strict=True))):
                if width < max(widths):
                    zeros = writer.call(torch.ops.aten.mul.Tensor, writer.one(), 0.0)
                    writer.columns[end:end] = [zeros] * (max(widths) - width)

    def _elements_of(self, name: str) -> int:
        """What is read of an argument, or of a key of one."""
        found = 0
        for own, node in zip(self.names, self.traced.inputs, strict=True):
            if node is not None and name in words_of(own):
                found |= self.reach.of(node)
        if not found:
            known = ", ".join(self.names)
            raise CannotFuse(f"{self.name}: user must be an argument or a key, one of {known}, got {name!r}")
        return found

    def _spoken(self, elements: int) -> str:
        """The inputs that elements are of."""
        nodes = zip(self.names, self.traced.inputs, strict=True)
        found = [name for name, node in nodes if node is not None and self.reach.of(node) & elements]
        return ", ".join(found[:4]) + (f" and {len(found) - 4} more" if len(found) > 4 else "")


def _first_group(factor: Vectors) -> Vectors:
    """Of items joined one after another, the first: the others are a training's negatives."""
    node = factor.node
    if len(node.meta["val"].shape) != 3 or kind_of(node) != "cat":
        return factor
    if joined_dim(node) in (0, factor.dim):
        return factor
    return Vectors(node.args[0][0], factor.dim, factor.length)  # type: ignore[index, arg-type]


def _several(factor: Vectors) -> bool:
    """Whether there are several vectors for each candidate."""
    shape = factor.node.meta["val"].shape
    return len(shape) == 3 and any(size != 1 for at, size in enumerate(shape) if at not in (0, factor.dim))
