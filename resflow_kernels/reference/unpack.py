"""Reads packed weights back, by the layout that the compiled library reports."""

from __future__ import annotations

import torch
from torch import Tensor

from ..contract import PACKED, PRECISION_ROWS
from ..core.packed_layout import PackedLayer
from ..core.plan import Plan
from ..core.weights import Weight, iter_weights
from .rounding import FORMATS


def unpack_towers(packed: Tensor, plan: Plan) -> list[Tensor]:
    """Canonical weights (``Plan.weight_shapes``) from packed ones, rounded to the plan's precision."""
    floats = packed[PACKED["header_bytes"] :][: 4 * plan.tasks * plan.packed_layout.task_floats]
    blocks = floats.view(torch.float32).view(plan.tasks, -1)
    return [_unpacked(blocks[weight.task], weight, plan) for weight in iter_weights(plan)]


def _unpacked(block: Tensor, weight: Weight, plan: Plan) -> Tensor:
    layout, size = plan.packed_layout, weight.shape[-1]
    if weight.layer is None:
        first = layout.head_weight if weight.kind == "weight" else layout.head_bias
        return block[first : first + size].clone()
    layer = layout.layers[weight.layer]
    if weight.kind != "weight":
        first = getattr(layer, weight.kind)
        return block[first : first + size].clone()
    matrix = panel_matrix(block, layer, plan.precision)[: weight.shape[0], :size].float()
    if "column_scales" in PRECISION_ROWS[plan.precision].flags:  # bytes are stored as value + 128
        matrix = (matrix - 128) * block[layer.column_scale : layer.column_scale + size]
    return matrix.contiguous()


def panel_matrix(block: Tensor, layer: PackedLayer, precision: str) -> Tensor:
    """A layer's matrix from a task's block, including padding, in the stored type: panels of words, each of which holds
    consecutive inputs of one column."""
    dtype = FORMATS[precision].packed
    per_word = 4 // PRECISION_ROWS[precision].bytes
    panels, first = [], layer.panels
    for column in range(0, layer.padded, PACKED["panel_columns"]):
        columns = min(PACKED["panel_columns"], layer.padded - column)
        panel = block[first : first + layer.words * columns].view(dtype).view(layer.words, columns, per_word)
        panels.append(panel.transpose(1, 2).reshape(layer.words * per_word, columns))
        first += layer.words * columns
    return torch.cat(panels, dim=1)
