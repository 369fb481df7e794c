"""Writes a ranker's modules as steps of a tile program, with their weights as they are now. Needs torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ..core import fold
from ..core.program import Program, ProgramBuilder, Row, Step, joined, width_of
from .layers import TowerLayer, linear_bias, norm_affine


class ModuleSteps:
    """A :class:`~resflow_kernels.core.program.ProgramBuilder` that takes modules.

    Args:
        in_features: ``D``, the width of the input row.
        input_norm: a BatchNorm on the input row; it is folded into the Linears that read the row.
    """

    def __init__(self, in_features: int, input_norm: nn.BatchNorm1d | None = None) -> None:
        self._builder = ProgramBuilder(in_features)
        self._norm = None if input_norm is None else norm_affine(input_norm)
        self._normed: Row | None = None
        self.x = self._builder.x
        """The input row, before its BatchNorm: what layers read."""

    def linear(self, row: Row, linear: nn.Linear, *, factor: Row = (), addend: Row = ()) -> Row:
        """``linear(row) * factor + addend``."""
        weight = linear.weight.double().T
        bias = linear_bias(linear, weight)
        weights = self._folded(row, weight, bias)
        factors, addends = (one and (self._builder.one(one),) for one in (factor, addend))
        return self._add(Step("linear", weight.shape[1], row, factors=factors, addends=addends), weights)

    def layer(self, row: Row, layer: TowerLayer) -> Row:
        """A hidden layer."""
        own = layer.canonical_weights(self._norm if row == self.x else None)
        affine = layer.norm is not None and layer.norm_after_activation
        step = Step("linear", own["bias"].shape[0], row, layer.activation_name, affine)
        return self._add(step, [own[kind] for kind, _ in step.weights()])

    def mlp(self, row: Row, layers: Iterable[nn.Module]) -> Row:
        """Hidden layers one after another."""
        for layer in layers:
            row = self.layer(row, cast(TowerLayer, layer))
        return row

    def activated(self, row: Row, linear: nn.Linear, activation: nn.Module) -> Row:
        """``activation(linear(row))``."""
        return self.layer(row, TowerLayer(linear, activation))

    def softmax(self, row: Row, scale: float = 1.0) -> Row:
        """Shares that sum to 1, of ``scale`` times the row."""
        width = width_of(row)
        if scale != 1.0:
            ones = torch.ones(width, dtype=torch.float64)
            row = self._add(Step("copy", width, row, affine=True), [scale * ones, 0 * ones])
        return self._add(Step("softmax", width, row))

    def mix(self, shares: Row, values: Sequence[Row]) -> Row:
        """``sum_e shares_e values_e``."""
        one = self._builder.one
        inputs = (one(shares), *(one(value) for value in values))
        return self._add(Step("mix", inputs[1].width, inputs))

    def dot(self, a: Row, b: Row) -> Row:
        """The dot product of two rows, one column."""
        product = self._add(Step("copy", width_of(a), a, factors=(self._builder.one(b),)))
        return self._add(Step("sum", 1, product))

    def interactions(self, fields: Row, count: int) -> Row:
        """The dot products of all pairs ``i < j`` of ``count`` fields."""
        return self._add(Step("dot", count * (count - 1) // 2, fields, groups=count))

    def normed(self) -> Row:
        """The input row after its BatchNorm, for steps that do not multiply it by a matrix."""
        if self._norm is None:
            return self.x
        if self._normed is None:
            self._normed = self._add(Step("copy", width_of(self.x), self.x, affine=True), list(self._norm))
        return self._normed

    def build(self, outputs: Sequence[Row], parents: Sequence[int]) -> tuple[Program, list[Tensor]]:
        """The program whose outputs are the tasks' logits, and its float32 weights."""
        row = joined([segment for output in outputs for segment in output])
        weights = [weight.detach().float().contiguous() for weight in self._builder.weights]
        return self._builder.build(row, parents), weights

    def _folded(self, row: Row, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        if self._norm is None or row != self.x:
            return weight, bias
        return fold.before_linear(self._norm, weight, bias)

    def _add(self, step: Step, weights: Sequence[Tensor] = ()) -> Row:
        return self._builder.add(step, weights)
