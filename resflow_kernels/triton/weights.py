"""Reads packed weights: matrices as tiles of operands, and a layer's vectors.

A layer is described by the constants of :class:`~resflow_kernels.triton.layout.Layer`, indexed by position.
"""

import triton
import triton.language as tl

from ..contract import PACKED
from .formulas import activate
from .functions import at, divides, round_up, wide
from .layout import NO_TENSOR_PANELS, TENSOR_VALUE_BYTES, Layer

_PLACES = {name: tl.constexpr(place) for place, name in enumerate(Layer._fields)}
INPUTS = _PLACES["inputs"]
WIDTH = _PLACES["width"]
PADDED = _PLACES["padded"]
MATRIX = _PLACES["matrix"]
TENSOR = _PLACES["tensor"]
BIAS = _PLACES["bias"]
SLOPE = _PLACES["slope"]
SCALE = _PLACES["scale"]
SHIFT = _PLACES["shift"]
ACTIVATION = _PLACES["activation"]
KEPT = _PLACES["kept"]

HEADER_BYTES = tl.constexpr(PACKED["header_bytes"])
PANEL = tl.constexpr(PACKED["panel_columns"])  # columns of a panel of floats
CHUNK = tl.constexpr(PACKED["chunk_inputs"])  # inputs per chunk of a tensor panel
NONE = tl.constexpr(NO_TENSOR_PANELS)
PIECE = tl.constexpr(PACKED["piece_bytes"] // TENSOR_VALUE_BYTES)  # values per swizzled piece of a tensor panel


@triton.jit
def is_packed_for(packed, MAGIC: tl.constexpr, FINGERPRINT: tl.constexpr):
    """Whether the header is that of the plan; weights of another plan score NaN."""
    words = packed.to(tl.pointer_type(tl.int64))
    return (tl.load(words) == MAGIC) & (tl.load(words + 1) == FINGERPRINT)


@triton.jit
def task_block(packed, task, TASK_FLOATS: tl.constexpr):
    """The floats of a task."""
    return (packed + HEADER_BYTES).to(tl.pointer_type(tl.float32)) + wide(task) * TASK_FLOATS


@triton.jit
def task_matrices(packed, task, TASK_FLOATS: tl.constexpr, PANELS: tl.constexpr, PRECISION: tl.constexpr):
    """Pointer to a task's matrices; ``PANELS`` is the start of the tensor panels and their values per task."""
    if PRECISION == "bfloat16":
        return (packed + PANELS[0]).to(tl.pointer_type(tl.bfloat16)) + wide(task) * PANELS[1]
    elif PRECISION == "float16":
        return (packed + PANELS[0]).to(tl.pointer_type(tl.float16)) + wide(task) * PANELS[1]
    else:
        return task_block(packed, task, TASK_FLOATS)


@triton.jit
def matrix_tile(
    matrices,
    first_input,
    first_column,
    LAYER: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """An operand ``[BLOCK_K, BLOCK_N]`` of a layer's matrix, zeros past its ends.

    ``first_input`` is a multiple of BLOCK_K, ``first_column`` of 64. Offsets that are the same for all tiles are
    separate from those that change, so that a loop over inputs advances one pointer.
    """
    if LAYER[TENSOR] == NONE and (PRECISION == "bfloat16" or PRECISION == "float16"):
        # Panels of words, each of two inputs of a column.
        k, n = tl.arange(0, BLOCK_K)[:, None], tl.arange(0, BLOCK_N)[None, :]
        panel = n // PANEL * PANEL
        words: tl.constexpr = (LAYER[INPUTS] + 1) // 2
        lanes = tl.minimum(LAYER[PADDED] - first_column - panel, PANEL)
        place = (first_column + panel) * words + (wide(first_input) + k) // 2 * lanes + n % PANEL
        inside = columns_inside(n, first_column, LAYER, BLOCK_N) & (k < LAYER[INPUTS] - first_input)
        tile = tl.load(matrices + 2 * LAYER[MATRIX] + 2 * place + k % 2, mask=inside, other=0.0)
        return tile.to(tl.float32) if INTERPRETED else tile
    elif PRECISION == "bfloat16" or PRECISION == "float16":
        tl.static_assert(divides(CHUNK, BLOCK_K) or divides(BLOCK_K, CHUNK), "chunks are cut evenly")
        # Groups of 8 values of a column are contiguous: read as [BLOCK_N, BLOCK_K].
        k, n = tl.arange(0, BLOCK_K)[None, :], tl.arange(0, BLOCK_N)[:, None]
        if BLOCK_K < CHUNK:
            k += (wide(first_input) % CHUNK).to(tl.int32)
        piece = (k % CHUNK) // PIECE ^ n % PIECE
        place = k // CHUNK * (LAYER[PADDED] * CHUNK) + n * CHUNK + piece * PIECE + k % PIECE
        place = tl.max_contiguous(tl.multiple_of(place, (1, PIECE)), (1, PIECE))
        start = wide(first_input) // CHUNK * (LAYER[PADDED] * CHUNK) + wide(first_column) * CHUNK
        inside = columns_inside(n, first_column, LAYER, BLOCK_N)
        if BLOCK_K > CHUNK:
            inside = inside & (k < round_up(LAYER[INPUTS], CHUNK) - first_input)
        tile = tl.trans(tl.load(matrices + LAYER[TENSOR] + start + place, mask=inside, other=0.0))
        return tile.to(tl.float32) if INTERPRETED else tile
    else:
        # Panels have 64 columns, the last one fewer: groups of 16 columns are always contiguous.
        k, n = tl.arange(0, BLOCK_K)[:, None], tl.arange(0, BLOCK_N)[None, :]
        panel = n // PANEL * PANEL
        if divides(PANEL, LAYER[PADDED]):
            place = panel * LAYER[INPUTS] + k * PANEL + n % PANEL
            start = wide(first_column) * LAYER[INPUTS] + wide(first_input) * PANEL
        else:
            lanes = tl.minimum(LAYER[PADDED] - first_column - panel, PANEL)
            place = panel * LAYER[INPUTS] + wide(k + first_input) * lanes + n % PANEL
            start = wide(first_column) * LAYER[INPUTS]
        place = tl.max_contiguous(tl.multiple_of(place, (1, 16)), (1, 16))
        inside = columns_inside(n, first_column, LAYER, BLOCK_N)
        if not divides(BLOCK_K, LAYER[INPUTS]):
            inside = inside & (k < LAYER[INPUTS] - first_input)
        return tl.load(matrices + LAYER[MATRIX] + start + place, mask=inside, other=0.0)


@triton.jit
def columns_inside(columns, first_column, LAYER: tl.constexpr, BLOCK_N: tl.constexpr):
    """Mask of the columns of a layer among BLOCK_N columns from ``first_column`` on; constant if it has all of them."""
    if divides(BLOCK_N, LAYER[PADDED]):
        return columns < BLOCK_N
    else:
        return columns < LAYER[PADDED] - first_column


@triton.jit
def layer_vector(block, columns, PLACE: tl.constexpr, LAYER: tl.constexpr):
    """Some columns of a layer's vector (PLACE: that of its bias, slope, ...); zeros past its end."""
    return tl.load(block + LAYER[PLACE] + columns, mask=columns < LAYER[PADDED], other=0.0)


@triton.jit
def finish_layer(sums, block, columns, LAYER: tl.constexpr, BLOCK_N: tl.constexpr, AFFINE: tl.constexpr):
    """affine(act(sums)) at BLOCK_N columns; zeros past the layer's width, where an infinite input would give NaN."""
    slope = 0.0
    if LAYER[ACTIVATION] == "prelu":
        slope = layer_vector(block, columns, SLOPE, LAYER)[None, :]
    value = activate(sums, slope, at(LAYER, ACTIVATION))
    if AFFINE:
        scale = layer_vector(block, columns, SCALE, LAYER)[None, :]
        value = value * scale + layer_vector(block, columns, SHIFT, LAYER)[None, :]
    if divides(BLOCK_N, LAYER[WIDTH]):
        return value
    else:
        return tl.where(columns[None, :] < LAYER[WIDTH], value, 0.0)
