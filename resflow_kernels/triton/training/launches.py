"""The launches of training: kernels, grids, arguments and tile sizes. Runs nothing and reads no tensor's data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from ...core.plan import Plan
from ..launch import Launch, power_of_2
from .backward import outputs_back_kernel, statistics_back_kernel
from .heads import heads_back_kernel, heads_kernel
from .layout import Layer, Layout, layout_of
from .products import inputs_gradient_kernel, matrix_gradient_kernel, sums_kernel
from .reduce import channel_sums_kernel, splits_kernel, statistics_kernel


class Tiles(NamedTuple):
    """Tile sizes of a program; they do not depend on the device, so results do not either."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    # Register cap per thread (maxnreg): without it ptxas spills some registers to fit one more block on an SM.
    registers: int | None = None

    @property
    def options(self) -> dict[str, int]:
        options = {"num_warps": self.warps, "num_stages": self.stages}
        return options if self.registers is None else options | {"maxnreg": self.registers}


PRODUCT_TILES = {"float32": Tiles(64, 64, 16, 8, 3, 128), "tensorfloat32": Tiles(128, 64, 32, 8, 3, 168)}
ROW_TILES = Tiles(32, 64, 0, 4, 1)  # for passes without products

# The rows of a matrix's gradient are split among this many programs, two per SM of an H100, in parts of at least
# SPLIT_ROWS.
SPLIT_PROGRAMS = 264
SPLIT_ROWS = 256

# Tile sizes of reductions: tiles and channels, or values.
_REDUCED = {"BLOCK_T": 32, "BLOCK_C": 32}
_SPLIT_VALUES = 1024
_ONE_STAGE = {"num_warps": 4, "num_stages": 1}

KINDS = 4  # kinds of sums over rows: SLOPES, BIASES, SCALES and SHIFTS in backward.py


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True)
class Network:
    """A plan's weights as kernel arguments. ``mean`` and ``variance`` are the batch's, of all layers, or empty."""

    plan: Plan
    statistics: int
    weights: Tensor
    mean: Tensor
    variance: Tensor
    eps: float
    precision: str
    interpreted: bool

    @property
    def layout(self) -> Layout:
        return layout_of(self.plan, self.statistics)

    @property
    def gradient_layout(self) -> Layout:
        return layout_of(self.plan, self.statistics, 1)

    @property
    def arguments(self) -> dict[str, Any]:
        return {"weights": self.weights, "mean": self.mean, "variance": self.variance, "eps": self.eps}

    @property
    def tiles(self) -> Tiles:
        return PRODUCT_TILES[self.precision]

    def channels(self, level: int) -> int:
        return self.plan.tasks * self.layout.layers[level].padded

    def layer(self, level: int) -> dict[str, Any]:
        return {"LAYER": tuple(self.layout.layers[level]), "TASKS": self.plan.tasks}

    def product(self, level: int) -> dict[str, Any]:
        """Constants of a product with a layer's matrices."""
        before = None if level == 0 else tuple(self.layout.layers[level - 1])
        own = {"BEFORE": before, "PRECISION": self.precision, "INTERPRETED": self.interpreted}
        return self.layer(level) | own


def sums_launch(
    network: Network, level: int, source: Tensor, count: int, sums: Tensor, moments: tuple[Tensor, Tensor] | None
) -> Launch:
    """A layer's pre-activations. ``source`` is x or those of the layer before; ``moments`` are BatchNorm's per tile."""
    tiles = network.tiles
    together, panels = _column_blocks(network, level, tiles.columns)
    jobs = panels * (1 if level == 0 else network.plan.tasks)
    arguments = {
        "source": source,
        "stride": source.stride(0) if level == 0 else 0,
        "count": count,
        **network.arguments,
        "sums": sums,
        "tile_means": None if moments is None else moments[0],
        "tile_squares": None if moments is None else moments[1],
    }
    constants = network.product(level) | {
        "ANCESTORS": network.layout.ancestors,
        "JOBS": jobs,
        "BLOCK_M": tiles.rows,
        "BLOCK_N": together,
        "BLOCK_K": tiles.depth,
    }
    return Launch(sums_kernel, (ceil_div(count, tiles.rows) * jobs,), arguments, constants, tiles.options)


