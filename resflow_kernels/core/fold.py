"""Fold a layer's BatchNorms into its canonical weights, in float64.

The modules use it when they pack their weights and when they train; bundles hold weights that are already folded. An
*affine* here is an eval-mode BatchNorm written as ``v * scale + shift``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

Array = Any  # a torch.Tensor or a numpy.ndarray, float64


class Affine(NamedTuple):
    """``v * scale + shift`` per channel."""

    scale: Array
    shift: Array


def batch_norm(gamma: Array, beta: Array, mean: Array, variance: Array, eps: float) -> Affine:
    """Eval-mode BatchNorm, ``(v - mean) / sqrt(variance + eps) * gamma + beta``, as an affine. All ``[H]``."""
    scale = gamma / (variance + eps) ** 0.5
    return Affine(scale, beta - mean * scale)


def before_linear(affine: Affine, weight: Array, bias: Array) -> tuple[Array, Array]:
    """``affine(x) @ weight + bias`` as one Linear: ``weight [in, out]``, ``bias [out]``."""
    return weight * affine.scale[:, None], bias + affine.shift @ weight


def after_linear(weight: Array, bias: Array, affine: Affine) -> tuple[Array, Array]:
    """``affine(x @ weight + bias)`` as one Linear."""
    return weight * affine.scale, bias * affine.scale + affine.shift
