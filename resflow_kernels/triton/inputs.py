"""A tile of candidates: which of them exist, their requests, and the initial sums of the first layers."""

import triton
import triton.language as tl

from .functions import multiply, only_if, operand, wide
from .weights import BIAS, PADDED, layer_vector, matrix_tile


@triton.jit
def request_of(offsets, requests, rows, live):
    """The request of each candidate, or -1: offsets on the device are not checked."""
    low = tl.zeros_like(rows)
    high = low + requests
    left = requests  # length of the longest span between the two
    while left > 1:
        middle = (low + high) // 2
        begun = tl.load(offsets + middle, mask=live, other=0) <= rows
        low = tl.where(begun, middle, low)
        high = tl.where(begun, high, middle)
        left = (left + 1) // 2
    exists = only_if(requests > 0, live)
    begin = tl.load(offsets + low, mask=exists, other=0)
    end = tl.load(offsets + low + 1, mask=exists, other=0)
    return tl.where(exists & (begin <= rows) & (rows < end), low, -1)


@triton.jit
def candidates_of(first, count, offsets, requests, ids, items, scales, BLOCK_M: tl.constexpr):
    """For a tile's rows: positions, which exist, which can be scored, requests, table rows and their scales.

    ``offsets``, ``ids`` and ``scales`` are None in the forms without them.
    """
    rows = first + tl.arange(0, BLOCK_M).to(tl.int64)
    live = rows < count
    scored = live
    request = tl.zeros_like(rows)
    if offsets is not None:
        request = request_of(offsets, requests, rows, live)
        scored = request >= 0
        request = tl.where(scored, request, 0)
    item = rows
    scale = tl.zeros_like(rows).to(tl.float32) + 1.0
    if ids is not None:
        item = tl.load(ids + rows, mask=live, other=0)
        scored = scored & (item >= 0) & (item < items)
        item = tl.where(scored, item, 0)
        if scales is not None:
            scale = tl.load(scales + item, mask=scored, other=0.0)
    return rows, live, scored, request, item, scale


@triton.jit
def first_sums(
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
    LAYER: tl.constexpr,
    TASKS: tl.constexpr,
):
    """Initial sums of the first layer: the user's projection or the biases, plus the catalog's row."""
    inside = scored[:, None] & (columns < LAYER[PADDED])[None, :]
    task_column = wide(task) * LAYER[PADDED] + columns[None, :]
    if starts is not None:
        sums = tl.load(starts + request[:, None] * (TASKS * LAYER[PADDED]) + task_column, mask=inside, other=0.0)
    else:
        sums = later_sums(block, columns, scored, LAYER)
    if table is not None:
        products = tl.load(table + item[:, None] * table_stride + task_column, mask=inside, other=0.0)
        sums += products.to(tl.float32) * scale[:, None]
    return sums


@triton.jit
def later_sums(block, columns, scored, LAYER: tl.constexpr):
    """Initial sums of the other layers: the biases."""
    biases = layer_vector(block, columns, BIAS, LAYER)
    return tl.zeros([scored.shape[0], columns.shape[0]], tl.float32) + biases[None, :]


@triton.jit
def add_rows(
    sums,
    x,
    x_stride,
    rows,
    live,
    matrices,
    first_column,
    LAYER: tl.constexpr,
    FIRST_INPUT: tl.constexpr,
    INPUT_COUNT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """``sums`` plus the products of the rows' columns, which are inputs FIRST_INPUT to FIRST_INPUT + INPUT_COUNT - 1.

    Inputs are processed BLOCK_K at a time, from a multiple of it on, in the same order for every batch.
    """
    x_rows = x + rows[:, None] * x_stride
    begin: tl.constexpr = FIRST_INPUT // BLOCK_K * BLOCK_K
    for first in tl.range(begin, FIRST_INPUT + INPUT_COUNT, BLOCK_K):
        at = first - FIRST_INPUT + tl.arange(0, BLOCK_K)[None, :]
        if begin == FIRST_INPUT and INPUT_COUNT % BLOCK_K == 0:
            values = tl.load(x_rows + at, mask=live[:, None], other=0.0)
        else:
            values = tl.load(x_rows + at, mask=live[:, None] & (at >= 0) & (at < INPUT_COUNT), other=0.0)
        weights = matrix_tile(matrices, first, first_column, LAYER, BLOCK_K, BLOCK_N, PRECISION, INTERPRETED)
        sums = multiply(sums, operand(values, PRECISION, INTERPRETED), weights, PRECISION, INTERPRETED)
    return sums
