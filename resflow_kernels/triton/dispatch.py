"""The entry point for :mod:`resflow_kernels.ops`: the forms on Triton's kernels, eager or while PyTorch traces.

Traced calls go through ``torch.library.triton_op`` in ``torch.ops.resflow_triton``, so that ``torch.compile`` and
``torch.export`` see the kernels: Inductor compiles them into its own code. Eager calls bypass those ops, which saves
the dispatcher.
"""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch
from torch import Tensor
from torch.library import triton_op, wrap_triton

from ..contract import FORMS, OP_SCHEMAS
from ..core.forms import decoded, form_of
from ..core.plan import Plan
from . import scoring, tuning
from .launch import Launch


def run(op: str, *arguments: Any) -> Any:
    """Compute an op of a form that supports this backend, ``catalog_rows`` or ``program_outputs``.

    Arguments are in the schema's order.
    """
    if op == "catalog_rows":
        return scoring.catalog_rows(*arguments)
    if torch.compiler.is_compiling():
        return TRACED[op](*arguments)
    if op == "program_outputs":
        return scoring.program_outputs(scoring.run, *arguments)
    form, ranks = form_of(op)
    inputs = len(form.inputs) + (len(form.topk_inputs) if ranks else 0)
    packed, _, encoded = arguments[inputs : inputs + 3]
    plan = decoded(tuple(encoded))
    if isinstance(plan, Plan):
        tuning.tune_if_asked(plan, packed.device)
    return scoring.score(op, arguments)


def record(launch: Launch) -> None:
    """Add a launch to the graph that is being traced."""
    if scoring.INTERPRETED:
        raise RuntimeError("TRITON_INTERPRET=1: kernels of the interpreter cannot be traced")
    options = cast(dict[str, object], launch.options)
    wrap_triton(launch.kernel)[launch.grid](**launch.arguments, **launch.constants, **options)


def _traced(op: str) -> Any:
    def function(*arguments: Any) -> Any:
        if op == "program_outputs":
            return scoring.program_outputs(record, *arguments)
        return scoring.score(op, arguments, record)

    # triton_op reads a signature and, up to PyTorch 2.13, not a schema.
    function.__signature__ = _signature(OP_SCHEMAS[op])  # type: ignore[attr-defined]
    return triton_op(f"resflow_triton::{op}", function, mutates_args={})


_TYPES: dict[str, Any] = {"Tensor": Tensor, "int[]": list[int], "int": int, "bool": bool}


def _signature(schema: str) -> inspect.Signature:
    """A signature with the arguments of a schema, e.g. ``(Tensor x, int k) -> (Tensor scores, Tensor positions)``."""
    arguments, results = (side.strip(" ()").split(", ") for side in schema.split("->"))
    named = [argument.split() for argument in arguments]
    return inspect.Signature(
        [
            inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=_TYPES[kind])
            for kind, name in named
        ],
        return_annotation=Tensor if len(results) == 1 else tuple[(Tensor,) * len(results)],  # type: ignore[misc]
    )


# Results for fake tensors come from the functions themselves.
TRACED = {
    op: _traced(op)
    for op in (
        *(f"{name}_{end}" for name, form in FORMS.items() if "triton" in form.flags for end in ("scores", "topk")),
        "program_outputs",
    )
}
