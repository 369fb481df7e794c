"""The canonical weights of a plan, in order. Imports neither torch nor numpy.

The Python side of ``csrc/core/weights.h``; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from .plan import Plan


class Weight(NamedTuple):
    """One canonical weight."""

    task: int
    layer: int | None  # None: the head
    kind: str  # "weight", "bias", "slope", "scale" or "shift"
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """The name in messages: ``task 0, layer 1, bias``."""
        place = "head" if self.layer is None else f"layer {self.layer}"
        return f"task {self.task}, {place}, {self.kind}"


def iter_weights(plan: Plan) -> Iterator[Weight]:
    """All weights of a plan in the order in which ``pack_towers`` takes them."""
    for task in range(plan.tasks):
        for layer, (inputs, width) in enumerate(zip((plan.in_features, *plan.hidden), plan.hidden, strict=False)):
            yield Weight(task, layer, "weight", (inputs, width))
            for kind in layer_vectors(plan, layer):
                yield Weight(task, layer, kind, (width,))
        yield Weight(task, None, "weight", (plan.hidden[-1],))
        yield Weight(task, None, "bias", (1,))


def layer_vectors(plan: Plan, layer: int) -> tuple[str, ...]:
    """The kinds of a layer's vectors, which follow its matrix."""
    slope = ("slope",) if plan.activations[layer] == "prelu" else ()
    return ("bias", *slope, *(("scale", "shift") if plan.affine else ()))


class Tower(NamedTuple):
    """A task's weights by kind."""

    layers: tuple[dict[str, Any], ...]
    head: dict[str, Any]

    def part(self, layer: int | None) -> dict[str, Any]:
        """A layer's weights, or the head's."""
        return self.head if layer is None else self.layers[layer]


def towers_of(plan: Plan, weights: Sequence[Any]) -> list[Tower]:
    """Group canonical weights, of any type, by task, layer and kind."""
    towers = [Tower(tuple({} for _ in plan.hidden), {}) for _ in plan.parents]
    for weight, value in zip(iter_weights(plan), weights, strict=True):
        towers[weight.task].part(weight.layer)[weight.kind] = value
    return towers


def in_order(plan: Plan, towers: Sequence[Tower]) -> list[Any]:
    """The inverse of :func:`towers_of`; entries for which the plan has no weight are left out."""
    return [towers[weight.task].part(weight.layer)[weight.kind] for weight in iter_weights(plan)]