def statistics_launch(network: Network, level: int, count: int, moments: tuple[Tensor, Tensor]) -> Launch:
    """The batch's mean and variance from the moments of tiles."""
    arguments = {
        "tile_means": moments[0],
        "tile_squares": moments[1],
        "tiles": ceil_div(count, network.tiles.rows),
        "count": count,
        "mean": network.mean,
        "variance": network.variance,
    }
    constants = network.layer(level) | {"TILE_ROWS": network.tiles.rows} | _REDUCED
    return Launch(
        statistics_kernel, (ceil_div(network.channels(level), _REDUCED["BLOCK_C"]),), arguments, constants, _ONE_STAGE
    )


def heads_launch(network: Network, sums: Tensor, own: Tensor, logits: Tensor) -> Launch:
    """The tasks' own logits, and logits, from the last layer's pre-activations."""
    count = logits.shape[0]
    arguments = {"sums": sums, "count": count, **network.arguments, "own": own, "logits": logits}
    constants = _head_constants(network) | {"HEAD": (network.layout.head, network.layout.head_bias)}
    return Launch(heads_kernel, (ceil_div(count, ROW_TILES.rows),), arguments, constants, ROW_TILES.options)


def heads_back_launch(
    network: Network,
    sums: Tensor,
    own: Tensor,
    logit_gradients: Tensor,
    gradients: Tensor,
    tile_weights: Tensor,
    tile_biases: Tensor,
) -> Launch:
    """Gradients of the tasks' own logits from those of logits, and each tile's sums for the heads' gradients."""
    count = own.shape[0]
    arguments = {
        "sums": sums,
        "count": count,
        **network.arguments,
        "own": own,
        "logit_gradients": logit_gradients,
        "gradients": gradients,
        "tile_weights": tile_weights,
        "tile_biases": tile_biases,
    }
    grid = (ceil_div(count, ROW_TILES.rows),)
    return Launch(heads_back_kernel, grid, arguments, _head_constants(network), ROW_TILES.options)


def outputs_back_launch(
    network: Network, level: int, gradients: Tensor, sums: Tensor, count: int, out: Tensor, tile_sums: Tensor
) -> Launch:
    """Gradients of a layer's outputs (in the last layer: of the tasks' own logits) backward through the layer."""
    layout = network.layout
    constants = network.layer(level) | {
        "HEAD": layout.head if level == network.plan.layers - 1 else None,
        "DESCENDANTS": layout.descendants,
        "IN_LINE": tuple(int(one) for one in layout.in_line),
    }
    arguments = {"gradients": gradients, "sums": sums, "count": count, **network.arguments, "out": out}
    return _back_launch(outputs_back_kernel, network, level, 1, arguments, constants, tile_sums)


def statistics_back_launch(
    network: Network, level: int, gradients: Tensor, sums: Tensor, count: int, means: Tensor, tile_sums: Tensor
) -> Launch:
    """Gradients of the pre-activations from those of normalised values, in place."""
    arguments = {"gradients": gradients, "sums": sums, "count": count, **network.arguments, "means": means}
    constants = network.layer(level)
    return _back_launch(statistics_back_kernel, network, level, network.plan.tasks, arguments, constants, tile_sums)


def channel_sums_launch(
    layer: Layer, tasks: int, tile_sums: Tensor, count: int, out: Tensor, means: Tensor | None, places: tuple[int, ...]
) -> Launch:
    """Gradients from sums of tiles; ``places``, one per kind, and ``layer`` describe the gradients' layout."""
    blocks = ceil_div(tasks * layer.padded, _REDUCED["BLOCK_C"])
    tiles = ceil_div(count, ROW_TILES.rows)
    arguments = {"tile_sums": tile_sums, "tiles": tiles, "count": count, "out": out, "means": means}
    constants = {"LAYER": tuple(layer), "TASKS": tasks, "PLACES": places, "BLOCKS": blocks, **_REDUCED}
    return Launch(channel_sums_kernel, (len(places) * blocks,), arguments, constants, _ONE_STAGE)


def inputs_gradient_launch(network: Network, level: int, gradients: Tensor, count: int, out: Tensor) -> Launch:
    """Gradients of a layer's inputs, written to ``out``: of x, or of the outputs of the layer before."""
    tiles, layer = network.tiles, network.layout.layers[level]
    columns = min(tiles.columns, max(16, power_of_2(layer.inputs)))
    jobs = ceil_div(layer.inputs, columns) * (1 if level == 0 else network.plan.tasks)
    arguments = {
        "gradients": gradients,
        "count": count,
        "weights": network.weights,
        "out": out,
        "out_stride": layer.inputs if level == 0 else network.channels(level - 1),
    }
    constants = network.product(level) | {
        "JOBS": jobs,
        "BLOCK_M": tiles.rows,
        "BLOCK_N": columns,
        "BLOCK_K": tiles.depth,
    }
    grid = (ceil_div(count, tiles.rows) * jobs,)
    return Launch(inputs_gradient_kernel, grid, arguments, constants, tiles.options)


