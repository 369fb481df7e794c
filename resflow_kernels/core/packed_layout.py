"""Where each number of packed weights lies, and how tasks share memory: what Triton kernels are compiled with.

The Python side of ``csrc/core/plan.h``, ``csrc/core/tensor_panels.h`` and the slots of ``csrc/core/plan.cpp``; tests
compare what is read by it with what was packed there. Needs torch for :func:`unpack_towers` alone, which imports it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from .plan import (
    PACKED_HEADER_BYTES,
    PACKED_LANE,
    PRECISION_BYTES,
    TENSOR_ALIGNMENT,
    TENSOR_CHUNK_INPUTS,
    Plan,
    padded,
)

if TYPE_CHECKING:
    from torch import Tensor

PANEL_COLUMNS = 64
MAGIC = int.from_bytes(b"RESFLOW2", "little")


class Layer(NamedTuple):
    """A layer's constants; Triton kernels take them by place, which ``triton/weights.py`` names."""

    inputs: int
    width: int
    padded: int
    matrix: int  # this and the vectors: in floats from the start of the task's block
    tensor: int  # the same matrix in tensor panels: in 16-bit values from the start of the task's
    bias: int
    slope: int
    scale: int
    shift: int
    column_scale: int
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
    """The layout of a plan's packed weights."""
    layers: list[Layer] = []
    floats = values = kept = 0
    inputs = plan.in_features
    for width, activation in zip(plan.hidden, plan.activations, strict=True):
        columns, matrix = padded(width), floats
        floats += -(-inputs * PRECISION_BYTES[plan.precision] // 4) * columns
        bias = floats
        slope = bias + columns
        scale = slope + columns * (activation == "prelu")
        shift = scale + columns * plan.affine
        column_scale = shift + columns * plan.affine
        floats = column_scale + columns * (plan.precision == "int8")
        vectors = (bias, slope, scale, shift, column_scale)
        layers.append(Layer(inputs, width, columns, matrix, values, *vectors, activation, kept))
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


def unpack_towers(packed: Tensor, plan: Plan) -> list[Tensor]:
    """Canonical weights (``Plan.weight_shapes``) of packed ones, as their precision holds them."""
    import torch

    layout = layout_of(plan)
    blocks = packed[PACKED_HEADER_BYTES:][: 4 * plan.tasks * layout.task_floats].view(plan.tasks, -1)
    weights = []
    for block in blocks:
        floats = block.view(torch.float32)

        def vector(place: int, width: int, floats: Tensor = floats) -> Tensor:
            return floats[place : place + width].clone()

        for layer in layout.layers:
            matrix = _unpack_matrix(floats[layer.matrix : layer.bias], layer, plan.precision)
            if plan.precision == "int8":
                matrix = (matrix - 128) * vector(layer.column_scale, layer.width)
            weights += [matrix, vector(layer.bias, layer.width)]
            if layer.activation == "prelu":
                weights.append(vector(layer.slope, layer.width))
            if plan.affine:
                weights += [vector(layer.scale, layer.width), vector(layer.shift, layer.width)]
        weights += [vector(layout.head, layout.layers[-1].width), vector(layout.head_bias, 1)]
    return weights


def _unpack_matrix(floats: Tensor, layer: Layer, precision: str) -> Tensor:
    """``[inputs, width]`` float32 of a layer's panels: words of one column's consecutive inputs."""
    import torch

    element = {"bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.uint8}.get(precision, torch.float32)
    per_word = 4 // PRECISION_BYTES[precision]
    words = floats.numel() // layer.padded
    panels, first = [], 0
    for column in range(0, layer.padded, PANEL_COLUMNS):
        lanes = min(PANEL_COLUMNS, layer.padded - column)
        panel = floats[first : first + words * lanes].view(element).view(words, lanes, per_word)
        panels.append(panel.transpose(1, 2).reshape(words * per_word, lanes))
        first += words * lanes
    return torch.cat(panels, dim=1)[: layer.inputs, : layer.width].float().contiguous()
