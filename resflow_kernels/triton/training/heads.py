"""Heads in training: logits from the last layer's pre-activations, and the gradients of the tasks' own logits."""

import triton
import triton.language as tl

from ..functions import at_most, wide
from ..outputs import column_of, join_logit, with_column
from .layers import PADDED, TASK_FLOATS, WIDTH, choose, outputs_tile


@triton.jit
def heads_kernel(
    sums,
    count,
    weights,
    mean,
    variance,
    eps,
    own,
    logits,
    LAYER: tl.constexpr,
    TASKS: tl.constexpr,
    TASK_COLUMNS: tl.constexpr,
    PARENTS: tl.constexpr,
    ANCESTORS: tl.constexpr,
    HEAD: tl.constexpr,
    JOIN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Computes ``own`` and ``logits`` ``[rows][tasks]``; HEAD has the offsets of a task's head weights and bias."""
    network = (weights, mean, variance, eps)
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    live = rows < count
    own_tile = tl.zeros([BLOCK_M, TASK_COLUMNS], tl.float32)
    joined_tile = tl.zeros([BLOCK_M, TASK_COLUMNS], tl.float32)
    for task in range(TASKS):
        block = weights + wide(LAYER[TASK_FLOATS]) * task
        total = tl.zeros([BLOCK_M], tl.float32)
        for first in range(0, LAYER[PADDED], BLOCK_N):
            columns = first + tl.arange(0, BLOCK_N)
            hidden = outputs_tile(sums, rows, live, task, columns, network, LAYER, TASKS, ANCESTORS)
            head = tl.load(block + HEAD[0] + columns, mask=columns < LAYER[WIDTH], other=0.0)
            total += tl.sum(hidden * head[None, :], axis=1)
        total += tl.load(block + HEAD[1])
        parent = choose(task, PARENTS)
        joined = join_logit(total, column_of(joined_tile, parent), parent >= 0, JOIN)
        own_tile = with_column(own_tile, task, total)
        joined_tile = with_column(joined_tile, task, joined)
    _store_tasks(own, own_tile, rows, live, TASKS)
    _store_tasks(logits, joined_tile, rows, live, TASKS)


@triton.jit
def _store_tasks(out, tile, rows, live, TASKS: tl.constexpr):
    tasks = tl.arange(0, tile.shape[1])[None, :]
    tl.store(out + rows[:, None] * TASKS + tasks, tile, mask=live[:, None] & (tasks < TASKS))


@triton.jit
def _load_tasks(source, rows, live, TASKS: tl.constexpr, TASK_COLUMNS: tl.constexpr):
    tasks = tl.arange(0, TASK_COLUMNS)[None, :]
    return tl.load(source + rows[:, None] * TASKS + tasks, mask=live[:, None] & (tasks < TASKS), other=0.0)


@triton.jit
def conditional_shares(parent_logit, own):
    """Derivatives of the logit of sigmoid(z) sigmoid(r), -log(e^-z + e^-r + e^-(z + r)), by z and by r."""
    lowest = at_most(at_most(parent_logit, own), parent_logit + own)
    by_parent = tl.exp(lowest - parent_logit)
    by_own = tl.exp(lowest - own)
    both = tl.exp(lowest - parent_logit - own)
    total = by_parent + by_own + both
    return (by_parent + both) / total, (by_own + both) / total


@triton.jit
def own_gradients(own, gradients, TASKS: tl.constexpr, PARENTS: tl.constexpr, JOIN: tl.constexpr):
    """The gradients of the tasks' own logits from those of a tile's logits ``[rows, tasks]``."""
    if JOIN == "own":
        return gradients
    joined_tile = tl.zeros_like(own)
    if JOIN == "conditional":
        for task in range(TASKS):
            parent = choose(task, PARENTS)
            joined = join_logit(column_of(own, task), column_of(joined_tile, parent), parent >= 0, JOIN)
            joined_tile = with_column(joined_tile, task, joined)
    for step in range(TASKS):
        task = TASKS - 1 - step
        parent = choose(task, PARENTS)
        gradient, logit = column_of(gradients, task), column_of(own, task)
        to_parent, to_own = gradient, gradient
        if JOIN == "conditional":
            by_parent, by_own = conditional_shares(column_of(joined_tile, parent), logit)
            to_parent, to_own = gradient * by_parent, gradient * by_own
        elif JOIN == "non_increasing":
            to_own = tl.where(logit > 0, 0.0, gradient)
        if parent >= 0:
            gradients = with_column(gradients, parent, column_of(gradients, parent) + to_parent)
            gradients = with_column(gradients, task, to_own)
    return gradients


@triton.jit
def heads_back_kernel(
    sums,
    count,
    weights,
    mean,
    variance,
    eps,
    own,
    logit_gradients,
    gradients,
    tile_weights,
    tile_biases,
    LAYER: tl.constexpr,
    TASKS: tl.constexpr,
    TASK_COLUMNS: tl.constexpr,
    PARENTS: tl.constexpr,
    ANCESTORS: tl.constexpr,
    JOIN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Computes ``gradients [rows][tasks]`` of the tasks' own logits, and per tile the sums for the heads' gradients:
    ``tile_weights [tiles][tasks * padded]`` and ``tile_biases [tiles][tasks]``.
    """
    network = (weights, mean, variance, eps)
    tile = tl.program_id(0).to(tl.int64)
    rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    live = rows < count
    own_tile = _load_tasks(own, rows, live, TASKS, TASK_COLUMNS)
    values = _load_tasks(logit_gradients, rows, live, TASKS, TASK_COLUMNS)
    values = own_gradients(own_tile, values, TASKS, PARENTS, JOIN)
    _store_tasks(gradients, values, rows, live, TASKS)
    tasks = tl.arange(0, TASK_COLUMNS)
    tl.store(tile_biases + tile * TASKS + tasks, tl.sum(values, axis=0), mask=tasks < TASKS)
    for task in range(TASKS):
        gradient = column_of(values, task)
        for first in range(0, LAYER[PADDED], BLOCK_N):
            columns = first + tl.arange(0, BLOCK_N)
            hidden = outputs_tile(sums, rows, live, task, columns, network, LAYER, TASKS, ANCESTORS)
            total = tl.sum(tl.where(live[:, None], hidden * gradient[:, None], 0.0), axis=0)
            place = (tile * TASKS + task) * LAYER[PADDED] + columns
            tl.store(tile_weights + place, total, mask=columns < LAYER[PADDED])
