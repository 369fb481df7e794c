"""A tile program in one launch, compiled for its steps: its values are in a workspace, of which each block has a part.

A block runs all steps for BLOCK_M candidates. Its part of the workspace is a frame of floats per candidate: the input
row, the steps' results, and the inputs of a step that are gathered from several segments. Steps are constants
(:class:`~resflow_kernels.triton.program_layout.StepConstants`), indexed by position. Nothing depends on the number of
candidates, so a candidate's result is bitwise the same in every batch.
"""

import triton
import triton.language as tl

from .formulas import add_to_score, finish_score
from .functions import at, multiply, only_if, operand, wide
from .inputs import candidates_of, later_sums
from .outputs import column_of, join_logit, store_outputs, weight_rows, with_column
from .program_layout import SegmentConstants, StepConstants, group_block
from .weights import INPUTS, PADDED, WIDTH, finish_layer, is_packed_for, matrix_tile, task_block, task_matrices

_STEP = {name: tl.constexpr(place) for place, name in enumerate(StepConstants._fields)}
KIND, GROUPS, EPSILON, OUT = _STEP["kind"], _STEP["groups"], _STEP["epsilon"], _STEP["out"]
ROW, GATHERS, FINISHES, AFFINE = _STEP["row"], _STEP["gathers"], _STEP["finishes"], _STEP["affine"]
PARTS, FACTORS, ADDENDS, LAYER = _STEP["parts"], _STEP["factors"], _STEP["addends"], _STEP["layer"]
COLUMNS = _STEP["columns"]
_SEGMENT = {name: tl.constexpr(place) for place, name in enumerate(SegmentConstants._fields)}
PLACE, SEGMENT_WIDTH, COLUMN, REPEAT = (_SEGMENT[name] for name in ("place", "width", "column", "repeat"))

_group_block = triton.constexpr_function(group_block)


@triton.jit
def read(frame, first, columns, count, other):
    """Some columns of a value that begins at ``first``; ``other`` from its column ``count`` on."""
    return tl.load(frame[:, None] + first + columns[None, :], mask=(columns < count)[None, :], other=other)


@triton.jit
def write(frame, first, columns, count, values):
    """Columns of a value that begins at ``first``, below its column ``count``."""
    tl.store(frame[:, None] + first + columns[None, :], values, mask=(columns < count)[None, :])


@triton.jit
def copy_segment(frame, to, SEGMENT: tl.constexpr, BLOCK_N: tl.constexpr):
    for first in tl.range(0, SEGMENT[SEGMENT_WIDTH], BLOCK_N):
        columns = first + tl.arange(0, BLOCK_N)
        values = read(frame, SEGMENT[PLACE], columns, SEGMENT[SEGMENT_WIDTH], 0.0)
        write(frame, to + SEGMENT[COLUMN], columns, SEGMENT[SEGMENT_WIDTH], values)


@triton.jit
def copy_segments(frame, to, SEGMENTS: tl.constexpr, BLOCK_N: tl.constexpr):
    """The segments one after another."""
    for i in tl.static_range(len(SEGMENTS)):
        copy_segment(frame, to, at(SEGMENTS, i), BLOCK_N)


