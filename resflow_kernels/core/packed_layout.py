"""The offset of each number in packed weights, from the compiled library. Imports neither torch nor numpy.

``csrc/core/plan.cpp`` computes the offsets; nothing here repeats its formulas. Either library gives the same answer:
the NumPy runtime, which needs no torch, or the torch ops where only they are built. One of the two packed the weights,
so both are missing only where weights came from another machine to a checkout that was never built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from importlib import import_module
from itertools import islice
from typing import NamedTuple

from ..contract import PACKED_FIELDS, PACKED_LAYER_FIELDS, PLAN_FIELDS
from . import build

Answer = Callable[[Sequence[int]], Sequence[int]]
_torch_answer: Answer | None = None


class PackedLayer(NamedTuple):
    """A layer of a task's block, or a step of a tile program's; offsets are in floats from the start of the block."""

    words: int  # per column
    padded: int
    panels: int
    bias: int
    slope: int
    scale: int
    shift: int
    column_scale: int
    tensor_panels: int  # in bytes, from the start of the task's tensor panels


class PackedLayout(NamedTuple):
    """Offsets in the packed weights of a plan."""

    packed_bytes: int
    fingerprint: int  # of the plan, as an int64 with the header's bits
    task_floats: int
    head_weight: int
    head_bias: int
    tensor_start: int  # in bytes, from the start of the packed weights
    tensor_bytes: int  # per task
    slots: int  # number of sets of hidden outputs that are kept at a time
    layers: tuple[PackedLayer, ...]  # of a tile program: one for each step
    slot: tuple[int, ...]  # the set that holds each task's hidden outputs


def answer_by(function: Answer) -> None:
    """Set the torch op, loaded by :mod:`resflow_kernels.ops.library`, as the answer where no NumPy runtime is built."""
    global _torch_answer
    _torch_answer = function


@lru_cache(maxsize=256)
def layout_of(encoded: tuple[int, ...]) -> PackedLayout:
    """The layout of weights packed for an encoded plan.

    Raises:
        ImportError: no compiled library is available.
    """
    numbers = iter(_answer()(encoded))
    fields = _take(numbers, PACKED_FIELDS)
    counts = dict(zip(PLAN_FIELDS, encoded, strict=False))
    steps = encoded[len(PLAN_FIELDS) + counts["tasks"]] if counts["layers"] == 0 else 0
    layers = tuple(PackedLayer(**_take(numbers, PACKED_LAYER_FIELDS)) for _ in range(counts["layers"] or steps))
    slot = tuple(numbers)
    if len(slot) != counts["tasks"]:
        raise ImportError("the compiled library is of another version of the package: build it anew")
    return PackedLayout(**fields, layers=layers, slot=slot)


def _take(numbers: Iterator[int], names: Sequence[str]) -> dict[str, int]:
    return dict(zip(names, islice(numbers, len(names)), strict=True))


def _answer() -> Answer:
    try:
        answer: Answer = import_module("resflow_kernels._runtime").packed_layout
    except ImportError as error:
        if _torch_answer is None:
            why = build.why_no_runtime()
            raise ImportError(f"only the compiled library knows where packed weights lie: {why} ({error})") from error
        return _torch_answer
    return answer
