"""The ops on packed weights in plain PyTorch: ``backend="reference"`` of :mod:`resflow_kernels.ops`.

Slow, but for any device; weights are unpacked in each call. Computes in float32 and rounds where the plan's precision
does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..contract import complete, forms_with
from ..contract.results import Scores
from ..core import checks
from ..core.forms import Call, check, decoded
from ..core.plan import padded
from . import towers
from .rounding import int8_rows
from .unpack import unpack_towers

_ROWS = checks.row_dtypes("cuda")


def run(op: str, *arguments: Any) -> tuple[Tensor, ...]:
    """Compute an op of a form that supports this backend, or ``catalog_rows``; arguments are in the schema's order."""
    if op == "catalog_rows":
        return catalog_rows(*arguments)
    call = check(op, arguments, _ROWS, "meta")  # allows every precision, those of GPUs on the CPU too
    checks.packed(op, call.packed, call.plan)
    call.check_values()
    scores = _SCORES[call.form.name](call, unpack_towers(call.packed, call.plan), **call.inputs)
    return scores if call.k is None else towers.topk(scores.score, call.inputs["offsets"], call.k)


def catalog_rows(item: Tensor, packed: Tensor, plan: tuple[int, ...], dtype: int) -> tuple[Tensor, Tensor]:
    """:func:`resflow_kernels.ops.catalog_rows` with the op's codes."""
    own = decoded(tuple(plan))
    checks.side("catalog_rows", "item", item, own, *_ROWS)
    checks.packed("catalog_rows", packed, own)
    products = towers.catalog_rows(item.float(), unpack_towers(packed, own), own)
    columns = padded(own.hidden[0]) - own.hidden[0]
    rows = torch.nn.functional.pad(products, (0, columns)).reshape(len(item), own.table_width)
    stored = checks.TABLE_DTYPES[dtype]
    if stored == torch.int8:
        return int8_rows(rows)
    return rows.to(stored), rows.new_empty((0,))


def _dense(call: Call, weights: list[Tensor], x: Tensor, offsets: Tensor | None = None) -> Scores:
    request = None if offsets is None else towers.request_of_candidates(offsets, len(x))
    fusion_weights = towers.spread_weights(call.fusion_weights, call.weights_per, request)
    return towers.finish(towers.dense_logits(x.float(), weights, call.plan), fusion_weights, call.fusion)


def _request(call: Call, weights: list[Tensor], user: Tensor, item: Tensor, offsets: Tensor) -> Scores:
    rows = (user.float(), item.float(), offsets)
    return towers.request_scores(*rows, weights, call.plan, call.fusion_weights, call.fusion, call.weights_per)


def _catalog(
    call: Call, weights: list[Tensor], user: Tensor, ids: Tensor, offsets: Tensor, table: Tensor, scales: Tensor
) -> Scores:
    rows = table[ids].float()
    if table.dtype == torch.int8:
        rows = rows * scales[ids, None]
    columns = call.plan.table_width // call.plan.tasks  # not -1, which nobody knows of no candidates
    products = rows.reshape(len(ids), call.plan.tasks, columns)[..., : call.plan.hidden[0]]
    settings = (call.fusion_weights, call.fusion, call.weights_per)
    return towers.catalog_scores(user.float(), products, offsets, weights, call.plan, *settings)


_SCORES: dict[str, Callable[..., Scores]] = complete(
    "form", forms_with("reference"), {"dense": _dense, "request": _request, "catalog": _catalog}, "ops.def"
)
