"""The tower network in one launch, for any plan: hidden outputs are in a workspace that each program has for itself.

As in ``chain.py``, a program computes all layers of all tasks for BLOCK_M candidates, BLOCK_N columns at a time.
Programs take tiles in turn, so that the workspace does not grow with the number of candidates.
"""

import triton
import triton.language as tl

from .formulas import add_to_score, finish_score
from .functions import at, only_if, wide
from .inputs import add_rows, candidates_of, first_sums, later_sums
from .outputs import (
    column_of,
    join_logit,
    store_outputs,
    task_value,
    weight_rows,
    with_column,
)
from .weights import INPUTS, KEPT, PADDED, finish_layer, is_packed_for, task_block, task_matrices


@triton.jit
def kept_at(columns, LAYER: tl.constexpr, BLOCK_M: tl.constexpr):
    """Offsets of a layer's outputs, of BLOCK_M rows, in a task's part of the workspace."""
    return BLOCK_M * LAYER[KEPT] + tl.arange(0, BLOCK_M)[:, None] * LAYER[PADDED] + columns[None, :]


@triton.jit
def is_kept(columns, LAYER: tl.constexpr, BLOCK_M: tl.constexpr):
    return (tl.arange(0, BLOCK_M) < BLOCK_M)[:, None] & (columns < LAYER[PADDED])[None, :]


@triton.jit
def add_kept(
    sums,
    kept,
    matrices,
    first_column,
    BEFORE: tl.constexpr,
    LAYER: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """``sums`` plus the products of the outputs of the layer before."""
    rows = tl.arange(0, BLOCK_M)
    return add_rows(
        sums, kept + BLOCK_M * BEFORE[KEPT], BEFORE[PADDED], rows, rows < BLOCK_M, matrices, first_column, LAYER,
        0, LAYER[INPUTS], BLOCK_N, BLOCK_K, PRECISION, INTERPRETED,
    )  # fmt: skip


@triton.jit
def kept_logit(kept, block, HEAD: tl.constexpr, LAYER: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """A task's own logits, from its last layer's outputs."""
    sums = tl.zeros([BLOCK_M], tl.float32) + tl.load(block + HEAD[1])
    for first_column in range(0, LAYER[PADDED], BLOCK_N):
        columns = first_column + tl.arange(0, BLOCK_N)
        hidden = tl.load(kept + kept_at(columns, LAYER, BLOCK_M), mask=is_kept(columns, LAYER, BLOCK_M), other=0.0)
        weights = tl.load(block + HEAD[0] + columns, mask=columns < LAYER[PADDED], other=0.0)
        sums += tl.sum(hidden * weights[None, :], axis=1)
    return sums


@triton.jit
def forest_kernel(
    x,
    x_stride,
    count,
    starts,
    offsets,
    requests,
    ids,
    table,
    table_stride,
    scales,
    items,
    packed,
    fusion_weights,
    logits,
    probs,
    score,
    workspace,
    LAYERS: tl.constexpr,
    TASKS: tl.constexpr,
    TASK_FLOATS: tl.constexpr,
    PANELS: tl.constexpr,
    HEAD: tl.constexpr,
    HEADER: tl.constexpr,
    PARENTS: tl.constexpr,
    SLOTS: tl.constexpr,
    SLOT_COUNT: tl.constexpr,
    KEPT_COLUMNS: tl.constexpr,
    JOIN: tl.constexpr,
    FEATURE_RESIDUAL: tl.constexpr,
    AFFINE: tl.constexpr,
    PRECISION: tl.constexpr,
    FIRST_INPUT: tl.constexpr,
    INPUT_COUNT: tl.constexpr,
    FUSION: tl.constexpr,
    PER: tl.constexpr,
    WEIGHT_COUNT: tl.constexpr,
    TASK_COLUMNS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """``workspace`` is float32 [programs][slots][for each layer: BLOCK_M rows of its padded width]."""
    program = tl.program_id(0).to(tl.int64)
    memory = workspace + program * (SLOT_COUNT * BLOCK_M * KEPT_COLUMNS)
    first = program * BLOCK_M
    while first < count:
        rows, live, scored, request, item, scale = candidates_of(
            first, count, offsets, requests, ids, items, scales, BLOCK_M
        )
        scored = only_if(is_packed_for(packed, HEADER[0], HEADER[1]), scored)
        weights = weight_rows(fusion_weights, rows, request, live, PER, WEIGHT_COUNT)
        tile = tl.zeros([BLOCK_M, TASK_COLUMNS], tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        above = tl.zeros([BLOCK_M], tl.float32)
        for task in tl.range(0, TASKS, num_stages=1):
            block = task_block(packed, task, TASK_FLOATS)
            matrices = task_matrices(packed, task, TASK_FLOATS, PANELS, PRECISION)
            parent = task_value(task, PARENTS)
            own = memory + wide(task_value(task, SLOTS)) * (BLOCK_M * KEPT_COLUMNS)
            inherited = own
            if FEATURE_RESIDUAL:
                parent_slot = task_value(tl.maximum(parent, 0), SLOTS)
                inherited = memory + wide(parent_slot) * (BLOCK_M * KEPT_COLUMNS)
            for place in tl.static_range(len(LAYERS)):
                for first_column in range(0, at(at(LAYERS, place), PADDED), BLOCK_N):
                    columns = first_column + tl.arange(0, BLOCK_N)
                    if place == 0:
                        sums = first_sums(
                            block, task, columns, scored, request, item, scale, starts, table, table_stride,
                            at(LAYERS, 0), TASKS,
                        )  # fmt: skip
                        if INPUT_COUNT > 0:
                            sums = add_rows(
                                sums, x, x_stride, rows, live, matrices, first_column, at(LAYERS, 0), FIRST_INPUT,
                                INPUT_COUNT, BLOCK_N, BLOCK_K, PRECISION, INTERPRETED,
                            )  # fmt: skip
                    else:
                        sums = later_sums(block, columns, scored, at(LAYERS, place))
                        sums = add_kept(
                            sums, own, matrices, first_column, at(LAYERS, place - 1), at(LAYERS, place),
                            BLOCK_M, BLOCK_N, BLOCK_K, PRECISION, INTERPRETED,
                        )  # fmt: skip
                    hidden = finish_layer(sums, block, columns, at(LAYERS, place), BLOCK_N, AFFINE)
                    kept = kept_at(columns, at(LAYERS, place), BLOCK_M)
                    inside = is_kept(columns, at(LAYERS, place), BLOCK_M)
                    if FEATURE_RESIDUAL:
                        hidden += tl.load(inherited + kept, mask=only_if(parent >= 0, inside), other=0.0)
                    tl.store(own + kept, hidden, mask=inside)
                tl.debug_barrier()
            own_logit = kept_logit(own, block, HEAD, at(LAYERS, -1), BLOCK_M, BLOCK_N)
            tl.debug_barrier()  # the next task may overwrite what was just read
            joined = join_logit(own_logit, column_of(tile, parent), parent >= 0, JOIN)
            tile = with_column(tile, task, joined)
            total, above = add_to_score(total, above, task, joined, weights, live, FUSION)
        total = finish_score(total, above, weights, live, FUSION, TASKS)
        store_outputs(logits, probs, score, tile, total, rows, live, scored, TASKS)
        first += tl.num_programs(0).to(tl.int64) * BLOCK_M
