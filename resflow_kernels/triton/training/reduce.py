"""Sums the results of tiles or splits in a fixed order, so that no result depends on which of them ran first."""

import triton
import triton.language as tl

from ..functions import only_if, wide
from .layers import PADDED, STATISTICS, TASK_FLOATS, WIDTH, blocks_of, choose


@triton.jit
def statistics_kernel(
    tile_means,
    tile_squares,
    tiles,
    count,
    mean,
    variance,
    LAYER: tl.constexpr,
    TASKS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The batch's mean and biased variance from those of tiles (Chan et al.), in float64."""
    columns = blocks_of(tl.program_id(0), BLOCK_C, TASKS * LAYER[PADDED])
    exist = columns < TASKS * LAYER[PADDED]
    total = tl.zeros([BLOCK_C], tl.float64)
    first = wide(0)
    while first < tiles:
        places, inside, rows = _tiles(first, tiles, count, columns, exist, TILE_ROWS, TASKS * LAYER[PADDED], BLOCK_T)
        total += tl.sum(tl.load(tile_means + places, mask=inside, other=0.0).to(tl.float64) * rows[:, None], axis=0)
        first += BLOCK_T
    middle = total / wide(count).to(tl.float64)
    squares = tl.zeros([BLOCK_C], tl.float64)
    first = wide(0)
    while first < tiles:
        places, inside, rows = _tiles(first, tiles, count, columns, exist, TILE_ROWS, TASKS * LAYER[PADDED], BLOCK_T)
        distance = tl.load(tile_means + places, mask=inside, other=0.0).to(tl.float64) - middle[None, :]
        own = tl.load(tile_squares + places, mask=inside, other=0.0).to(tl.float64)
        squares += tl.sum(tl.where(inside, own + distance * distance * rows[:, None], 0.0), axis=0)
        first += BLOCK_T
    task, column = columns // LAYER[PADDED], columns % LAYER[PADDED]
    place = wide(LAYER[WIDTH]) * task + LAYER[STATISTICS] + column
    real = exist & (column < LAYER[WIDTH])
    tl.store(mean + place, middle.to(tl.float32), mask=real)
    tl.store(variance + place, (squares / wide(count).to(tl.float64)).to(tl.float32), mask=real)


@triton.jit
def _tiles(
    first,
    tiles,
    count,
    columns,
    exist,
    TILE_ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Offsets of some tiles' channels, which of them exist, and each tile's number of rows."""
    tile = first + tl.arange(0, BLOCK_T)
    live = tile < tiles
    rows = tl.minimum(count - tile * TILE_ROWS, TILE_ROWS)
    rows = tl.where(live, rows, 0).to(tl.float64)
    return tile[:, None] * CHANNELS + columns[None, :], live[:, None] & exist[None, :], rows


@triton.jit
def channel_sums_kernel(
    tile_sums,
    tiles,
    count,
    out,
    means,
    LAYER: tl.constexpr,
    TASKS: tl.constexpr,
    PLACES: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Adds up each tile's sums of several kinds, ``[kinds][tiles][tasks * padded]``, to gradients at the offsets PLACES
    of a task's (negative: the kind is left out), and to means over the batch, ``[kinds][tasks * padded]``, unless None.
    """
    kind = tl.program_id(0) // BLOCKS
    columns = blocks_of(tl.program_id(0) % BLOCKS, BLOCK_C, TASKS * LAYER[PADDED])
    channels: tl.constexpr = TASKS * LAYER[PADDED]
    exist = columns < channels
    place = choose(kind, PLACES)
    total = tl.zeros([BLOCK_C], tl.float64)
    first = tl.where(place >= 0, wide(0), tiles)
    while first < tiles:
        tile = first + tl.arange(0, BLOCK_T)
        places = (wide(kind) * tiles + tile)[:, None] * channels + columns[None, :]
        inside = (tile < tiles)[:, None] & exist[None, :]
        total += tl.sum(tl.load(tile_sums + places, mask=inside, other=0.0).to(tl.float64), axis=0)
        first += BLOCK_T
    task, column = columns // LAYER[PADDED], columns % LAYER[PADDED]
    real = only_if(place >= 0, exist & (column < LAYER[WIDTH]))
    tl.store(out + wide(LAYER[TASK_FLOATS]) * task + place + column, total.to(tl.float32), mask=real)
    if means is not None:
        mean = (total / wide(count).to(tl.float64)).to(tl.float32)
        tl.store(means + wide(kind) * channels + columns, mean, mask=exist)


@triton.jit
def splits_kernel(
    splits,
    count,
    out,
    TASK_VALUES: tl.constexpr,
    VALUES: tl.constexpr,
    TASK_FLOATS: tl.constexpr,
    PLACE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums ``count`` splits of VALUES numbers each, TASK_VALUES per task, to gradients at an offset in each task's."""
    values = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = values < VALUES
    total = tl.zeros([BLOCK], tl.float32)
    split = wide(0)
    while split < count:
        total += tl.load(splits + split * VALUES + values, mask=inside, other=0.0)
        split += 1
    place = values // TASK_VALUES * TASK_FLOATS + PLACE + values % TASK_VALUES
    tl.store(out + place, total, mask=inside)