def matrix_gradient_launches(
    network: Network, level: int, gradients: Tensor, source: Tensor, count: int, out: Tensor
) -> list[Launch]:
    """Gradients of a layer's matrices, in ``out`` with all others: over parts of the rows, which are then summed."""
    tiles, layer, tasks = network.tiles, network.layout.layers[level], network.plan.tasks
    rows_block, panels = _column_blocks(network, level, tiles.rows)
    columns = min(tiles.columns, max(16, power_of_2(layer.inputs)))
    jobs = panels * (1 if level == 0 else tasks) * ceil_div(layer.inputs, columns)
    wanted = min(ceil_div(SPLIT_PROGRAMS, jobs), ceil_div(count, SPLIT_ROWS))
    # SPLIT_ROWS is a constant of the kernel, so it takes few distinct values; and it is a multiple of the depth.
    split_rows = max(power_of_2(ceil_div(count, wanted)), tiles.depth)
    splits = ceil_div(count, split_rows)
    values = layer.width * layer.inputs
    own = network.gradient_layout
    place = own.layers[level].matrix
    target = out if splits == 1 else out.new_empty((splits * tasks * values,))
    arguments = {
        "gradients": gradients,
        "source": source,
        "stride": source.stride(0) if level == 0 else 0,
        "count": count,
        **network.arguments,
        "out": target,
    }
    constants = network.product(level) | {
        "ANCESTORS": network.layout.ancestors,
        "JOBS": jobs,
        "SPLIT_ROWS": split_rows,
        "OUT": (0, own.task_floats, place) if splits == 1 else (tasks * values, values, 0),
        "BLOCK_M": rows_block,
        "BLOCK_N": columns,
        "BLOCK_K": tiles.depth,
    }
    launches = [Launch(matrix_gradient_kernel, (splits * jobs,), arguments, constants, tiles.options)]
    if splits > 1:
        sizes = {"TASK_VALUES": values, "VALUES": tasks * values, "TASK_FLOATS": own.task_floats, "PLACE": place}
        grid = (ceil_div(tasks * values, _SPLIT_VALUES),)
        parts = {"splits": target, "count": splits, "out": out}
        launches.append(Launch(splits_kernel, grid, parts, sizes | {"BLOCK": _SPLIT_VALUES}, _ONE_STAGE))
    return launches


def _column_blocks(network: Network, level: int, most: int) -> tuple[int, int]:
    """Columns of a layer (in the first layer: of all tasks) per product, and the number of such blocks."""
    columns = network.channels(0) if level == 0 else network.layout.layers[level].padded
    block = min(most, power_of_2(columns))
    return block, ceil_div(columns, block)


def _head_constants(network: Network) -> dict[str, Any]:
    plan = network.plan
    return network.layer(plan.layers - 1) | {
        "TASK_COLUMNS": power_of_2(plan.tasks),
        "PARENTS": plan.parents,
        "ANCESTORS": network.layout.ancestors,
        "JOIN": network.layout.join,
        "BLOCK_M": ROW_TILES.rows,
        "BLOCK_N": _row_columns(network, plan.layers - 1),
    }


def _row_columns(network: Network, level: int) -> int:
    return min(ROW_TILES.columns, power_of_2(network.layout.layers[level].padded))


def _back_launch(
    kernel: Any,
    network: Network,
    level: int,
    tasks_apart: int,
    arguments: dict[str, Any],
    constants: dict[str, Any],
    tile_sums: Tensor,
) -> Launch:
    columns = _row_columns(network, level)
    tiles = ceil_div(arguments["count"], ROW_TILES.rows)
    grid = (tiles * tasks_apart * ceil_div(network.layout.layers[level].padded, columns),)
    arguments |= {"tile_sums": tile_sums, "tiles": tiles}
    constants |= {"BLOCK_M": ROW_TILES.rows, "BLOCK_N": columns}
    return Launch(kernel, grid, arguments, constants, ROW_TILES.options)
