"""Where packed weights lie, and how tasks share memory, as the kernels take it: constants of their compilation.

The Python side of ``csrc/core/plan.h`` (its float panels), ``csrc/core/tensor_panels.h`` and the slots of
``csrc/core/plan.cpp``; tests compare what is read here with what was packed there. Imports neither torch nor triton.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from ..plan import (
    PACKED_HEADER_BYTES,
    PACKED_LANE,
    PRECISION_BYTES,
    TENSOR_ALIGNMENT,
    TENSOR_CHUNK_INPUTS,
    TENSOR_PANEL_PRECISIONS,
    Plan,
    padded,
)

MAGIC = int.from_bytes(b"RESFLOW2", "little")


class Layer(NamedTuple):
    """A layer as kernels take it, by place: ``resflow_kernels.triton.weights`` names the places."""

    inputs: int
    width: int
    padded: int
    matrix: int  # in floats of the task's block; in 16-bit values of the task's tensor panels
    bias: int  # the rest in floats of the task's block
    slope: int
    scale: int
    shift: int
    activation: str
    kept: int  # columns of all earlier layers: where a row's outputs of this one are kept


@dataclass(frozen=True)
class Layout:
    """Constants of a plan. ``join`` is how a task's own logit joins its parent's."""

    layers: tuple[Layer, ...]
    task_floats: int
    tensor_start: int  # in bytes from the packed weights' first
    task_tensor_values: int
    head: int  # weights, in floats of the task's block; the bias follows at
    head_bias: int
    join: str
    roots: int  # bit k: task k has no parent; signed, as the fingerprint is
    slots: tuple[int, ...]
    kept_columns: int
    fingerprint: int

    @property
    def slot_count(self) -> int:
        return max(self.slots) + 1


@lru_cache(maxsize=256)
def layout_of(plan: Plan) -> Layout:
    """The layout of a plan in a precision that GPUs multiply in."""
    layers: list[Layer] = []
    floats = values = kept = 0
    inputs = plan.in_features
    in_panels = plan.precision in TENSOR_PANEL_PRECISIONS
    for width, activation in zip(plan.hidden, plan.activations, strict=True):
        columns, matrix = padded(width), floats
        floats += -(-inputs * PRECISION_BYTES[plan.precision] // 4) * columns
        bias = floats
        slope = bias + columns
        scale = slope + columns * (activation == "prelu")
        shift = scale + columns * plan.affine
        floats = shift + columns * plan.affine
        place = values if in_panels else matrix
        layers.append(Layer(inputs, width, columns, place, bias, slope, scale, shift, activation, kept))
        values += -(-inputs // TENSOR_CHUNK_INPUTS) * TENSOR_CHUNK_INPUTS * columns
        kept += columns
        inputs = width
    head, head_bias = floats, floats + padded(inputs)
    floats = head_bias + PACKED_LANE
    size = PACKED_HEADER_BYTES + 4 * plan.tasks * floats
    return Layout(
        layers=tuple(layers),
        task_floats=floats,
        tensor_start=-(-size // TENSOR_ALIGNMENT) * TENSOR_ALIGNMENT,
        task_tensor_values=values,
        head=head,
        head_bias=head_bias,
        join=_join(plan),
        roots=_signed(sum(1 << task for task, parent in enumerate(plan.parents) if parent < 0)),
        slots=_slots(plan.parents, plan.feature_residual),
        kept_columns=kept,
        fingerprint=_fingerprint(plan.encoded),
    )


def _join(plan: Plan) -> str:
    if plan.head == "conditional":
        return "conditional"
    if not plan.logit_residual:
        return "own"
    return "non_increasing" if plan.non_increasing else "residual"


def _slots(parents: tuple[int, ...], read_by_children: bool) -> tuple[int, ...]:
    """Where each task keeps its outputs: the last child to read its parent's writes over them."""
    last_reader = list(range(len(parents)))
    for task, parent in enumerate(parents):
        if parent >= 0 and read_by_children:
            last_reader[parent] = task
    slots: list[int] = []
    for task, parent in enumerate(parents):
        if read_by_children and parent >= 0 and last_reader[parent] == task:
            slots.append(slots[parent])
            continue
        taken = {slots[other] for other in range(task) if last_reader[other] > task}
        slots.append(next(slot for slot in range(task + 1) if slot not in taken))
    return tuple(slots)


def _fingerprint(encoded: tuple[int, ...]) -> int:
    """FNV-1a over the plan's numbers, as the header of packed weights holds it."""
    fingerprint = 14695981039346656037
    for number in encoded:
        fingerprint = (fingerprint ^ (number & (1 << 64) - 1)) * 1099511628211 & (1 << 64) - 1
    return _signed(fingerprint)


def _signed(word: int) -> int:
    """64 bits as the int64 they are."""
    return word - (1 << 64) * (word >> 63)
