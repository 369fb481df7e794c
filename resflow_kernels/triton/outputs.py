"""From a task's own logit to logits, probabilities and the score; the formulas are those of ``csrc/cuda/head.h``."""

import triton
import triton.language as tl

from .functions import LARGEST, at_least, at_most, log_sigmoid, logit_of_product, sigmoid


@triton.jit
def task_value(task, VALUES: tl.constexpr):
    """VALUES[task], of a constant tuple."""
    value = VALUES[0] + task * 0
    for other in tl.static_range(1, len(VALUES)):
        value = tl.where(task == other, VALUES[other], value)
    return value


@triton.jit
def join_logit(own, parent_logit, has_parent, JOIN: tl.constexpr):
    """z_k of r_k and the parent's z; a root's is its own."""
    if JOIN == "own":
        return own
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
    """Where each candidate's fusion weights begin."""
    if PER == "call":
        at = tl.zeros_like(rows)
    elif PER == "request":
        at = request
    else:
        at = tl.where(live, rows, 0)
    return fusion_weights + at * COUNT


@triton.jit
def add_to_score(score, above, task, logit, weights, live, FUSION: tl.constexpr):
    """The score and the former task's probability after one more task; both begin as 0."""
    weight = tl.load(weights + task, mask=live, other=0.0)
    prob = sigmoid(logit)
    if FUSION == "multiplicative":
        # p = 0 has log -inf, and -inf * 0 would be NaN: the bound makes p ^ 0 = 1.
        score += weight * at_least(log_sigmoid(logit), -LARGEST)
    elif FUSION == "expected_value":
        share = tl.where(task == 0, 1.0 - prob, at_least(above - prob, 0.0))
        score += weight * share
    else:
        tl.static_assert(FUSION == "additive", "a fusion without its formula")
        score += weight * prob
    return score, prob


@triton.jit
def finish_score(score, above, weights, live, FUSION: tl.constexpr, TASKS: tl.constexpr):
    """The score after the last task."""
    if FUSION == "multiplicative":
        return tl.exp(score)
    elif FUSION == "expected_value":
        return score + tl.load(weights + TASKS, mask=live, other=0.0) * above
    else:
        return score


@triton.jit
def store_outputs(logits, probs, score, tile, total, rows, live, scored, TASKS: tl.constexpr):
    """Writes a tile's logits ``tile [rows, tasks]`` and scores ``total``; NaN where a candidate cannot be scored."""
    tasks = tl.arange(0, tile.shape[1])[None, :]
    at = rows[:, None] * TASKS + tasks
    inside = live[:, None] & (tasks < TASKS)
    tile = tl.where(scored[:, None], tile, float("nan"))
    tl.store(logits + at, tile, mask=inside)
    tl.store(probs + at, sigmoid(tile), mask=inside)
    tl.store(score + rows, tl.where(scored, total, float("nan")), mask=live)
