"""The launches of a call: kernel, grid and arguments. Runs nothing and reads no tensor's data."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.fusion import weight_count
from ..core.plan import Plan
from .chain import chain_kernel
from .configs import Config, is_chain
from .forest import forest_kernel
from .layout import MAGIC, Layout, layout_of
from .project import project_kernel

# Number of concurrent programs of the forest kernel, each of which has a part of the workspace: enough for two on each
# multiprocessor of today's largest GPUs.
FOREST_PROGRAMS = 320


class Launch(NamedTuple):
    """A kernel with all its arguments. ``arguments`` vary from call to call, ``constants`` are compiled in."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    constants: dict[str, Any]
    options: dict[str, int]


class Sources(NamedTuple):
    """The candidates of a form; fields that the form lacks are None."""

    x: Tensor | None  # rows of the inputs from ``first_input`` to the last
    first_input: int
    candidates: int
    starts: Tensor | None = None  # users' projections
    offsets: Tensor | None = None
    ids: Tensor | None = None
    table: Tensor | None = None
    scales: Tensor | None = None  # of an int8 table


def power_of_2(least: int) -> int:
    """The smallest power of 2 that is not below ``least``."""
    return 1 << (least - 1).bit_length()


def score_launch(
    sources: Sources,
    packed: Tensor,
    plan: Plan,
    fusion_weights: Tensor,
    fusion: str,
    weights_per: str,
    config: Config,
    outputs: tuple[Tensor, Tensor, Tensor],
    interpreted: bool,
) -> Launch:
    """The launch that writes the candidates' logits, probabilities and score to ``outputs``."""
    x, table, count = sources.x, sources.table, sources.candidates
    logits, probs, score = outputs
    requests = 0 if sources.offsets is None else sources.offsets.shape[0] - 1
    tiles = -(-count // config.block_m)
    arguments = {
        "x": x,
        "x_stride": 0 if x is None else x.stride(0),
        "count": count,
        "starts": sources.starts,
        "offsets": sources.offsets,
        "requests": requests,
        "ids": sources.ids,
        "table": table,
        "table_stride": 0 if table is None else table.stride(0),
        "scales": sources.scales if table is not None and table.dtype == torch.int8 else None,
        "items": 0 if table is None else table.shape[0],
        "packed": packed,
        "fusion_weights": fusion_weights,
        "logits": logits,
        "probs": probs,
        "score": score,
    }
    inputs = (sources.first_input, 0 if x is None else plan.in_features - sources.first_input)
    chain = is_chain(plan)
    constants = _score_constants(plan, chain, inputs, fusion, weights_per, config, interpreted)
    if chain:
        return Launch(chain_kernel, (tiles,), arguments, constants, config.options)
    programs = _at_most(tiles, FOREST_PROGRAMS)
    layout = layout_of(plan)
    floats = programs * (layout.slot_count * config.block_m * layout.kept_columns)
    arguments["workspace"] = packed.new_empty((floats,), dtype=torch.float32)
    return Launch(forest_kernel, (programs,), arguments, constants, config.options)


def project_launch(
    rows: Tensor,
    first_input: int,
    packed: Tensor,
    plan: Plan,
    with_bias: bool,
    out: Tensor,
    config: Config,
    interpreted: bool,
) -> Launch:
    """The product of rows of inputs from ``first_input`` on and all first layers: ``out [rows, plan.table_width]``."""
    count, columns = rows.shape
    arguments = {"x": rows, "x_stride": rows.stride(0), "count": count, "packed": packed, "out": out}
    constants = _project_constants(plan, with_bias, first_input, columns, config, interpreted)
    panels = -(-layout_of(plan).layers[0].padded // constants["BLOCK_N"])
    grid = (-(-count // config.block_m) * (plan.tasks * panels),)
    return Launch(project_kernel, grid, arguments, constants, config.options)


def _at_most(value: int, bound: int) -> int:
    """A minimum that tracers can follow for unknown sizes."""
    return torch.sym_min(value, bound)


def _weights_constants(plan: Plan, layout: Layout) -> dict[str, Any]:
    return {
        "TASKS": plan.tasks,
        "TASK_FLOATS": layout.task_floats,
        "PANELS": (layout.tensor_start, layout.task_tensor_values),
        "HEADER": (MAGIC, layout.fingerprint),
        "PRECISION": plan.precision,
    }


@lru_cache(maxsize=1024)
def _score_constants(
    plan: Plan,
    chain: bool,
    inputs: tuple[int, int],
    fusion: str,
    weights_per: str,
    config: Config,
    interpreted: bool,
) -> dict[str, Any]:
    layout = layout_of(plan)
    constants = _weights_constants(plan, layout) | {
        "LAYERS": tuple(tuple(layer) for layer in layout.layers),
        "HEAD": (layout.head, layout.head_bias),
        "JOIN": plan.join,
        "FEATURE_RESIDUAL": plan.feature_residual,
        "AFFINE": plan.affine,
        "FIRST_INPUT": inputs[0],
        "INPUT_COUNT": inputs[1],
        "FUSION": fusion,
        "PER": weights_per,
        "WEIGHT_COUNT": weight_count(fusion, plan.tasks),
        "TASK_COLUMNS": power_of_2(plan.tasks),
        "BLOCK_M": config.block_m,
        "BLOCK_K": config.block_k,
        "INTERPRETED": interpreted,
    }
    if chain:
        widths = tuple(power_of_2(layer.padded) for layer in layout.layers)
        return constants | {"ROOTS": layout.roots, "BLOCK_N": widths}
    return constants | {
        "PARENTS": plan.parents,
        "SLOTS": layout.slots,
        "SLOT_COUNT": layout.slot_count,
        "KEPT_COLUMNS": layout.kept_columns,
        "BLOCK_N": config.block_n,
    }


@lru_cache(maxsize=1024)
def _project_constants(
    plan: Plan, with_bias: bool, first_input: int, columns: int, config: Config, interpreted: bool
) -> dict[str, Any]:
    layout = layout_of(plan)
    return _weights_constants(plan, layout) | {
        "LAYER": tuple(layout.layers[0]),
        "WITH_BIAS": with_bias,
        "FIRST_INPUT": first_input,
        "INPUT_COUNT": columns,
        "BLOCK_N": min(config.block_n, power_of_2(layout.layers[0].padded)),
        "BLOCK_M": config.block_m,
        "BLOCK_K": config.block_k,
        "INTERPRETED": interpreted,
    }
