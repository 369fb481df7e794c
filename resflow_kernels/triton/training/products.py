"""Products of all tasks of a layer in one launch: pre-activations forward, two gradients backward."""

import triton
import triton.language as tl

from ..formulas import activate
from ..functions import at, multiply, operand, wide
from .layers import (
    ACTIVATION,
    BIAS,
    INPUTS,
    MATRIX,
    NORMALISATION,
    PADDED,
    TASK_FLOATS,
    WIDTH,
    blocks_of,
    columns_of,
    inputs_tile,
    slopes,
    vector,
)


@triton.jit
def sums_kernel(
    source,
    stride,
    count,
    weights,
    mean,
    variance,
    eps,
    sums,
    tile_means,
    tile_squares,
    LAYER: tl.constexpr,
    BEFORE: tl.constexpr,
    TASKS: tl.constexpr,
    ANCESTORS: tl.constexpr,
    JOBS: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Computes a layer's pre-activations. With ``tile_means``, also per tile the mean over its rows of what BatchNorm
    normalises, and the sum of squared distances from it, ``[tiles][tasks * padded]``.
    """
    network = (weights, mean, variance, eps)
    tile = tl.program_id(0) // JOBS
    task_of_inputs, columns, exist = columns_of(tl.program_id(0) % JOBS, BLOCK_N, LAYER, BEFORE, TASKS)
    task, column = columns // LAYER[PADDED], columns % LAYER[PADDED]
    inside = exist & (column < LAYER[WIDTH])
    rows = wide(tile) * BLOCK_M + tl.arange(0, BLOCK_M)
    live = rows < count
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32) + vector(network, task, column, inside, BIAS, LAYER)
    matrices = weights + wide(LAYER[TASK_FLOATS]) * task + LAYER[MATRIX] + wide(LAYER[INPUTS]) * column
    for first in range(0, LAYER[INPUTS], BLOCK_K):
        inputs = first + tl.arange(0, BLOCK_K)
        values = inputs_tile(
            source, stride, rows, live, task_of_inputs, inputs, network, LAYER, BEFORE, TASKS, ANCESTORS
        )
        some = inside[None, :] & (inputs < LAYER[INPUTS])[:, None]
        matrix = tl.load(matrices[None, :] + inputs[:, None], mask=some, other=0.0)
        values, matrix = operand(values, PRECISION, INTERPRETED), operand(matrix, PRECISION, INTERPRETED)
        total = multiply(total, values, matrix, PRECISION, INTERPRETED)
    places = rows[:, None] * (TASKS * LAYER[PADDED]) + columns[None, :]
    tl.store(sums + places, tl.where(inside[None, :], total, 0.0), mask=live[:, None] & exist[None, :])
    if tile_means is not None:
        if LAYER[NORMALISATION] == "batch_after":
            slope = slopes(network, task, column, inside, LAYER)
            total = activate(total, slope, at(LAYER, ACTIVATION))
        own_rows = tl.minimum(count - wide(tile) * BLOCK_M, BLOCK_M).to(tl.float32)
        middle = tl.sum(tl.where(live[:, None], total, 0.0), axis=0) / own_rows
        distance = tl.where(live[:, None], total - middle[None, :], 0.0)
        place = wide(tile) * (TASKS * LAYER[PADDED]) + columns
        tl.store(tile_means + place, middle, mask=exist)
        tl.store(tile_squares + place, tl.sum(distance * distance, axis=0), mask=exist)


@triton.jit
def inputs_gradient_kernel(
    gradients,
    count,
    weights,
    out,
    out_stride,
    LAYER: tl.constexpr,
    BEFORE: tl.constexpr,
    TASKS: tl.constexpr,
    JOBS: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Computes the gradients of a layer's inputs from those of its pre-activations: of x, to which all tasks add, or of
    the outputs of the layer before, task by task.
    """
    tile, job = tl.program_id(0) // JOBS, tl.program_id(0) % JOBS
    panels: tl.constexpr = (LAYER[INPUTS] + BLOCK_N - 1) // BLOCK_N
    group, inputs = job // panels, job % panels * BLOCK_N + tl.arange(0, BLOCK_N)
    if BEFORE is None:
        depth: tl.constexpr = TASKS * LAYER[PADDED]
        out_columns = inputs
    else:
        depth: tl.constexpr = LAYER[PADDED]
        out_columns = wide(BEFORE[PADDED]) * group + inputs
    inside = inputs < LAYER[INPUTS]
    rows = wide(tile) * BLOCK_M + tl.arange(0, BLOCK_M)
    live = rows < count
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(0, depth, BLOCK_K):
        own = first + blocks_of(0, BLOCK_K, TASKS * LAYER[PADDED])
        columns = group * depth + own
        task, column = columns // LAYER[PADDED], columns % LAYER[PADDED]
        exist = (own < depth) & (column < LAYER[WIDTH])
        places = rows[:, None] * (TASKS * LAYER[PADDED]) + columns[None, :]
        values = tl.load(gradients + places, mask=live[:, None] & exist[None, :], other=0.0)
        matrices = wide(LAYER[TASK_FLOATS]) * task + LAYER[MATRIX] + wide(LAYER[INPUTS]) * column
        some = exist[:, None] & inside[None, :]
        matrix = tl.load(weights + matrices[:, None] + inputs[None, :], mask=some, other=0.0)
        values, matrix = operand(values, PRECISION, INTERPRETED), operand(matrix, PRECISION, INTERPRETED)
        total = multiply(total, values, matrix, PRECISION, INTERPRETED)
    tl.store(out + rows[:, None] * out_stride + out_columns[None, :], total, mask=live[:, None] & inside[None, :])


@triton.jit
def matrix_gradient_kernel(
    gradients,
    source,
    stride,
    count,
    weights,
    mean,
    variance,
    eps,
    out,
    LAYER: tl.constexpr,
    BEFORE: tl.constexpr,
    TASKS: tl.constexpr,
    ANCESTORS: tl.constexpr,
    JOBS: tl.constexpr,
    OUT: tl.constexpr,
    SPLIT_ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Computes the gradients of a layer's matrices over SPLIT_ROWS rows; BLOCK_M counts the matrices' rows, BLOCK_K the
    batch's. ``OUT`` has offsets in floats: from split to split, from task to task, and of the first gradient.
    """
    network = (weights, mean, variance, eps)
    split, job = tl.program_id(0) // JOBS, tl.program_id(0) % JOBS
    panels: tl.constexpr = (LAYER[INPUTS] + BLOCK_N - 1) // BLOCK_N
    task_of_inputs, columns, exist = columns_of(job // panels, BLOCK_M, LAYER, BEFORE, TASKS)
    task, column = columns // LAYER[PADDED], columns % LAYER[PADDED]
    exist = exist & (column < LAYER[WIDTH])
    inputs = job % panels * BLOCK_N + tl.arange(0, BLOCK_N)
    begin = wide(split) * SPLIT_ROWS
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(0, SPLIT_ROWS, BLOCK_K):
        rows = begin + first + tl.arange(0, BLOCK_K)
        live = rows < count
        places = rows[None, :] * (TASKS * LAYER[PADDED]) + columns[:, None]
        values = tl.load(gradients + places, mask=live[None, :] & exist[:, None], other=0.0)
        given = inputs_tile(
            source, stride, rows, live, task_of_inputs, inputs, network, LAYER, BEFORE, TASKS, ANCESTORS
        )
        # Rows past the end of the batch would contribute the layer's shifts: times 0 they vanish unless they are NaN.
        given = tl.where(live[:, None], given, 0.0)
        values, given = operand(values, PRECISION, INTERPRETED), operand(given, PRECISION, INTERPRETED)
        total = multiply(total, values, given, PRECISION, INTERPRETED)
    places = wide(OUT[0]) * split + OUT[2] + wide(OUT[1]) * task + wide(LAYER[INPUTS]) * column
    inside = exist[:, None] & (inputs < LAYER[INPUTS])[None, :]
    tl.store(out + places[:, None] + inputs[None, :], total, mask=inside)
