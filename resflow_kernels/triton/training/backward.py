"""The backward pass through a layer: from the outputs' gradients to those of the pre-activations, ``sums`` in code.

A pass covers residuals, BatchNorm, affine and activation. With the batch's statistics there are two passes, because
each value changes the means over all rows: the first ends at the gradients dn of the normalised values n, the second
continues with dn - mean(dn) - n mean(n dn).
"""

import triton
import triton.language as tl

from ..formulas import activate, derivative
from ..functions import at, at_most, wide
from .layers import (
    ACTIVATION,
    NORMALISATION,
    PADDED,
    SCALE,
    SHIFT,
    TASK_FLOATS,
    WIDTH,
    bit,
    choose,
    slopes,
    statistics,
    task_tile,
    vector,
)

# Kinds of sums over the rows, as indices into ``tile_sums``.
SLOPES = tl.constexpr(0)
BIASES = tl.constexpr(1)
SCALES = tl.constexpr(2)
SHIFTS = tl.constexpr(3)


@triton.jit
def _store_sums(
    tile_sums, tiles, tile, task, columns, values, KIND: tl.constexpr, LAYER: tl.constexpr, TASKS: tl.constexpr
):
    """Store one kind of a tile's sums over its rows, ``[kinds][tiles][tasks * padded]``."""
    place = ((wide(KIND) * tiles + tile) * TASKS + task) * LAYER[PADDED] + columns
    tl.store(tile_sums + place, tl.sum(values, axis=0), mask=columns < LAYER[PADDED])


@triton.jit
def _gradient_tile(
    gradients, weights, rows, live, task, columns, inside, HEAD: tl.constexpr, LAYER: tl.constexpr, TASKS: tl.constexpr
):
    """Gradients of a task's own outputs; in the last layer, its own logit's gradient times its head's weights."""
    if HEAD is None:
        return task_tile(gradients, rows, live, task, columns, inside, LAYER, TASKS)
    else:
        own = tl.load(gradients + rows * TASKS + task, mask=live, other=0.0)
        head = tl.load(weights + wide(LAYER[TASK_FLOATS]) * task + HEAD + columns, mask=inside, other=0.0)
        return own[:, None] * head[None, :]


