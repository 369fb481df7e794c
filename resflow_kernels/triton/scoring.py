"""The forms of scoring on Triton kernels: arguments and results are those of :mod:`resflow_kernels.ops`.

Nothing is read back from the device: candidates of ids out of range, outside all requests, or of weights packed for
another plan score NaN. ``run`` launches; while PyTorch traces it records instead (:mod:`.traced`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor
from triton import JITFunction

from ..contract import WEIGHTS_PER
from ..core import checks
from ..core.outputs import empty_scores
from ..core.plan import Plan
from ..reference import int8_rows
from .chain import chain_kernel
from .configs import config_of
from .launch import Launch, Sources, project_launch, score_launch

# Whether kernels run under Triton's interpreter, which TRITON_INTERPRET=1 decides when they are defined.
INTERPRETED = not isinstance(chain_kernel, JITFunction)

# Items of a catalogue are multiplied this many bytes of float32 products at a time.
_PRODUCT_BYTES = 1 << 26

Run = Callable[[Launch], None]
_ROWS = checks.row_dtypes("cuda")


def run(launch: Launch) -> None:
    """Launches on the device of the packed weights, in its current stream."""
    packed: Tensor = launch.arguments["packed"]
    with torch.cuda.device_of(packed) if packed.is_cuda else nullcontext():
        launch.kernel[launch.grid](**launch.arguments, **launch.constants, **launch.options)


def dense_scores(
    x: Tensor,
    packed: Tensor,
    plan: Plan,
    fusion_weights: Tensor,
    fusion: int,
    weights_per: int,
    op: str = "dense_scores",
    offsets: Tensor | None = None,
    run: Run = run,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`resflow_kernels.ops.dense_scores`; ``offsets`` cut x into requests (of :func:`dense_topk`)."""
    checks.matrix(op, "x", x, plan.in_features, *_ROWS)
    requests = None
    if offsets is not None:
        checks.offsets(op, offsets, None)
        requests = offsets.shape[0] - 1
    checks.fusion(op, fusion_weights, fusion, weights_per, plan.tasks, x.shape[0], requests, torch.float32)
    check_model(op, packed, plan, x=x, fusion_weights=fusion_weights, offsets=offsets)
    _check_values(op, offsets, x.shape[0])
    # Nothing but a request's weights asks which one a row belongs to.
    sources = Sources(x, 0, x.shape[0], offsets=offsets if WEIGHTS_PER[weights_per] == "request" else None)
    return _score(sources, packed, plan, fusion_weights, fusion, weights_per, run)


