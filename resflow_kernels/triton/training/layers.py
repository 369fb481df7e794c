"""Shared by the training kernels: a layer's outputs, recomputed from its pre-activations wherever they are needed.

A layer's pre-activations, ``sums``, are float32 ``[rows][tasks * padded width]``, with zeros in columns past the width.
With v = act(s) and n the value normalised by the batch's mean and variance, a layer computes o = v, v scale + shift,
n(v) scale + shift, or act(n(s) scale + shift), by its ``normalisation``; with feature residuals it adds the parent's o.

``network`` is the tuple of the weights, the batch's means and variances of all layers, and eps.
"""

import triton
import triton.language as tl

from ..formulas import activate
from ..functions import at, wide

INPUTS = tl.constexpr(0)
WIDTH = tl.constexpr(1)
PADDED = tl.constexpr(2)
ACTIVATION = tl.constexpr(3)
NORMALISATION = tl.constexpr(4)
STATISTICS = tl.constexpr(5)
TASK_FLOATS = tl.constexpr(6)
MATRIX = tl.constexpr(7)
BIAS = tl.constexpr(8)
SLOPE = tl.constexpr(9)
SCALE = tl.constexpr(10)
SHIFT = tl.constexpr(11)


@triton.jit
def blocks_of(block, BLOCK: tl.constexpr, COUNT: tl.constexpr):
    """Indices in a block of COUNT elements, in 64 bits if 32 do not suffice."""
    if COUNT + BLOCK > 2147483647:
        return wide(block) * BLOCK + tl.arange(0, BLOCK)
    else:
        return block * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def bit(number, place):
    return ((wide(number) >> place) & 1) != 0


@triton.jit
def choose(task, VALUES: tl.constexpr):
    """VALUES[task] for a constant tuple of integers."""
    value = wide(at(VALUES, 0))
    for other in tl.static_range(1, len(VALUES)):
        value = tl.where(task == other, wide(at(VALUES, other)), value)
    return value


@triton.jit
def vector(network, task, columns, inside, PLACE: tl.constexpr, LAYER: tl.constexpr):
    """A layer's bias, slope, ... as a row; ``task`` is one number for all columns or one per column."""
    places = wide(LAYER[TASK_FLOATS]) * task + LAYER[PLACE] + columns
    return tl.load(network[0] + places, mask=inside, other=0.0)[None, :]


@triton.jit
def slopes(network, task, columns, inside, LAYER: tl.constexpr):
    if LAYER[ACTIVATION] == "prelu":
        return vector(network, task, columns, inside, SLOPE, LAYER)
    else:
        return 0.0


@triton.jit
def statistics(network, task, columns, inside, LAYER: tl.constexpr):
    """The batch's mean, and the factor of a distance from it."""
    places = wide(LAYER[WIDTH]) * task + LAYER[STATISTICS] + columns
    mean = tl.load(network[1] + places, mask=inside, other=0.0)
    variance = tl.load(network[2] + places, mask=inside, other=1.0)
    return mean[None, :], (1.0 / tl.sqrt_rn(variance + network[3]))[None, :]


@triton.jit
def finish(sums, network, task, columns, inside, LAYER: tl.constexpr):
    """A layer's own outputs from its pre-activations; zeros past its width."""
    slope = slopes(network, task, columns, inside, LAYER)
    if LAYER[NORMALISATION] == "none":
        value = activate(sums, slope, at(LAYER, ACTIVATION))
    else:
        scale = vector(network, task, columns, inside, SCALE, LAYER)
        shift = vector(network, task, columns, inside, SHIFT, LAYER)
        if LAYER[NORMALISATION] == "after":
            value = activate(sums, slope, at(LAYER, ACTIVATION)) * scale + shift
        else:
            mean, inverse = statistics(network, task, columns, inside, LAYER)
            if LAYER[NORMALISATION] == "batch_before":
                value = activate((sums - mean) * inverse * scale + shift, slope, at(LAYER, ACTIVATION))
            else:
                value = (activate(sums, slope, at(LAYER, ACTIVATION)) - mean) * inverse * scale + shift
    return tl.where(inside[None, :], value, 0.0)


@triton.jit
def task_tile(grid, rows, live, task, columns, inside, LAYER: tl.constexpr, TASKS: tl.constexpr):
    """A task's part of a grid with the shape of ``sums``; zeros outside."""
    places = rows[:, None] * (TASKS * LAYER[PADDED]) + (wide(LAYER[PADDED]) * task + columns)[None, :]
    return tl.load(grid + places, mask=live[:, None] & inside[None, :], other=0.0)


@triton.jit
def outputs_tile(
    sums, rows, live, task, columns, network, LAYER: tl.constexpr, TASKS: tl.constexpr, ANCESTORS: tl.constexpr
):
    """A layer's outputs of one task, including inherited ones, root first."""
    inside = columns < LAYER[WIDTH]
    own = task_tile(sums, rows, live, task, columns, inside, LAYER, TASKS)
    value = finish(own, network, task, columns, inside, LAYER)
    if len(ANCESTORS) > 0:
        above = choose(task, ANCESTORS)
        inherited = tl.zeros_like(value)
        for other in range(TASKS):
            if bit(above, other):
                tile = task_tile(sums, rows, live, other, columns, inside, LAYER, TASKS)
                inherited += finish(tile, network, other, columns, inside, LAYER)
        value += inherited
    return value


@triton.jit
def inputs_tile(
    source,
    stride,
    rows,
    live,
    task,
    columns,
    network,
    LAYER: tl.constexpr,
    BEFORE: tl.constexpr,
    TASKS: tl.constexpr,
    ANCESTORS: tl.constexpr,
):
    """A layer's inputs: x, whose rows are ``stride`` apart, or the outputs of the layer before, from its ``sums``."""
    if BEFORE is None:
        inside = live[:, None] & (columns < LAYER[INPUTS])[None, :]
        return tl.load(source + rows[:, None] * stride + columns[None, :], mask=inside, other=0.0)
    else:
        return outputs_tile(source, rows, live, task, columns, network, BEFORE, TASKS, ANCESTORS)


@triton.jit
def columns_of(job, BLOCK: tl.constexpr, LAYER: tl.constexpr, BEFORE: tl.constexpr, TASKS: tl.constexpr):
    """A block of a layer's columns, numbered over all tasks, and the task of its inputs.

    All tasks share the first layer's inputs, so there a block may have columns of several; later it has one task's.
    """
    if BEFORE is None:
        count: tl.constexpr = TASKS * LAYER[PADDED]
    else:
        count: tl.constexpr = LAYER[PADDED]
    panels: tl.constexpr = (count + BLOCK - 1) // BLOCK
    group = job // panels
    own = blocks_of(job % panels, BLOCK, TASKS * LAYER[PADDED])
    return group, group * count + own, own < count
