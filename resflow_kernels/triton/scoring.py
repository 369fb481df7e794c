"""The forms of scoring on Triton kernels; arguments and results are those of :mod:`resflow_kernels.ops`.

Nothing is read back from the device: candidates with ids out of range, outside all requests, or with weights packed for
another plan score NaN. ``run`` launches; while PyTorch traces, it records instead (:mod:`.dispatch`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from triton import JITFunction

from ..contract import complete, forms_with
from ..core import checks
from ..core.forms import Call, check, decoded
from ..core.outputs import empty_scores, empty_table
from ..core.plan import Plan
from ..core.program import AnyPlan, Program
from ..reference import int8_rows
from .chain import chain_kernel
from .configs import config_of
from .launch import Launch, Sources, project_launch, score_launch
from .program_launch import Ending, ProgramRows, program_launch

# Whether kernels run under Triton's interpreter: TRITON_INTERPRET=1 decides it when they are defined.
INTERPRETED = not isinstance(chain_kernel, JITFunction)

# Items of a catalog are processed in parts of at most this many bytes of float32 products.
_PRODUCT_BYTES = 1 << 26

Run = Callable[[Launch], None]
_ROWS = checks.row_dtypes("cuda")


def run(launch: Launch) -> None:
    """Launch on the device of the packed weights, in its current stream."""
    packed: Tensor = launch.arguments["packed"]
    with torch.cuda.device_of(packed) if packed.is_cuda else nullcontext():
        launch.kernel[launch.grid](**launch.arguments, **launch.constants, **launch.options)


def score(op: str, arguments: tuple[Any, ...], run: Run = run) -> tuple[Tensor, ...]:
    """Compute an op of a form in :data:`_SOURCES`; arguments are in the order of its schema."""
    call = check(op, arguments, _ROWS, "cuda")
    check_model(op, call.packed, call.plan, **call.tensors)
    if os.environ.get("RESFLOW_CHECK_IDS") == "1" and not torch.compiler.is_compiling():
        call.check_values()
    if isinstance(call.plan, Program):
        scores = _score_program(call, run)
    else:
        scores = _score(call, _SOURCES[call.form.name](call, run, **call.inputs), run)
    return scores if call.k is None else topk(scores[2], call.inputs["offsets"], call.k)


def _dense(call: Call, run: Run, x: Tensor, offsets: Tensor | None = None) -> Sources:
    # Requests only matter here for fusion weights per request.
    per_request = call.weights_per == "request"
    return Sources(x, 0, call.counts.candidates, offsets=offsets if per_request else None)


def _request(call: Call, run: Run, user: Tensor, item: Tensor, offsets: Tensor) -> Sources:
    accum_init = _project(user, 0, call.packed, call.plan, True, run)
    return Sources(item, user.shape[1], call.counts.candidates, accum_init, offsets)


def _catalog(
    call: Call, run: Run, user: Tensor, ids: Tensor, offsets: Tensor, table: Tensor, scales: Tensor
) -> Sources:
    accum_init = _project(user, 0, call.packed, call.plan, True, run)
    return Sources(None, call.plan.in_features, call.counts.candidates, accum_init, offsets, ids, table, scales)


_SOURCES: dict[str, Callable[..., Sources]] = complete(
    "form", forms_with("triton"), {"dense": _dense, "request": _request, "catalog": _catalog}, "ops.def"
)


def catalog_rows(item: Tensor, packed: Tensor, encoded: tuple[int, ...], dtype: int) -> tuple[Tensor, Tensor]:
    """:func:`resflow_kernels.ops.catalog_rows` with the op's codes."""
    op, plan = "catalog_rows", decoded(tuple(encoded))
    checks.side(op, "item", item, plan, *_ROWS)
    checks.table_dtype(op, dtype)
    check_model(op, packed, plan, item=item)
    table, scales = empty_table(item, item.shape[0], plan.table_width, dtype)
    count = item.shape[0]
    at_once = max(1, _PRODUCT_BYTES // (4 * plan.table_width))
    for first in range(0, count, at_once):
        part = slice(first, first + at_once)
        products = _project(item[part], plan.in_features - item.shape[1], packed, plan, False, run)
        if table.dtype == torch.int8:
            table[part], scales[part] = int8_rows(products)
        else:
            table[part] = products
    return table, scales


def topk(score: Tensor, offsets: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """:func:`resflow_kernels.reference.topk` without reading back: two stable sorts of all candidates."""
    count, requests = score.shape[0], offsets.shape[0] - 1
    places, first = torch.arange(count, device=score.device), offsets.select(0, 0)
    request = torch.searchsorted(offsets.narrow(0, 1, requests), places, right=True)
    request = torch.where(places < first, requests, request)
    by_score = torch.sort(-score, stable=True).indices  # NaN after every number
    order = by_score.gather(0, torch.sort(request.gather(0, by_score), stable=True).indices)
    request = request.gather(0, order)
    begin = offsets.gather(0, request)
    position = order - begin
    rank = places - (begin - first)  # the sorted requests are contiguous, from 0 on
    kept = (rank >= 0) & (rank < k) & (position >= 0) & (request < requests)
    to = torch.where(kept, request * k + rank, requests * k)  # the others go to one extra element, which is cut off
    scores = score.new_full((requests * k + 1,), float("nan")).scatter(0, to, score.gather(0, order))
    positions = places.new_full((requests * k + 1,), -1).scatter(0, to, position)
    return scores.narrow(0, 0, requests * k).view(requests, k), positions.narrow(0, 0, requests * k).view(requests, k)


def _score(call: Call, sources: Sources, run: Run) -> tuple[Tensor, Tensor, Tensor]:
    packed, plan = call.packed, call.plan
    outputs = empty_scores(packed, sources.candidates, plan.tasks)
    if _exist(sources.candidates):
        config = config_of(plan, "scores", packed.device)
        settings = (call.fusion_weights, call.fusion, call.weights_per, config, outputs, INTERPRETED)
        run(score_launch(sources, packed, plan, *settings))
    return outputs


def _score_program(call: Call, run: Run) -> tuple[Tensor, Tensor, Tensor]:
    """The request form's rows are read as whole rows: nothing is computed once per request."""
    inputs, packed = call.inputs, call.packed
    by_request = "user" in inputs
    offsets = inputs.get("offsets") if by_request or call.weights_per == "request" else None
    rows = ProgramRows(inputs["item" if by_request else "x"], inputs.get("user"), offsets)
    outputs = empty_scores(packed, rows.x.shape[0], call.plan.tasks)
    if _exist(rows.x.shape[0]):
        ending = Ending(call.fusion_weights, call.fusion, call.weights_per, *outputs)
        run(program_launch(rows, packed, call.plan, ending, INTERPRETED))
    return outputs


def program_outputs(run: Run, x: Tensor, packed: Tensor, encoded: tuple[int, ...]) -> Tensor:
    """:func:`resflow_kernels.ops.program_outputs`."""
    op, program = "program_outputs", decoded(tuple(encoded))
    checks.program(op, program)
    checks.matrix(op, "x", x, program.in_features, *_ROWS)
    check_model(op, packed, program, x=x)
    outputs = packed.new_empty((x.shape[0], program.output_columns), dtype=torch.float32)
    if _exist(x.shape[0]):
        run(program_launch(ProgramRows(x), packed, program, outputs, INTERPRETED))
    return outputs


def _project(rows: Tensor, first_input: int, packed: Tensor, plan: Plan, with_bias: bool, run: Run) -> Tensor:
    out = packed.new_empty((rows.shape[0], plan.table_width), dtype=torch.float32)
    if _exist(rows.shape[0]):
        config = config_of(plan, "project", packed.device)
        run(project_launch(rows, first_input, packed, plan, with_bias, out, config, INTERPRETED))
    return out


def _exist(count: int) -> bool:
    """Whether there is anything to compute; for an unknown size, a traced graph computes it even for zero elements."""
    return not isinstance(count, int) or count > 0


def check_model(op: str, packed: Tensor, plan: AnyPlan, **others: Tensor | None) -> None:
    """Check for a precision that the kernels support, weights of the plan's size, and all tensors on their device."""
    checks.precision(op, plan, packed, "cuda")
    checks.packed(op, packed, plan)
    for argument, tensor in others.items():
        if tensor is not None:
            checks.device(op, argument, tensor, packed.device)
