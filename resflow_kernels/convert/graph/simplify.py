"""Merges a region's drafts: what follows a layer becomes part of its step, what precedes it part of its weights."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np

from .constants import Const, numbers
from .rows import Draft, Ids, columns_in, ids_of, runs, values_of

_MOST_PIECES = 64


class Simplifier:
    """Drafts of one region by their places, and what is read of them from outside; both change."""

    def __init__(self, drafts: dict[int, Draft], outputs: list[Ids]) -> None:
        self.drafts = {
            place: replace(draft, factors=[*draft.factors], addends=[*draft.addends]) for place, draft in drafts.items()
        }
        self.outputs = outputs
        self._next = max(drafts) + 1
        self._order = {place: float(place) for place in drafts}

    def run(self) -> None:
        self._bypass_copies()
        self._drop_unread()
        self._fold_affines_into_linears()
        self._drop_unread()
        self._split_copies()
        while self._merge_one_round():
            pass
        self._bypass_copies()
        self._drop_unread()

    @property
    def order(self) -> list[int]:
        """Places such that each reads earlier ones."""
        return sorted(self.drafts, key=self._order.__getitem__)

    # Who reads what

    def _readers(self) -> Counter[int]:
        """How many rows read a draft; outputs count twice, because they need it as it is."""
        readers: Counter[int] = Counter()
        for draft in self.drafts.values():
            for ids in draft.reads():
                readers.update(np.unique(values_of(ids)).tolist())
        for ids in self.outputs:
            readers.update(2 * np.unique(values_of(ids)).tolist())
        return readers

    def _whole(self, ids: Ids) -> int | None:
        """The place of the draft of which these are all columns in order."""
        place = int(values_of(ids[:1])[0])
        draft = self.drafts.get(place)
        return place if draft and len(ids) == draft.width and np.array_equal(ids, ids_of(place, draft.width)) else None

    def _drop_unread(self) -> None:
        wanted: set[int] = set()
        stack = [value for ids in self.outputs for value in np.unique(values_of(ids)).tolist()]
        while stack:
            place = stack.pop()
            if place in self.drafts and place not in wanted:
                wanted.add(place)
                stack += [value for ids in self.drafts[place].reads() for value in np.unique(values_of(ids)).tolist()]
        self.drafts = {place: draft for place, draft in self.drafts.items() if place in wanted}

    # Copies that do nothing

    def _bypass_copies(self) -> None:
        known: dict[int, Ids] = {}
        for place in self.order:
            draft = self.drafts[place]
            draft.inputs = _substituted(draft.inputs, known)
            draft.factors = [_substituted(ids, known) for ids in draft.factors]
            draft.addends = [_substituted(ids, known) for ids in draft.addends]
            if draft.plain and not draft.addends:
                known[place] = draft.inputs
        self.outputs[:] = [_substituted(ids, known) for ids in self.outputs]

    # A BatchNorm, or any affine, before a layer

    def _fold_affines_into_linears(self) -> None:
        for place in self.order:
            draft = self.drafts[place]
            while draft.kind == "linear" and self._fold_one(draft):
                pass

    def _fold_one(self, draft: Draft) -> bool:
        parts: list[tuple[Ids, Const | None, Const | None]] = []
        for begin, end in _value_runs(draft.inputs):
            ids = draft.inputs[begin:end]
            source = self.drafts.get(int(values_of(ids[:1])[0]))
            if source is None or not _only_affine(source):
                parts.append((ids, None, None))
                continue
            columns = columns_in(ids)
            parts.append((source.inputs[columns], _chosen(source.scale, columns), _chosen(source.shift, columns)))
        if all(scale is None for _, scale, _ in parts):
            return False
        assert draft.weight is not None
        counts = [len(ids) for ids, _, _ in parts]
        scale = _joined([one or numbers(1.0, n) for (_, one, _), n in zip(parts, counts, strict=True)])
        shift = _joined([one or numbers(0.0, n) for (_, _, one), n in zip(parts, counts, strict=True)])
        added = Const.of("matmul.default", shift, draft.weight)
        draft.bias = added if draft.bias is None else draft.bias + added
        draft.weight = draft.weight * scale.reshape(-1, 1)
        draft.inputs = np.concatenate([ids for ids, _, _ in parts])
        return True

    # Copies of several layers' outputs

    def _split_copies(self) -> None:
        """A copy of several drafts becomes one for each, which can then be part of that draft's step."""
        for place in self.order:
            draft = self.drafts[place]
            if draft.kind != "copy" or self._whole(draft.inputs) is not None:
                continue
            pieces = self._pieces(draft)
            if 1 < len(pieces) <= _MOST_PIECES and any(self._whole(draft.inputs[a:b]) is not None for a, b in pieces):
                self._split(place, draft, pieces)

    def _pieces(self, draft: Draft) -> list[tuple[int, int]]:
        """Where whole drafts begin and end in a copy's inputs, with what lies between them."""
        pieces: list[tuple[int, int]] = []
        at = since = 0
        while at < draft.width:
            source = self.drafts.get(int(values_of(draft.inputs[at : at + 1])[0]))
            if source is not None and self._whole(draft.inputs[at : at + source.width]) is not None:
                if since < at:
                    pieces.append((since, at))
                pieces.append((at, at + source.width))
                at = since = at + source.width
            else:
                at += 1
        if since < draft.width:
            pieces.append((since, draft.width))
        edges = [a for a, _ in pieces[1:]]
        blocks = [draft.width // len(factor) for factor in draft.factors]
        aligned = all(edge % block == 0 or block == draft.width for edge in edges for block in blocks)
        return pieces if aligned else [(0, draft.width)]

    def _split(self, place: int, draft: Draft, pieces: list[tuple[int, int]]) -> None:
        made: list[Ids] = []
        for number, (begin, end) in enumerate(pieces):
            part = replace(
                draft,
                width=end - begin,
                inputs=draft.inputs[begin:end],
                slope=draft.slope and draft.slope.part(0, begin, end),
                scale=draft.scale and draft.scale.part(0, begin, end),
                shift=draft.shift and draft.shift.part(0, begin, end),
                factors=[_factor_part(ids, draft.width, begin, end) for ids in draft.factors],
                addends=[ids[begin:end] for ids in draft.addends],
            )
            own = self._add(part, self._order[place] + (number + 1) / (len(pieces) + 2))
            made.append(ids_of(own, end - begin))
        draft.inputs = np.concatenate(made)
        draft.activation, draft.slope, draft.scale, draft.shift, draft.factors, draft.addends = (
            "identity",
            None,
            None,
            None,
            [],
            [],
        )
        self._order[place] += 0.999
        self._bypass_copies()

    def _add(self, draft: Draft, order: float) -> int:
        place, self._next = self._next, self._next + 1
        self.drafts[place] = draft
        self._order[place] = order
        return place

    # What follows a step

    def _merge_one_round(self) -> bool:
        merged = False
        readers = self._readers()
        for place in self.order:
            draft = self.drafts.get(place)
            if draft is None or draft.kind != "copy":
                continue
            for candidate in self._arrangements(draft):
                source = self._whole(candidate.inputs)
                if source is None or readers[source] != 1 or not _merge(self.drafts[source], candidate):
                    continue
                self.drafts[place] = self.drafts.pop(source)
                merged = True
                break
        return merged

    def _arrangements(self, draft: Draft) -> list[Draft]:
        """The copy, and what is the same with a factor or an addend as its input."""
        made = [draft]
        if draft.activation != "identity" or draft.scale is not None:
            return made
        if draft.factors and not draft.addends:
            for at, factor in enumerate(draft.factors):
                if len(factor) == draft.width:
                    others = [*draft.factors[:at], draft.inputs, *draft.factors[at + 1 :]]
                    made.append(replace(draft, inputs=factor, factors=others))
        elif not draft.factors:
            for at, addend in enumerate(draft.addends):
                others = [*draft.addends[:at], draft.inputs, *draft.addends[at + 1 :]]
                made.append(replace(draft, inputs=addend, addends=others))
        linear = [
            one
            for one in made
            if (place := self._whole(one.inputs)) is not None and self.drafts[place].kind == "linear"
        ]
        return linear + [one for one in made if one not in linear]


def _merge(source: Draft, copy: Draft) -> bool:
    """Make ``source`` do what ``copy`` does to its result, if a step can."""
    last, first = _last_stage(source), _first_stage(copy)
    if last == 0 and source.kind == "linear" and first == 2:
        _fold_after(source, copy)
    elif last == 2 and first == 2:
        assert source.scale and source.shift and copy.scale and copy.shift
        source.shift = source.shift * copy.scale + copy.shift
        source.scale = source.scale * copy.scale
    elif last > first or (last == first and first not in (3, 4)):
        return False
    elif first <= 2:
        if copy.activation != "identity":
            source.activation, source.slope = copy.activation, copy.slope
        source.scale, source.shift = copy.scale or source.scale, copy.shift or source.shift
    source.factors = source.factors + copy.factors
    source.addends = source.addends + copy.addends
    source.node = copy.node
    return True


def _fold_after(source: Draft, copy: Draft) -> None:
    assert source.weight and copy.scale and copy.shift
    source.weight = source.weight * copy.scale
    source.bias = copy.shift if source.bias is None else source.bias * copy.scale + copy.shift


def _stages(draft: Draft) -> list[int]:
    used = [draft.activation != "identity", draft.scale is not None, bool(draft.factors), bool(draft.addends)]
    return [stage + 1 for stage, is_used in enumerate(used) if is_used]


def _last_stage(draft: Draft) -> int:
    return max(_stages(draft), default=0)


def _first_stage(draft: Draft) -> int:
    return min(_stages(draft), default=5)


def _only_affine(draft: Draft) -> bool:
    return draft.kind == "copy" and _stages(draft) == [2]


def _factor_part(ids: Ids, width: int, begin: int, end: int) -> Ids:
    block = width // len(ids)
    return ids if len(ids) == 1 else ids[begin // block : end // block]


def _substituted(ids: Ids, known: dict[int, Ids]) -> Ids:
    values = values_of(ids)
    found = [place for place in np.unique(values).tolist() if place in known]
    if not found:
        return ids
    made = ids.copy()
    for place in found:
        of = values == place
        made[of] = known[place][columns_in(ids[of])]
    return made


def _value_runs(ids: Ids) -> list[tuple[int, int]]:
    values = values_of(ids)
    edges = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(ids)]
    return list(pairwise(edges))


def _chosen(vector: Const | None, columns: Ids) -> Const:
    assert vector is not None
    pieces = [vector.part(0, int(columns[a]), int(columns[b - 1]) + 1) for a, b in runs(columns)]
    return _joined(pieces)


def _joined(parts: list[Const]) -> Const:
    return parts[0] if len(parts) == 1 else Const.of("cat.default", parts)
