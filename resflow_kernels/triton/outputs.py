"""Turns a task's own logit into logits and probabilities; the formulas are those of ``csrc/core/fusions-inl.h``."""

import triton
import triton.language as tl

from .functions import at_most, logit_of_product, sigmoid


@triton.jit
def task_value(task, VALUES: tl.constexpr):
    """VALUES[task] for a constant tuple."""
    value = VALUES[0] + task * 0
    for other in tl.static_range(1, len(VALUES)):
        value = tl.where(task == other, VALUES[other], value)
    return value


@triton.jit
def join_logit(own, parent_logit, has_parent, JOIN: tl.constexpr):
    """z_k from r_k and the parent's z; a root's z_k is its r_k."""
    if JOIN == "own":  # not returned here: Triton would compile what follows all the same
        joined = own
    elif JOIN == "conditional":
        joined = logit_of_product(parent_logit, own)
    elif JOIN == "non_increasing":
        joined = at_most(own, 0.0) + parent_logit
    else:
        tl.static_assert(JOIN == "residual", "a join without its formula")
        joined = own + parent_logit
    return tl.where(has_parent, joined, own)


@triton.jit
def column_of(tile, column):
    """A column of a tile ``[rows, columns]``."""
    columns = tl.arange(0, tile.shape[1])[None, :]
    return tl.sum(tl.where(columns == column, tile, 0.0), axis=1)


@triton.jit
def with_column(tile, column, values):
    """The tile with a column's values replaced."""
    columns = tl.arange(0, tile.shape[1])[None, :]
    return tl.where(columns == column, values[:, None], tile)


@triton.jit
def weight_rows(fusion_weights, rows, request, live, PER: tl.constexpr, COUNT: tl.constexpr):
    """Offsets of each candidate's fusion weights."""
    if PER == "call":
        at = tl.zeros_like(rows)
    elif PER == "request":
        at = request
    else:
        at = tl.where(live, rows, 0)
    return fusion_weights + at * COUNT


@triton.jit
def store_outputs(logits, probs, score, tile, total, rows, live, scored, TASKS: tl.constexpr):
    """Write a tile's logits ``tile [rows, tasks]`` and scores ``total``; NaN if a candidate cannot be scored."""
    tasks = tl.arange(0, tile.shape[1])[None, :]
    at = rows[:, None] * TASKS + tasks
    inside = live[:, None] & (tasks < TASKS)
    tile = tl.where(scored[:, None], tile, float("nan"))
    tl.store(logits + at, tile, mask=inside)
    tl.store(probs + at, sigmoid(tile), mask=inside)
    tl.store(score + rows, tl.where(scored, total, float("nan")), mask=live)
