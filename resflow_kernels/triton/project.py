"""Multiplies rows by the first layers of all tasks: users' projections, and the rows of a catalog."""

import triton
import triton.language as tl

from .functions import wide
from .inputs import add_rows, later_sums
from .weights import PADDED, is_packed_for, task_block, task_matrices


@triton.jit
def project_kernel(
    x,
    x_stride,
    count,
    packed,
    out,
    LAYER: tl.constexpr,
    TASKS: tl.constexpr,
    TASK_FLOATS: tl.constexpr,
    PANELS: tl.constexpr,
    HEADER: tl.constexpr,
    WITH_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    FIRST_INPUT: tl.constexpr,
    INPUT_COUNT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Writes ``out [count][tasks * padded width]``; a program computes BLOCK_M rows and BLOCK_N columns of one task."""
    panels: tl.constexpr = (LAYER[PADDED] + BLOCK_N - 1) // BLOCK_N
    job = tl.program_id(0) % (TASKS * panels)
    task, first_column = job // panels, job % panels * BLOCK_N
    rows = (tl.program_id(0) // (TASKS * panels)).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    live = rows < count
    columns = first_column + tl.arange(0, BLOCK_N)
    block = task_block(packed, task, TASK_FLOATS)
    sums = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if WITH_BIAS:
        sums = later_sums(block, columns, live, LAYER)
    if INPUT_COUNT > 0:
        sums = add_rows(
            sums, x, x_stride, rows, live, task_matrices(packed, task, TASK_FLOATS, PANELS, PRECISION), first_column,
            LAYER, FIRST_INPUT, INPUT_COUNT, BLOCK_N, BLOCK_K, PRECISION, INTERPRETED,
        )  # fmt: skip
    sums = tl.where(is_packed_for(packed, HEADER[0], HEADER[1]), sums, float("nan"))
    place = rows[:, None] * (TASKS * LAYER[PADDED]) + wide(task) * LAYER[PADDED] + columns[None, :]
    tl.store(out + place, sums, mask=live[:, None] & (columns < LAYER[PADDED])[None, :])
