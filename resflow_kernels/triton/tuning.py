"""Times a plan's kernels in several configurations on this GPU, and stores the best.

Only on request: by :func:`resflow_kernels.triton.tune`, or with ``RESFLOW_AUTOTUNE=1``, which tunes a plan when it is
first scored here. Any other first call uses the configuration of :mod:`.configs`, and waits only for its compilation.
"""

from __future__ import annotations

import os
from functools import cache

import torch
import triton

from ..core.plan import Plan
from . import scoring
from .configs import Config, cache_file, cached, device_key, is_chain, signature, store
from .launch import Launch, Sources, project_launch, score_launch

# Number of candidates of a timed call: enough to fill the largest GPUs with the largest tiles.
TUNED_CANDIDATES = 65536
TUNED_REQUESTS = 64

AUTOTUNE = os.environ.get("RESFLOW_AUTOTUNE") == "1"


def space(plan: Plan, kind: str) -> list[Config]:
    """Configurations to try: the tile sizes that compile well, with 2 to 4 stages of loads."""
    four_bytes = plan.precision in ("float32", "tensorfloat32")
    if kind == "project":
        tiles = [(16, 64, 4), (32, 64, 4), (64, 64, 4), (64, 128, 8)]
    elif plan.precision == "float32":
        tiles = [(16, 64, 4), (32, 64, 4), (64, 64, 8)]
    else:
        tiles = [(32, 64, 4), (32, 64, 8), (64, 64, 4), (64, 64, 8), (128, 64, 8)]
        tiles += [] if is_chain(plan) else [(64, 128, 8)]
    inputs = {"float32": (16, 32), "tensorfloat32": (32, 64)}.get(plan.precision, (32, 64))
    return [
        Config(block_m, block_k, block_n, warps, stages)
        for block_m, block_n, warps in tiles
        for block_k in inputs
        for stages in ((2, 3) if four_bytes else (3, 4))
    ]


def tune(plan: Plan, device: str | torch.device = "cuda", rows: torch.dtype | None = None) -> dict[str, Config]:
    """Time a plan's kernels on a GPU and store the best configurations for it in the machine's cache.

    Scores may differ in their last bits from those before: another tiling sums in another order.

    Args:
        plan: the network; only its shape and precision matter.
        device: the GPU.
        rows: the dtype of rows; ``None``: the plan's precision if it is a dtype, else float32.

    Returns:
        The stored configurations, one for each kind of kernel.

    Raises:
        ValueError: no GPU, Triton's interpreter, or a precision that Triton's kernels lack.
    """
    device = torch.device(device)
    if scoring.INTERPRETED or device.type != "cuda" or torch.cuda.device_count() == 0:
        raise ValueError(f"tune: device must be a GPU, without TRITON_INTERPRET=1, got {device}")
    packed = torch.zeros(plan.packed_bytes, dtype=torch.uint8, device=device)
    scoring.check_model("tune", packed, plan)
    if rows is None:
        rows = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(plan.precision, torch.float32)
    best = {}
    with torch.cuda.device(device):
        for kind in ("scores", "project"):
            times = {config: _time(plan, kind, config, packed, rows) for config in space(plan, kind)}
            best[signature(plan, kind)] = min(times, key=lambda config: times[config])
        store(cache_file(device_key(torch.cuda.current_device())), best)
    return best


def _time(plan: Plan, kind: str, config: Config, packed: torch.Tensor, rows: torch.dtype) -> float:
    """Milliseconds of one launch; infinite if the configuration does not fit the GPU."""
    launch = _launch(plan, kind, config, packed, rows)
    try:
        return float(triton.testing.do_bench(lambda: scoring.run(launch), quantiles=[0.5]))
    except triton.runtime.errors.OutOfResources:
        return float("inf")


def _launch(plan: Plan, kind: str, config: Config, packed: torch.Tensor, rows: torch.dtype) -> Launch:
    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=packed.device)

    count, tasks = TUNED_CANDIDATES, plan.tasks
    if kind == "project":
        users = empty(TUNED_REQUESTS, plan.in_features, dtype=rows)
        out = empty(TUNED_REQUESTS, plan.table_width)
        return project_launch(users, 0, packed, plan, True, out, config, False)
    outputs = (empty(count, tasks), empty(count, tasks), empty(count))
    sources = Sources(empty(count, plan.in_features, dtype=rows), 0, count)
    return score_launch(sources, packed, plan, empty(tasks), "additive", "call", config, outputs, False)


def tune_if_asked(plan: Plan, device: torch.device) -> None:
    """Tune the plan if ``RESFLOW_AUTOTUNE=1`` is set and the cache has no configuration for it yet."""
    if AUTOTUNE and device.type == "cuda" and not scoring.INTERPRETED:
        _tune_once(plan, device)


@cache
def _tune_once(plan: Plan, device: torch.device) -> None:
    if signature(plan, "scores") not in cached(cache_file(device_key(device.index or 0))):
        tune(plan, device)
