"""What Triton's scoring kernels are compiled with about a plan: its packed layout and its switches as constants."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from ..contract import PACKED_MAGIC
from ..core.plan import Plan

MAGIC = int.from_bytes(PACKED_MAGIC, "little")
TENSOR_VALUE_BYTES = 2


class Layer(NamedTuple):
    """A layer's constants; kernels take them by place, which ``weights.py`` names."""

    inputs: int
    width: int
    padded: int
    matrix: int  # this and the vectors: in floats from the start of the task's block
    tensor: int  # the same matrix in tensor panels: in 16-bit values from the start of the task's
    bias: int
    slope: int
    scale: int
    shift: int
    activation: str
    kept: int  # columns of all earlier layers: where a row's outputs of this one are kept


@dataclass(frozen=True)
class Layout:
    layers: tuple[Layer, ...]
    task_floats: int
    tensor_start: int  # in bytes from the packed weights' first
    task_tensor_values: int
    head: int  # weights, in floats of the task's block; the bias follows at
    head_bias: int
    roots: int  # bit k: task k has no parent; signed
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
    """64 bits as the int64 they are in a kernel."""
    return bits - (1 << 64) * (bits >> 63)
