"""Where each number of packed weights lies, as the compiled library answers. Imports neither torch nor numpy.

``csrc/core/plan.cpp`` computes the offsets; nothing here repeats a formula of them. Either library answers alike: the
NumPy runtime, which needs no torch, or torch's ops where they alone are built. One of the two packed the weights, so it
is missing only where weights came from another machine to a checkout that was never built.
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
    """A layer of a task's block; places are in floats from the block's first."""

    words: int  # of a column's inputs
    padded: int
    panels: int
    bias: int
    slope: int
    scale: int
    shift: int
    column_scale: int
    tensor_panels: int  # in bytes, from the first of the task's tensor panels


class PackedLayout(NamedTuple):
    """Places in the packed weights of a plan."""

    packed_bytes: int
    fingerprint: int  # of the plan, an int64 of the header's bits
    task_floats: int
    head_weight: int
    head_bias: int
    tensor_start: int  # in bytes from the packed weights' first
    tensor_bytes: int  # of a task's tensor panels
    slots: int  # how many sets of hidden outputs are kept at a time
    layers: tuple[PackedLayer, ...]
    slot: tuple[int, ...]  # where each task keeps its hidden outputs


def answer_by(function: Answer) -> None:
    """Torch's op, which :mod:`resflow_kernels.ops.library` has loaded, serves where the NumPy runtime is not built."""
    global _torch_answer
    _torch_answer = function


@lru_cache(maxsize=256)
def layout_of(encoded: tuple[int, ...]) -> PackedLayout:
    """The layout of weights packed for an encoded plan.

    Raises:
        ImportError: no compiled library is there to ask.
    """
    numbers = iter(_answer()(encoded))
    fields = _take(numbers, PACKED_FIELDS)
    counts = dict(zip(PLAN_FIELDS, encoded, strict=False))
    layers = tuple(PackedLayer(**_take(numbers, PACKED_LAYER_FIELDS)) for _ in range(counts["layers"]))
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
