"""The layout of a network's weights, and of its gradients, in one tensor each, for the training kernels.

Imports neither torch nor triton.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import NamedTuple

from ...contract import STATISTICS
from ...core.plan import Plan, padded

# In floats: each weight begins at a multiple of 16 bytes, for vector loads.
ALIGNMENT = 4


class Layer(NamedTuple):
    """A layer's constants; kernels index them by the positions that ``layers.py`` names."""

    inputs: int
    width: int
    padded: int
    activation: str
    normalisation: str  # "none", "after" (as given), or a BatchNorm by the batch: "batch_after", "batch_before"
    statistics: int  # offset of the layer's statistics, [tasks][width]
    task_floats: int  # number of floats from one task's weights to the next's
    matrix: int  # this and the vectors: offsets in floats from the task's first
    bias: int
    slope: int  # 0 if there is none
    scale: int
    shift: int


@dataclass(frozen=True)
class Layout:
    layers: tuple[Layer, ...]
    task_floats: int
    head: int
    head_bias: int
    padding: tuple[int, ...]  # number of zeros after each weight of a task
    ancestors: tuple[int, ...]  # bit a: layer outputs of task a are part of the task's; () without feature residuals
    descendants: tuple[int, ...]
    in_line: tuple[bool, ...]  # all descendants of the task descend from the next one, which is its child
    join: str  # the rule that joins a task's own logit with its parent's

    @property
    def by_batch(self) -> bool:
        return self.layers[0].normalisation.startswith("batch")


@lru_cache(maxsize=256)
def layout_of(plan: Plan, statistics: int, alignment: int = ALIGNMENT) -> Layout:
    """Layout of the weights. With an alignment of 1 it is that of their gradients, which have no padding."""
    places: dict[str, int] = {}
    padding: list[int] = []
    floats = 0
    for name, shape in plan.weight_shapes[: len(plan.weight_shapes) // plan.tasks]:
        places[name.removeprefix("task 0, ")] = floats
        padding.append(-prod(shape) % alignment)
        floats += prod(shape) + padding[-1]
    layers: list[Layer] = []
    inputs, channels = plan.in_features, 0
    for level, (width, activation) in enumerate(zip(plan.hidden, plan.activations, strict=True)):
        kinds = [places.get(f"layer {level}, {kind}", 0) for kind in ("weight", "bias", "slope", "scale", "shift")]
        layers.append(
            Layer(inputs, width, padded(width), activation, _normalisation(plan, statistics), channels, floats, *kinds)
        )
        inputs, channels = width, channels + plan.tasks * width
    ancestors = _ancestors(plan) if plan.feature_residual else ()
    descendants = tuple(
        sum(1 << other for other, above in enumerate(ancestors) if above >> task & 1) for task in range(len(ancestors))
    )
    in_line = tuple(
        below == (descendants[task + 1] | 1 << task + 1 if task + 1 < plan.tasks else 0)
        for task, below in enumerate(descendants)
    )
    return Layout(
        layers=tuple(layers),
        task_floats=floats,
        head=places["head, weight"],
        head_bias=places["head, bias"],
        padding=tuple(padding),
        ancestors=tuple(map(_signed, ancestors)),
        descendants=tuple(map(_signed, descendants)),
        in_line=in_line,
        join=plan.join,
    )


def _normalisation(plan: Plan, statistics: int) -> str:
    if not plan.affine:
        return "none"
    return "after" if STATISTICS[statistics] == "given" else STATISTICS[statistics]


def _ancestors(plan: Plan) -> tuple[int, ...]:
    above: list[int] = []
    for parent in plan.parents:
        above.append(0 if parent < 0 else above[parent] | 1 << parent)
    return tuple(above)


def _signed(bits: int) -> int:
    """64 bits as the int64 that a kernel sees."""
    return bits - (1 << 64) * (bits >> 63)
