"""Connects a :class:`~resflow_kernels.nn.ResFlow` in training with the training ops: its weights and its BatchNorms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .. import ops
from ..core import fold
from ..core.plan import Plan
from ..core.weights import Tower, in_order
from .layers import TowerLayer, norm_affine, slope_of
from .ranker import contiguous_rows
from .watch import why_altered

if TYPE_CHECKING:
    from .resflow import ResFlow


def untrainable_reason(model: ResFlow) -> str | None:
    """Why the training ops cannot serve this model in its current state; ``None`` if they can."""
    reason = altered(model)
    if reason is not None:
        return reason
    layers = list(_layers(model))
    for dropout in (layer.dropout for layer in layers):
        if isinstance(dropout, nn.modules.dropout._DropoutNd) and dropout.training and dropout.p:
            return "its towers have dropout between layers"
    by_batch = [_uses_batch(layer.norm) for layer in layers]
    if not any(by_batch):
        return None
    if not all(by_batch):
        return "some of its layers have a BatchNorm by the batch's statistics and some do not"
    norms = [layer.norm for layer in layers if layer.norm is not None]
    if any(type(norm) is not nn.BatchNorm1d for norm in norms):
        return f"the ops know nn.BatchNorm1d, not {type(norms[0]).__name__}"
    if len({norm.eps for norm in norms}) > 1:
        return "its BatchNorms have different eps"
    if len({layer.norm_after_activation for layer in layers}) > 1:
        return "some of its BatchNorms stand before the activation and some after"
    return None


def altered(model: ResFlow) -> str | None:
    """Why no op computes what this model's layers do; ``None`` if the layers are unaltered."""
    for tower, head in zip(model._tower_layers(), model._head_layers(), strict=True):
        reason = _altered(head, nn.Linear)
        for layer, activation in zip(tower, model.plan.activations, strict=True):
            reason = reason or _altered_layer(layer, activation)
        if reason is not None:
            return reason
    return None


def _altered_layer(layer: TowerLayer, activation: str) -> str | None:
    dropout = layer.dropout
    if not (dropout is None or isinstance(dropout, (nn.Identity, nn.modules.dropout._DropoutNd))):
        return f"its towers have a {type(dropout).__name__} between layers"
    if layer.activation_name != activation:
        return f"a layer's activation is {layer.activation_name}, its plan says {activation}"
    altered = _altered(layer, TowerLayer) or _altered(layer.linear, nn.Linear)
    return altered or _altered(layer.activation) or (None if layer.norm is None else _altered(layer.norm))


def _altered(module: nn.Module, kind: type[nn.Module] | None = None) -> str | None:
    """Detect hooks and custom ``forward``s: the ops read parameters and call no module, so they would be ignored."""
    reason = why_altered(module)
    if reason is None and kind is not None and type(module).forward is not kind.forward:
        reason = f"its {type(module).__name__} has a forward of its own"
    return reason


def logits(model: ResFlow, x: Tensor) -> Tensor:
    """Logits ``[B, K]`` of a batch by the training ops; running statistics are updated as ``nn.BatchNorm1d`` does."""
    if model.input_norm is not None:
        x = model.input_norm(x)
    layers = list(_layers(model))
    first, x = layers[0], contiguous_rows(x)
    if not _uses_batch(first.norm):
        weights = _weights(model, model.plan)
        return ops.training_logits(x, weights, model.plan, recompute=model.recompute)[0]
    assert first.norm is not None
    if x.shape[0] < 2:
        raise ValueError(f"ResFlow: x must be at least 2 rows for a BatchNorm in training, got {x.shape[0]}")
    statistics = "batch_after" if first.norm_after_activation else "batch_before"
    settings = (model.affine_plan, statistics, first.norm.eps, model.recompute)
    made, mean, variance = ops.training_logits(x, _weights(model, model.affine_plan), *settings)
    with torch.no_grad():
        _update_running(model, mean, variance, x.shape[0])
    return made


def _uses_batch(norm: nn.Module | None) -> bool:
    return norm is not None and (norm.training or getattr(norm, "running_mean", None) is None)


def _layers(model: ResFlow) -> Iterator[TowerLayer]:
    for tower in model._tower_layers():
        yield from tower


def _weights(model: ResFlow, plan: Plan) -> list[Tensor]:
    """The parameters as arguments of ``training_logits``, differentiable."""
    towers: list[Tower] = []
    for layers, head in zip(model._tower_layers(), model._head_layers(), strict=True):
        bias = head.weight.new_zeros(1) if head.bias is None else head.bias
        towers.append(
            Tower(
                tuple(_layer_weights(layer, plan.affine) for layer in layers),
                {"weight": head.weight.view(-1), "bias": bias},
            )
        )
    return [weight.contiguous() for weight in in_order(plan, towers)]


def _layer_weights(layer: TowerLayer, affine: bool) -> dict[str, Tensor]:
    """A layer's weights by kind; in an affine plan scale and shift are 1 and 0 if the layer has none."""
    weight = layer.linear.weight
    bias = weight.new_zeros(weight.shape[0]) if layer.linear.bias is None else layer.linear.bias
    norm = layer.norm
    affines: list[Tensor] = []
    if norm is not None and not _uses_batch(norm):
        scale, shift = norm_affine(norm)
        if layer.norm_after_activation:
            affines = [scale.float(), shift.float()]
        else:
            matrix, bias = fold.after_linear(weight.T, bias, fold.Affine(scale.float(), shift.float()))
            weight = matrix.T
    elif norm is not None:
        gamma = bias.new_ones(bias.shape) if norm.weight is None else norm.weight
        beta = bias.new_zeros(bias.shape) if norm.bias is None else norm.bias
        affines = [gamma, beta]
    if affine and not affines:
        affines = [bias.new_ones(bias.shape), bias.new_zeros(bias.shape)]
    slope = {"slope": slope_of(layer.activation, bias)} if layer.activation_name == "prelu" else {}
    return {"weight": weight, "bias": bias, **slope, **dict(zip(("scale", "shift"), affines, strict=False))}


def _update_running(model: ResFlow, mean: Tensor, variance: Tensor, rows: int) -> None:
    """Update running statistics; ``mean`` and the biased ``variance`` are ``[layer][task][channel]``."""
    towers = model._tower_layers()
    norms = [tower[level].norm for level in range(model.plan.layers) for tower in towers]
    widths = [width for width in model.plan.hidden for _ in towers]
    unbiased = (variance * (rows / (rows - 1))).split(widths)
    for norm, own_mean, own_variance in zip(norms, mean.split(widths), unbiased, strict=True):
        assert norm is not None
        if not norm.track_running_stats or norm.running_mean is None or norm.running_var is None:
            continue
        factor = 0.0 if norm.momentum is None else norm.momentum
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
            factor = 1 / int(norm.num_batches_tracked) if norm.momentum is None else factor
        norm.running_mean.lerp_(own_mean, factor)
        norm.running_var.lerp_(own_variance, factor)
