"""Registrations that PyTorch needs to trace the ops: empty results, and the rows' dtype under autocast.

They all follow from the rows of ``contract/ops.def``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..contract import FORMS, OP_SCHEMAS, PLAN_OPS
from ..core import checks, outputs
from ..core.forms import check, decoded, form_of
from . import library


def scoring_fake(op: str) -> Callable[..., Any]:
    """The fake kernel of a scoring op: the op's checks, and empty outputs."""
    _, ranks = form_of(op)

    def fake(*arguments: Any) -> Any:
        call = check(op, arguments)
        like = next(value for value in call.inputs.values() if isinstance(value, Tensor))
        if ranks:
            assert call.counts.requests is not None and call.k is not None
            return outputs.empty_topk(like, call.counts.requests, call.k)
        return outputs.empty_scores(like, call.counts.candidates, len(call.parents))

    return fake


def _pack_towers(weights: list[Tensor], plan: list[int]) -> Tensor:
    own = decoded(tuple(plan))
    checks.weights("pack_towers", weights, own)
    return weights[0].new_empty((own.packed_bytes,), dtype=torch.uint8)


def _program_outputs(x: Tensor, packed: Tensor, plan: list[int]) -> Tensor:
    own = decoded(tuple(plan))
    checks.program("program_outputs", own)
    checks.matrix("program_outputs", "x", x, own.in_features)
    checks.precision("program_outputs", own, packed)
    return x.new_empty((x.shape[0], own.output_columns), dtype=torch.float32)


def _catalog_rows(item: Tensor, packed: Tensor, plan: list[int], dtype: int) -> tuple[Tensor, Tensor]:
    own = decoded(tuple(plan))
    checks.has_catalogs("catalog_rows", own, item.device.type)
    checks.side("catalog_rows", "item", item, own)
    checks.table_dtype("catalog_rows", dtype)
    checks.precision("catalog_rows", own, packed)
    return outputs.empty_table(item, item.shape[0], own.table_width_of(item.shape[1]), dtype)


def _twin_rows(vectors: Tensor, tasks: int, dtype: int) -> tuple[Tensor, Tensor]:
    checks.matrix("twin_rows", "vectors", vectors, None)
    checks.task_count("twin_rows", tasks)
    checks.task_columns("twin_rows", "vectors", vectors, tasks)
    checks.table_dtype("twin_rows", dtype)
    return outputs.empty_table(vectors, vectors.shape[0], vectors.shape[1], dtype, tasks)


FAKES: dict[str, Callable[..., Any]] = {
    "pack_towers": _pack_towers,
    "program_outputs": _program_outputs,
    "catalog_rows": _catalog_rows,
    "twin_rows": _twin_rows,
    "train_forward": outputs.forward_outputs,
    "train_backward": outputs.backward_outputs,
}


def register() -> None:
    """Register fake kernels and autocast rules, once."""
    compiled, _ = library.load()
    for op in (name for name in OP_SCHEMAS if name not in PLAN_OPS):  # PLAN_OPS are called, not traced
        torch.library.register_fake(f"resflow::{op}", FAKES.get(op) or scoring_fake(op))
    for form in FORMS.values():
        if compiled and "autocast" in form.flags:
            # Autocast would pass bfloat16 rows to kernels that compute in float32.
            for ending in ("scores", "topk"):
                torch.library.register_autocast(f"resflow::{form.name}_{ending}", "cpu", torch.float32)


register()