@triton.jit
def factor_of(frame, columns, count, SEGMENT: tl.constexpr):
    """What multiplies some columns of a result."""
    places = frame[:, None] + SEGMENT[PLACE] + (columns // SEGMENT[REPEAT])[None, :]
    return tl.load(places, mask=(columns < count)[None, :], other=0.0)


@triton.jit
def combine(value, frame, columns, STEP: tl.constexpr):
    """Multiplies and adds a step's factors and addends to some columns of its result."""
    width: tl.constexpr = at(at(STEP, LAYER), WIDTH)
    for i in tl.static_range(len(at(STEP, FACTORS))):
        value = value * factor_of(frame, columns, width, at(at(STEP, FACTORS), i))
    for i in tl.static_range(len(at(STEP, ADDENDS))):
        value = value + read(frame, at(at(at(STEP, ADDENDS), i), PLACE), columns, width, 0.0)
    return value


@triton.jit
def run_linear(
    frame,
    block,
    matrices,
    STEP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    layer: tl.constexpr = at(STEP, LAYER)
    for first_column in tl.range(0, layer[PADDED], BLOCK_N):
        columns = first_column + tl.arange(0, BLOCK_N)
        sums = later_sums(block, columns, frame, layer)
        for first in tl.range(0, layer[INPUTS], BLOCK_K):
            values = read(frame, STEP[ROW], first + tl.arange(0, BLOCK_K), layer[INPUTS], 0.0)
            weights = matrix_tile(matrices, first, first_column, layer, BLOCK_K, BLOCK_N, PRECISION, INTERPRETED)
            sums = multiply(sums, operand(values, PRECISION, INTERPRETED), weights, PRECISION, INTERPRETED)
        value = finish_layer(sums, block, columns, layer, BLOCK_N, at(STEP, AFFINE))
        write(frame, STEP[OUT], columns, layer[WIDTH], combine(value, frame, columns, STEP))


@triton.jit
def run_softmax(frame, STEP: tl.constexpr, BLOCK_M: tl.constexpr):
    """NaN anywhere in a group makes all of it NaN: if not through the largest, then through the sum."""
    width: tl.constexpr = STEP[COLUMNS] // STEP[GROUPS]
    block: tl.constexpr = _group_block(width)
    for group in tl.range(0, STEP[GROUPS]):
        start = group * width
        largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
        for first in tl.range(0, width, block):
            values = read(frame, STEP[ROW] + start, first + tl.arange(0, block), width, float("-inf"))
            largest = tl.maximum(largest, tl.max(values, axis=1))
        total = tl.zeros([BLOCK_M], tl.float32)
        for first in tl.range(0, width, block):
            values = read(frame, STEP[ROW] + start, first + tl.arange(0, block), width, float("-inf"))
            inside = (first + tl.arange(0, block) < width)[None, :]
            total += tl.sum(tl.where(inside, tl.exp(values - largest[:, None]), 0.0), axis=1)
        for first in tl.range(0, width, block):
            columns = first + tl.arange(0, block)
            values = read(frame, STEP[ROW] + start, columns, width, 0.0)
            write(frame, STEP[OUT] + start, columns, width, tl.exp(values - largest[:, None]) / total[:, None])


@triton.jit
def sum_of_group(frame, start, STEP: tl.constexpr, BLOCK_M: tl.constexpr):
    width: tl.constexpr = STEP[COLUMNS] // STEP[GROUPS]
    block: tl.constexpr = _group_block(width)
    total = tl.zeros([BLOCK_M], tl.float32)
    for first in tl.range(0, width, block):
        total += tl.sum(read(frame, STEP[ROW] + start, first + tl.arange(0, block), width, 0.0), axis=1)
    return total


@triton.jit
def run_sum(frame, STEP: tl.constexpr, BLOCK_M: tl.constexpr):
    for group in tl.range(0, STEP[GROUPS]):
        total = sum_of_group(frame, group * (STEP[COLUMNS] // STEP[GROUPS]), STEP, BLOCK_M)
        tl.store(frame + STEP[OUT] + group, total)


@triton.jit
def run_norm(frame, STEP: tl.constexpr, BLOCK_M: tl.constexpr):
    width: tl.constexpr = STEP[COLUMNS] // STEP[GROUPS]
    block: tl.constexpr = _group_block(width)
    for group in tl.range(0, STEP[GROUPS]):
        start = group * width
        mean = tl.zeros([BLOCK_M], tl.float32)
        if STEP[KIND] == "layer_norm":
            mean = sum_of_group(frame, start, STEP, BLOCK_M) / width
        squares = tl.zeros([BLOCK_M], tl.float32)
        for first in tl.range(0, width, block):
            columns = first + tl.arange(0, block)
            values = read(frame, STEP[ROW] + start, columns, width, 0.0) - mean[:, None]
            squares += tl.sum(tl.where((columns < width)[None, :], values * values, 0.0), axis=1)
        if STEP[KIND] == "l2_norm":
            length = tl.sqrt_rn(squares)
            over = tl.where(length < STEP[EPSILON], STEP[EPSILON], length)
        else:
            over = tl.sqrt_rn(squares / width + STEP[EPSILON])
        for first in tl.range(0, width, block):
            columns = first + tl.arange(0, block)
            values = read(frame, STEP[ROW] + start, columns, width, 0.0)
            write(frame, STEP[OUT] + start, columns, width, (values - mean[:, None]) / over[:, None])


@triton.jit
def run_fm(frame, STEP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    width: tl.constexpr = STEP[COLUMNS] // STEP[GROUPS]
    for first in tl.range(0, width, BLOCK_N):
        columns = first + tl.arange(0, BLOCK_N)
        total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        squares = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for field in tl.range(0, STEP[GROUPS]):
            values = read(frame, STEP[ROW] + field * width, columns, width, 0.0)
            total += values
            squares += values * values
        write(frame, STEP[OUT], columns, width, 0.5 * (total * total - squares))


@triton.jit
def run_dot(frame, STEP: tl.constexpr, BLOCK_M: tl.constexpr):
    width: tl.constexpr = STEP[COLUMNS] // STEP[GROUPS]
    block: tl.constexpr = _group_block(width)
    pair = 0
    for one in tl.range(0, STEP[GROUPS]):
        for other in tl.range(one + 1, STEP[GROUPS]):
            total = tl.zeros([BLOCK_M], tl.float32)
            for first in tl.range(0, width, block):
                columns = first + tl.arange(0, block)
                a = read(frame, STEP[ROW] + one * width, columns, width, 0.0)
                total += tl.sum(a * read(frame, STEP[ROW] + other * width, columns, width, 0.0), axis=1)
            tl.store(frame + STEP[OUT] + pair, total)
            pair += 1


@triton.jit
def run_mix(frame, STEP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    width: tl.constexpr = at(at(STEP, LAYER), WIDTH)
    gates: tl.constexpr = at(at(at(STEP, PARTS), 0), PLACE)
    for first in tl.range(0, width, BLOCK_N):
        columns = first + tl.arange(0, BLOCK_N)
        total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for i in tl.static_range(1, len(at(STEP, PARTS))):
            gate = tl.load(frame + gates + i - 1)
            total += gate[:, None] * read(frame, at(at(at(STEP, PARTS), i), PLACE), columns, width, 0.0)
        write(frame, STEP[OUT], columns, width, total)


@triton.jit
def run_core(frame, STEP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    if STEP[KIND] == "softmax":
        run_softmax(frame, STEP, BLOCK_M)
    elif STEP[KIND] == "sum":
        run_sum(frame, STEP, BLOCK_M)
    elif STEP[KIND] == "layer_norm" or STEP[KIND] == "rms_norm" or STEP[KIND] == "l2_norm":
        run_norm(frame, STEP, BLOCK_M)
    elif STEP[KIND] == "fm":
        run_fm(frame, STEP, BLOCK_M, BLOCK_N)
    elif STEP[KIND] == "dot":
        run_dot(frame, STEP, BLOCK_M)
    elif STEP[KIND] == "mix":
        run_mix(frame, STEP, BLOCK_M, BLOCK_N)
    else:
        tl.static_assert(STEP[KIND] == "copy", "a step of contract/program.def without its core")
        copy_segments(frame, STEP[OUT], at(STEP, PARTS), BLOCK_N)


@triton.jit
def run_step(
    frame,
    block,
    matrices,
    STEP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    if STEP[GATHERS]:
        copy_segments(frame, STEP[ROW], at(STEP, PARTS), BLOCK_N)
        tl.debug_barrier()
    if STEP[KIND] == "linear":
        run_linear(frame, block, matrices, STEP, BLOCK_N, BLOCK_K, PRECISION, INTERPRETED)
    else:
        run_core(frame, STEP, BLOCK_M, BLOCK_N)
        if STEP[FINISHES]:
            tl.debug_barrier()
            layer: tl.constexpr = at(STEP, LAYER)
            for first in tl.range(0, layer[WIDTH], BLOCK_N):
                columns = first + tl.arange(0, BLOCK_N)
                value = read(frame, STEP[OUT], columns, layer[WIDTH], 0.0)
                value = finish_layer(value, block, columns, layer, BLOCK_N, at(STEP, AFFINE))
                write(frame, STEP[OUT], columns, layer[WIDTH], combine(value, frame, columns, STEP))
    tl.debug_barrier()


@triton.jit
def load_rows(frame, first, x, x_stride, rows, exists, COUNT: tl.constexpr, BLOCK_N: tl.constexpr):
    """Columns of rows, as float32, from column ``first`` of the frames on; zeros where there is no row."""
    for begin in tl.range(0, COUNT, BLOCK_N):
        columns = begin + tl.arange(0, BLOCK_N)
        mask = exists[:, None] & (columns < COUNT)[None, :]
        values = tl.load(x + rows[:, None] * x_stride + columns[None, :], mask=mask, other=0.0)
        write(frame, first, columns, COUNT, values.to(tl.float32))


@triton.jit
def write_outputs(
    frame, rows, live, scored, outputs, COUNT: tl.constexpr, SEGMENT: tl.constexpr, BLOCK_N: tl.constexpr
):
    """A segment of the outputs ``[count][COUNT]``; NaN if the weights are another program's."""
    for first in tl.range(0, SEGMENT[SEGMENT_WIDTH], BLOCK_N):
        columns = first + tl.arange(0, BLOCK_N)
        values = read(frame, SEGMENT[PLACE], columns, SEGMENT[SEGMENT_WIDTH], 0.0)
        to = outputs + rows[:, None] * COUNT + SEGMENT[COLUMN] + columns[None, :]
        mask = live[:, None] & (columns < SEGMENT[SEGMENT_WIDTH])[None, :]
        tl.store(to, tl.where(scored[:, None], values, float("nan")), mask=mask)


@triton.jit
def write_scores(
    frame,
    rows,
    live,
    scored,
    weights,
    logits,
    probs,
    score,
    LOGITS: tl.constexpr,
    PARENTS: tl.constexpr,
    JOIN: tl.constexpr,
    FUSION: tl.constexpr,
    TASK_COLUMNS: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    tile = tl.zeros([BLOCK_M, TASK_COLUMNS], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    above = tl.zeros([BLOCK_M], tl.float32)
    for task in tl.static_range(len(LOGITS)):
        own = tl.load(frame + at(LOGITS, task))
        joined = join_logit(own, column_of(tile, at(PARENTS, task)), wide(at(PARENTS, task)) >= 0, JOIN)
        tile = with_column(tile, task, joined)
        total, above = add_to_score(total, above, task, joined, weights, live, FUSION)
    total = finish_score(total, above, weights, live, FUSION, len(LOGITS))
    store_outputs(logits, probs, score, tile, total, rows, live, scored, len(LOGITS))


@triton.jit
def program_kernel(
    x,
    x_stride,
    user,
    user_stride,
    count,
    offsets,
    requests,
    packed,
    fusion_weights,
    logits,
    probs,
    score,
    outputs,
    workspace,
    STEPS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    OUTPUT_COLUMNS: tl.constexpr,
    LOGITS: tl.constexpr,
    PARENTS: tl.constexpr,
    JOIN: tl.constexpr,
    HEADER: tl.constexpr,
    FLOATS: tl.constexpr,
    PRECISION: tl.constexpr,
    USER_COLUMNS: tl.constexpr,
    ITEM_COLUMNS: tl.constexpr,
    FRAME: tl.constexpr,
    FUSION: tl.constexpr,
    PER: tl.constexpr,
    WEIGHT_COUNT: tl.constexpr,
    TASK_COLUMNS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """``user`` is None in the dense form; ``outputs`` is None if candidates are scored, ``logits`` if not."""
    block = task_block(packed, 0, 0)
    matrices = task_matrices(packed, 0, 0, (FLOATS, 0), PRECISION)
    frame = workspace + (tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)) * FRAME
    first = tl.program_id(0).to(tl.int64) * BLOCK_M
    while first < count:
        rows, live, scored, request, _, _ = candidates_of(first, count, offsets, requests, None, 0, None, BLOCK_M)
        if user is not None:
            load_rows(frame, 0, user, user_stride, request, scored, USER_COLUMNS, BLOCK_N)
        load_rows(frame, USER_COLUMNS, x, x_stride, rows, live, ITEM_COLUMNS, BLOCK_N)
        scored = only_if(is_packed_for(packed, HEADER[0], HEADER[1]), scored)
        tl.debug_barrier()
        for place in tl.static_range(len(STEPS)):
            run_step(frame, block, matrices, at(STEPS, place), BLOCK_M, BLOCK_N, BLOCK_K, PRECISION, INTERPRETED)
        if outputs is not None:
            for i in tl.static_range(len(OUTPUTS)):
                write_outputs(frame, rows, live, scored, outputs, OUTPUT_COLUMNS, at(OUTPUTS, i), BLOCK_N)
        else:
            weights = weight_rows(fusion_weights, rows, request, live, PER, WEIGHT_COUNT)
            write_scores(
                frame, rows, live, scored, weights, logits, probs, score, LOGITS, PARENTS, JOIN, FUSION, TASK_COLUMNS,
                BLOCK_M,
            )  # fmt: skip
        tl.debug_barrier()  # the next tile may overwrite what was just read
        first += tl.num_programs(0).to(tl.int64) * BLOCK_M
