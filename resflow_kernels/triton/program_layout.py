"""A tile program's constants for Triton's kernel: its steps, and the place of each value in a candidate's frame."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from ..core.plan import padded
from ..core.program import Program, Row, Step
from .layout import NO_TENSOR_PANELS, Layer


class SegmentConstants(NamedTuple):
    """Consecutive floats of a frame."""

    place: int
    width: int
    column: int  # where it begins in its row
    repeat: int  # how many columns of a step's result a factor's column multiplies


class StepConstants(NamedTuple):
    kind: str
    groups: int
    columns: int  # of all inputs together
    epsilon: float
    affine: bool
    out: int  # the result's place
    row: int  # where the inputs lie one after another
    gathers: bool  # they have to be copied there first
    finishes: bool  # a step that is not linear has an activation, an affine, factors or addends
    parts: tuple[SegmentConstants, ...]  # the inputs
    factors: tuple[SegmentConstants, ...]
    addends: tuple[SegmentConstants, ...]
    layer: Layer


@dataclass(frozen=True)
class ProgramLayout:
    steps: tuple[StepConstants, ...]
    outputs: tuple[SegmentConstants, ...]
    frame: int  # floats per candidate
    fingerprint: int

    @property
    def columns(self) -> tuple[int, ...]:
        """The place of each output column."""
        return tuple(segment.place + at for segment in self.outputs for at in range(segment.width))


def group_block(width: int) -> int:
    """Columns of a group that are read at a time: a power of 2."""
    return min(1 << (width - 1).bit_length(), 128)


@lru_cache(maxsize=256)
def program_layout(program: Program) -> ProgramLayout:
    """The constants of a program."""
    packed = program.packed_layout
    places = [0]
    end = padded(program.in_features)
    for step in program.steps:
        places.append(end)
        end += padded(step.width)

    def segments(row: Row, width: int = 0) -> tuple[SegmentConstants, ...]:
        made, column = [], 0
        for value, first, own in row:
            made.append(SegmentConstants(places[value] + first, own, column, max(1, width // own)))
            column += own
        return tuple(made)

    def constants(at: int, step: Step) -> StepConstants:
        own = packed.layers[at]
        vectors = (own.bias, own.slope, own.scale, own.shift)
        layer = Layer(step.columns, step.width, own.padded, own.panels, NO_TENSOR_PANELS, *vectors, step.activation, 0)
        parts, factors, addends = segments(step.inputs), segments(step.factors, step.width), segments(step.addends)
        gathers = len(parts) > 1 and step.kind not in ("copy", "mix")
        finishes = step.activation != "identity" or step.affine or bool(factors or addends)
        row = end if gathers else parts[0].place
        settings = (step.groups, step.columns, step.epsilon, step.affine)
        return StepConstants(
            step.kind, *settings, places[at + 1], row, gathers, finishes, parts, factors, addends, layer
        )

    steps = tuple(constants(at, step) for at, step in enumerate(program.steps))
    gathered = max((step.columns for step in steps if step.gathers), default=0)
    return ProgramLayout(steps, segments(program.outputs), end + padded(gathered), packed.fingerprint)
