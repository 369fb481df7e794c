"""A plan's constants for Triton's scoring kernels: its packed layout and its switches."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from ..contract import PACKED_MAGIC
from ..core.plan import Plan

MAGIC = int.from_bytes(PACKED_MAGIC, "little")
TENSOR_VALUE_BYTES = 2
NO_TENSOR_PANELS = -1


class Layer(NamedTuple):
    """A layer's constants; kernels index them by the positions that ``weights.py`` names."""

    inputs: int
    width: int
    padded: int
    matrix: int  # this and the vectors: offsets in floats from the start of the task's block
    tensor: int  # in tensor panels, which a tile program's lacks: offset in 16-bit values from the start of the task's
    bias: int
    slope: int
    scale: int
    shift: int
    activation: str
    kept: int  # number of columns of all earlier layers: the offset of this one's outputs in a row of all layers


@dataclass(frozen=True)
class Layout:
    layers: tuple[Layer, ...]
    task_floats: int
    tensor_start: int  # in bytes from the start of the packed weights
    task_tensor_values: int
    head: int  # offset of the weights in floats of the task's block; the bias follows at
    head_bias: int
    roots: int  # bit k: task k has no parent; a signed number
    slots: tuple[int, ...]
    slot_count: int
    kept_columns: int
    fingerprint: int


@lru_cache(maxsize=256)
def layout_of(plan: Plan) -> Layout:
    """The constants of a plan."""
    packed = plan.packed_layout
    layers: list[Layer] = []
    inputs, kept = plan.in_features, 0
    for width, activation, own in zip(plan.hidden, plan.activations, packed.layers, strict=True):
        tensor, vectors = own.tensor_panels // TENSOR_VALUE_BYTES, (own.bias, own.slope, own.scale, own.shift)
        layers.append(Layer(inputs, width, own.padded, own.panels, tensor, *vectors, activation, kept))
        inputs, kept = width, kept + own.padded
    return Layout(
        layers=tuple(layers),
        task_floats=packed.task_floats,
        tensor_start=packed.tensor_start,
        task_tensor_values=packed.tensor_bytes // TENSOR_VALUE_BYTES,
        head=packed.head_weight,
        head_bias=packed.head_bias,
        roots=signed(sum(1 << task for task, parent in enumerate(plan.parents) if parent < 0)),
        slots=packed.slot,
        slot_count=packed.slots,
        kept_columns=kept,
        fingerprint=packed.fingerprint,
    )


def signed(bits: int) -> int:
    """64 bits as the int64 that a kernel sees."""
    return bits - (1 << 64) * (bits >> 63)