def request_scores(
    user: Tensor,
    item: Tensor,
    offsets: Tensor,
    packed: Tensor,
    plan: Plan,
    fusion_weights: Tensor,
    fusion: int,
    weights_per: int,
    op: str = "request_scores",
    run: Run = run,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`resflow_kernels.ops.request_scores`."""
    count, requests = item.shape[0], user.shape[0]
    checks.matrix(op, "user", user, None, *_ROWS)
    checks.matrix(op, "item", item, None, *_ROWS)
    checks.columns_sum(op, user, item, plan)
    checks.offsets(op, offsets, requests)
    checks.fusion(op, fusion_weights, fusion, weights_per, plan.tasks, count, requests, torch.float32)
    check_model(op, packed, plan, user=user, item=item, offsets=offsets, fusion_weights=fusion_weights)
    _check_values(op, offsets, count)
    starts = _project(user, 0, packed, plan, True, run)
    sources = Sources(item, user.shape[1], count, starts, offsets)
    return _score(sources, packed, plan, fusion_weights, fusion, weights_per, run)


def catalog_scores(
    user: Tensor,
    ids: Tensor,
    offsets: Tensor,
    table: Tensor,
    scales: Tensor,
    packed: Tensor,
    plan: Plan,
    fusion_weights: Tensor,
    fusion: int,
    weights_per: int,
    op: str = "catalog_scores",
    run: Run = run,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`resflow_kernels.ops.catalog_scores`."""
    count, requests = ids.shape[0], user.shape[0]
    checks.side(op, "user", user, plan, *_ROWS)
    checks.table(op, table, scales, plan)
    checks.ids(op, ids)
    checks.offsets(op, offsets, requests)
    checks.fusion(op, fusion_weights, fusion, weights_per, plan.tasks, count, requests, torch.float32)
    inputs = {"user": user, "ids": ids, "offsets": offsets, "table": table, "scales": scales}
    check_model(op, packed, plan, **inputs, fusion_weights=fusion_weights)
    _check_values(op, offsets, count, ids, table.shape[0])
    starts = _project(user, 0, packed, plan, True, run)
    sources = Sources(None, plan.in_features, count, starts, offsets, ids, table, scales)
    return _score(sources, packed, plan, fusion_weights, fusion, weights_per, run)


def catalog_rows(item: Tensor, packed: Tensor, plan: Plan, element: int) -> tuple[Tensor, Tensor]:
    """:func:`resflow_kernels.ops.catalog_rows`."""
    op = "catalog_rows"
    checks.side(op, "item", item, plan, *_ROWS)
    checks.element(op, element)
    check_model(op, packed, plan, item=item)
    dtype, count = checks.ELEMENT_DTYPES[element], item.shape[0]
    table = item.new_empty((count, plan.table_width), dtype=dtype)
    scales = item.new_empty((count if dtype == torch.int8 else 0,), dtype=torch.float32)
    at_once = max(1, _PRODUCT_BYTES // (4 * plan.table_width))
    for first in range(0, count, at_once):
        part = slice(first, first + at_once)
        products = _project(item[part], plan.in_features - item.shape[1], packed, plan, False, run)
        if dtype == torch.int8:
            table[part], scales[part] = int8_rows(products)
        else:
            table[part] = products
    return table, scales


def topk(score: Tensor, offsets: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """:func:`resflow_kernels.reference.topk` without reading anything back: two stable sorts of all candidates."""
    count, requests = score.shape[0], offsets.shape[0] - 1
    places, first = torch.arange(count, device=score.device), offsets.select(0, 0)
    request = torch.searchsorted(offsets.narrow(0, 1, requests), places, right=True)
    request = torch.where(places < first, requests, request)
    by_score = torch.sort(-score, stable=True).indices  # NaN after every number
    order = by_score.gather(0, torch.sort(request.gather(0, by_score), stable=True).indices)
    request = request.gather(0, order)
    begin = offsets.gather(0, request)
    position = order - begin
    rank = places - (begin - first)  # the sorted requests follow each other from 0 on
    kept = (rank >= 0) & (rank < k) & (position >= 0) & (request < requests)
    to = torch.where(kept, request * k + rank, requests * k)  # the rest into one place more, which is cut off
    scores = score.new_full((requests * k + 1,), float("nan")).scatter(0, to, score.gather(0, order))
    positions = places.new_full((requests * k + 1,), -1).scatter(0, to, position)
    return scores.narrow(0, 0, requests * k).view(requests, k), positions.narrow(0, 0, requests * k).view(requests, k)


def _score(
    sources: Sources, packed: Tensor, plan: Plan, fusion_weights: Tensor, fusion: int, weights_per: int, run: Run
) -> tuple[Tensor, Tensor, Tensor]:
    outputs = empty_scores(packed, sources.candidates, plan.tasks)
    if _exist(sources.candidates):
        config = config_of(plan, "scores", packed.device)
        run(score_launch(sources, packed, plan, fusion_weights, fusion, weights_per, config, outputs, INTERPRETED))
    return outputs


def _project(rows: Tensor, first_input: int, packed: Tensor, plan: Plan, with_bias: bool, run: Run) -> Tensor:
    out = packed.new_empty((rows.shape[0], plan.table_width), dtype=torch.float32)
    if _exist(rows.shape[0]):
        config = config_of(plan, "project", packed.device)
        run(project_launch(rows, first_input, packed, plan, with_bias, out, config, INTERPRETED))
    return out


def _exist(count: int) -> bool:
    """Whether there is anything to do; a traced graph of unknown sizes does it for none as well."""
    return not isinstance(count, int) or count > 0


def check_model(op: str, packed: Tensor, plan: Plan, **others: Tensor | None) -> None:
    """A precision the kernels have, weights of the plan's size, and all tensors on their device."""
    checks.precision(op, plan, packed, "cuda")
    checks.packed(op, packed, plan)
    for argument, tensor in others.items():
        if tensor is not None:
            checks.device(op, argument, tensor, packed.device)


def _check_values(op: str, offsets: Tensor | None, count: int, ids: Tensor | None = None, items: int = 0) -> None:
    if os.environ.get("RESFLOW_CHECK_IDS") != "1" or torch.compiler.is_compiling():
        return
    if ids is not None:
        checks.id_values(op, ids, items)
    if offsets is not None:
        checks.offset_values(op, offsets, count)