@triton.jit
def outputs_back_kernel(
    gradients,
    sums,
    count,
    weights,
    mean,
    variance,
    eps,
    out,
    tile_sums,
    tiles,
    HEAD: tl.constexpr,
    LAYER: tl.constexpr,
    TASKS: tl.constexpr,
    DESCENDANTS: tl.constexpr,
    IN_LINE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Writes the gradients of the pre-activations, or of the normalised values for batch statistics, to ``out``."""
    network = (weights, mean, variance, eps)
    blocks: tl.constexpr = (LAYER[PADDED] + BLOCK_N - 1) // BLOCK_N
    tile = wide(tl.program_id(0) // blocks)
    columns = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    live = rows < count
    inside = columns < LAYER[WIDTH]
    valid = live[:, None] & inside[None, :]
    former = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for step in range(TASKS):
        task = TASKS - 1 - step
        gradient = _gradient_tile(gradients, weights, rows, live, task, columns, inside, HEAD, LAYER, TASKS)
        if len(DESCENDANTS) > 0:  # the descendants' outputs contain this task's
            if choose(task, IN_LINE) != 0:
                gradient += former
            else:
                below = choose(task, DESCENDANTS)
                for other in range(TASKS):
                    if bit(below, other):
                        gradient += _gradient_tile(
                            gradients, weights, rows, live, other, columns, inside, HEAD, LAYER, TASKS
                        )
            former = gradient
        own = task_tile(sums, rows, live, task, columns, inside, LAYER, TASKS)
        slope = slopes(network, task, columns, inside, LAYER)
        if LAYER[NORMALISATION] == "none" or LAYER[NORMALISATION] == "after":
            if LAYER[NORMALISATION] == "after":
                value = tl.where(valid, gradient * activate(own, slope, at(LAYER, ACTIVATION)), 0.0)
                _store_sums(tile_sums, tiles, tile, task, columns, value, SCALES, LAYER, TASKS)
                _store_sums(tile_sums, tiles, tile, task, columns, gradient, SHIFTS, LAYER, TASKS)
                gradient = gradient * vector(network, task, columns, inside, SCALE, LAYER)
            if LAYER[ACTIVATION] == "prelu":
                _store_sums(tile_sums, tiles, tile, task, columns, gradient * at_most(own, 0.0), SLOPES, LAYER, TASKS)
            gradient = tl.where(valid, gradient * derivative(own, slope, at(LAYER, ACTIVATION)), 0.0)
            _store_sums(tile_sums, tiles, tile, task, columns, gradient, BIASES, LAYER, TASKS)
        else:
            middle, inverse = statistics(network, task, columns, inside, LAYER)
            if LAYER[NORMALISATION] == "batch_before":
                normal = (own - middle) * inverse
                scale = vector(network, task, columns, inside, SCALE, LAYER)
                moved = normal * scale + vector(network, task, columns, inside, SHIFT, LAYER)
                if LAYER[ACTIVATION] == "prelu":
                    value = tl.where(valid, gradient * at_most(moved, 0.0), 0.0)
                    _store_sums(tile_sums, tiles, tile, task, columns, value, SLOPES, LAYER, TASKS)
                gradient = tl.where(valid, gradient * derivative(moved, slope, at(LAYER, ACTIVATION)), 0.0)
            else:
                normal = (activate(own, slope, at(LAYER, ACTIVATION)) - middle) * inverse
            value = tl.where(valid, gradient * normal, 0.0)
            _store_sums(tile_sums, tiles, tile, task, columns, value, SCALES, LAYER, TASKS)
            _store_sums(tile_sums, tiles, tile, task, columns, gradient, SHIFTS, LAYER, TASKS)
        places = rows[:, None] * (TASKS * LAYER[PADDED]) + (wide(LAYER[PADDED]) * task + columns)[None, :]
        tl.store(out + places, gradient, mask=live[:, None] & (columns < LAYER[PADDED])[None, :])


@triton.jit
def statistics_back_kernel(
    gradients,
    sums,
    count,
    weights,
    mean,
    variance,
    eps,
    means,
    tile_sums,
    tiles,
    LAYER: tl.constexpr,
    TASKS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Replaces, in ``gradients``, those of normalised values by those of the pre-activations. ``means``
    ``[kinds][tasks * padded]`` are the means over the batch of what the first pass summed.
    """
    network = (weights, mean, variance, eps)
    blocks: tl.constexpr = (LAYER[PADDED] + BLOCK_N - 1) // BLOCK_N
    tile = wide(tl.program_id(0) // (TASKS * blocks))
    task = tl.program_id(0) // blocks % TASKS
    columns = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    live = rows < count
    inside = columns < LAYER[WIDTH]
    valid = live[:, None] & inside[None, :]
    gradient = task_tile(gradients, rows, live, task, columns, inside, LAYER, TASKS)
    own = task_tile(sums, rows, live, task, columns, inside, LAYER, TASKS)
    slope = slopes(network, task, columns, inside, LAYER)
    middle, inverse = statistics(network, task, columns, inside, LAYER)
    before: tl.constexpr = LAYER[NORMALISATION] == "batch_before"
    value = own
    if not before:
        value = activate(own, slope, at(LAYER, ACTIVATION))
    normal = (value - middle) * inverse
    place = wide(LAYER[PADDED]) * task + columns
    of_scale = tl.load(means + SCALES * (TASKS * LAYER[PADDED]) + place, mask=inside, other=0.0)
    of_shift = tl.load(means + SHIFTS * (TASKS * LAYER[PADDED]) + place, mask=inside, other=0.0)
    gradient = gradient - of_shift[None, :] - normal * of_scale[None, :]
    gradient = tl.where(valid, gradient * inverse * vector(network, task, columns, inside, SCALE, LAYER), 0.0)
    if not before:
        if LAYER[ACTIVATION] == "prelu":
            _store_sums(tile_sums, tiles, tile, task, columns, gradient * at_most(own, 0.0), SLOPES, LAYER, TASKS)
        gradient = tl.where(valid, gradient * derivative(own, slope, at(LAYER, ACTIVATION)), 0.0)
        _store_sums(tile_sums, tiles, tile, task, columns, gradient, BIASES, LAYER, TASKS)
    places = rows[:, None] * (TASKS * LAYER[PADDED]) + place[None, :]
    tl.store(gradients + places, gradient, mask=live[:, None] & (columns < LAYER[PADDED])[None, :])
