"""The tower network in one launch, hidden outputs in registers: a program computes all tasks for BLOCK_M candidates.

For forests in which each task's parent is the one before or none, with few and narrow layers. x is read from memory
once: later tasks find a tile's rows in the caches; weights stream from the L2 cache. Nothing depends on the number of
candidates, so a candidate's result is bitwise the same in every batch.
"""

import triton
import triton.language as tl

from .formulas import add_to_score, finish_score
from .functions import at, multiply, only_if, operand, wide
from .inputs import add_rows, candidates_of, first_sums, later_sums
from .outputs import join_logit, store_outputs, weight_rows, with_column
from .weights import PADDED, finish_layer, is_packed_for, matrix_tile, task_block, task_matrices


@triton.jit
def chain_kernel(
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
    LAYERS: tl.constexpr,
    TASKS: tl.constexpr,
    TASK_FLOATS: tl.constexpr,
    PANELS: tl.constexpr,
    HEAD: tl.constexpr,
    HEADER: tl.constexpr,
    ROOTS: tl.constexpr,
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
    """BLOCK_N is, for each layer, the power of 2 that holds its padded width."""
    first = tl.program_id(0).to(tl.int64) * BLOCK_M
    rows, live, scored, request, item, scale = candidates_of(
        first, count, offsets, requests, ids, items, scales, BLOCK_M
    )
    scored = only_if(is_packed_for(packed, HEADER[0], HEADER[1]), scored)
    weights = weight_rows(fusion_weights, rows, request, live, PER, WEIGHT_COUNT)

    kept = ()  # outputs of all layers of the task before
    for place in tl.static_range(len(LAYERS)):
        kept = kept + (tl.zeros([BLOCK_M, at(BLOCK_N, place)], tl.float32),)
    tile = tl.zeros([BLOCK_M, TASK_COLUMNS], tl.float32)
    former = tl.zeros([BLOCK_M], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    above = tl.zeros([BLOCK_M], tl.float32)
    # This loop is not pipelined: a stage of it would hold a whole matrix.
    for task in tl.range(0, TASKS, num_stages=1):
        block = task_block(packed, task, TASK_FLOATS)
        matrices = task_matrices(packed, task, TASK_FLOATS, PANELS, PRECISION)
        has_parent = (wide(ROOTS) >> task) & 1 == 0
        outputs = ()
        hidden = 0.0
        for place in tl.static_range(len(LAYERS)):
            columns = tl.arange(0, at(BLOCK_N, place))
            if place == 0:
                sums = first_sums(
                    block,
                    task,
                    columns,
                    scored,
                    request,
                    item,
                    scale,
                    starts,
                    table,
                    table_stride,
                    at(LAYERS, 0),
                    TASKS,
                )
                if INPUT_COUNT > 0:
                    sums = add_rows(
                        sums, x, x_stride, rows, live, matrices, 0, at(LAYERS, 0), FIRST_INPUT, INPUT_COUNT,
                        at(BLOCK_N, 0), BLOCK_K, PRECISION, INTERPRETED,
                    )  # fmt: skip
            else:
                sums = later_sums(block, columns, scored, at(LAYERS, place))
                own = matrix_tile(
                    matrices,
                    0,
                    0,
                    at(LAYERS, place),
                    at(BLOCK_N, place - 1),
                    at(BLOCK_N, place),
                    PRECISION,
                    INTERPRETED,
                )
                sums = multiply(sums, operand(hidden, PRECISION, INTERPRETED), own, PRECISION, INTERPRETED)
            hidden = finish_layer(sums, block, columns, at(LAYERS, place), at(BLOCK_N, place), AFFINE)
            if FEATURE_RESIDUAL:
                hidden += tl.where(has_parent, kept[place], 0.0)
                outputs = outputs + (hidden,)
            else:
                outputs = outputs + (kept[place],)
        kept = outputs
        head = tl.load(block + HEAD[0] + columns, mask=columns < at(at(LAYERS, -1), PADDED), other=0.0)
        own_logit = tl.sum(hidden * head[None, :], axis=1) + tl.load(block + HEAD[1])
        former = join_logit(own_logit, former, has_parent, JOIN)
        tile = with_column(tile, task, former)
        total, above = add_to_score(total, above, task, former, weights, live, FUSION)
    total = finish_score(total, above, weights, live, FUSION, TASKS)
    store_outputs(logits, probs, score, tile, total, rows, live, scored, TASKS)
