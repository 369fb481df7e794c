"""Scoring ops for a compiler's graphs that take a model's own tensors in place of its packed weights.

``torch.compile`` of a module that packs its weights when they change cannot trace that decision: packing would become a
part of the graph, and happen in each call. ``current_dense_scores`` and its like ask the module in each call instead.
The graph reads the tensors, so a compiler orders writes before the call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from ..contract import FORMS, OP_SCHEMAS
from ..core.forms import decoded, form_of
from . import library
from .fakes import scoring_fake


class PackedFrom(NamedTuple):
    """What stands for packed weights in a graph: the tensors that they are packed from, and the model's key."""

    tensors: list[Tensor]
    model: int


# Models by key. Each has `packed_now(form, tensors)`. Keys are counted and no addresses, so that a cache of compiled
# graphs finds them in the next process.
_models: WeakValueDictionary[int, Any] = WeakValueDictionary()
_keys = count()


def add(model: Any) -> int:
    """A new key, under which graphs find a model while it lives."""
    key = next(_keys)
    _models[key] = model
    return key


def name_of(op: str) -> str:
    """The op's name in graphs: ``"current_dense_scores"`` for ``"dense_scores"``."""
    return f"current_{op}"


def _schema(op: str) -> str:
    return OP_SCHEMAS[op].replace("Tensor packed,", "Tensor[] packed_from, int model,")


def _function(op: str) -> Callable[..., Any]:
    form, ranks = form_of(op)
    at = len(form.inputs) + (len(form.topk_inputs) if ranks else 0)

    def run(*arguments: Any) -> Any:
        tensors, key = arguments[at : at + 2]
        packed = _models[key].packed_now(form.name, tensors)
        return library.call(op, *arguments[:at], packed, *arguments[at + 2 :])

    return run


def _fake(op: str) -> Callable[..., Any]:
    form, ranks = form_of(op)
    at = len(form.inputs) + (len(form.topk_inputs) if ranks else 0)
    checked = scoring_fake(op)

    def run(*arguments: Any) -> Any:
        tensors: Sequence[Tensor] = arguments[at]
        plan = decoded(tuple(arguments[at + 3]))
        packed = tensors[0].new_empty((plan.packed_bytes,), dtype=torch.uint8)
        return checked(*arguments[:at], packed, *arguments[at + 2 :])

    return run


def register() -> None:
    """Define the ops, once."""
    for op in (f"{form.name}_{ending}" for form in FORMS.values() for ending in ("scores", "topk")):
        if form_of(op)[0].model == "towers":
            library.define(name_of(op), _schema(op), _function(op))
            torch.library.register_fake(f"resflow::{name_of(op)}", _fake(op))


register()
