"""Makes a ranker from canonical weights, the form in which bundles store them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from .. import ops
from ..core.fusion import Fusion
from ..core.plan import Plan
from ..core.program import AnyPlan, Program
from ..core.weights import towers_of
from ..nn import PackedResFlow, ResFlow
from ..nn.layers import ACTIVATION_MODULES, TowerLayer


def from_canonical(
    plan: Plan,
    weights: Sequence[np.ndarray | Tensor],
    tasks: Sequence[str] | None = None,
    fusion: Fusion | None = None,
) -> ResFlow:
    """An ordinary :class:`ResFlow`, in eval mode, whose ``canonical_weights()`` are bitwise ``weights``.

    Args:
        plan: the network.
        weights: float32 arrays or tensors as ``plan.weight_shapes`` lists them. Scales and shifts become a
            BatchNorm with mean 0, variance 1 and eps 0.
        tasks: names, by default ``task0``, ``task1``, ...
        fusion: by default :class:`Additive`.

    Raises:
        ValueError: a weight is missing or of the wrong shape or dtype; the message names it.

    Example:
        >>> from resflow_kernels.testing import random_weights
        >>> plan = Plan(6, (4,), (-1, 0))
        >>> from_canonical(plan, random_weights(plan)).tasks
        ('task0', 'task1')
    """
    canonical = towers_of(plan, _checked(plan, weights))
    towers = [list(map(_layer, plan.activations, tower.layers)) for tower in canonical]
    heads = [_linear(tower.head["weight"][:, None], tower.head["bias"]) for tower in canonical]
    names = tuple(f"task{task}" for task in range(plan.tasks)) if tasks is None else tuple(tasks)
    if len(names) != plan.tasks:
        raise ValueError(f"tasks must be {plan.tasks} names, got {len(names)}")
    return ResFlow.from_layers(plan, names, towers, heads, fusion=fusion).eval()


def packed_program(
    program: Program, weights: Sequence[np.ndarray | Tensor], tasks: Sequence[str], fusion: Fusion
) -> PackedResFlow:
    """A tile program on its weights, as ``program.weight_shapes`` lists them, packed for scoring.

    Raises:
        ValueError: a weight is missing or of the wrong shape or dtype; the message names it.
    """
    packed = ops.pack_towers(_checked(program, weights), program)
    return PackedResFlow(program, tuple(tasks), fusion, packed).eval()


def _checked(plan: AnyPlan, weights: Sequence[np.ndarray | Tensor]) -> list[Tensor]:
    if len(weights) != len(plan.weight_shapes):
        raise ValueError(f"weights must be the {len(plan.weight_shapes)} tensors of this plan, got {len(weights)}")
    tensors = []
    for at, (weight, (name, shape)) in enumerate(zip(weights, plan.weight_shapes, strict=True)):
        tensor = weight if isinstance(weight, Tensor) else torch.from_numpy(np.array(weight))
        if tuple(tensor.shape) != shape:
            raise ValueError(f"weights[{at}] ({name}) must be of shape {list(shape)}, got {list(tensor.shape)}")
        if tensor.dtype != torch.float32:
            raise ValueError(f"weights[{at}] ({name}) must be float32, got {str(tensor.dtype).removeprefix('torch.')}")
        tensors.append(tensor)
    return tensors


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A Linear from ``weight [in, out]``."""
    linear = nn.Linear(*weight.shape)
    linear.weight.data = weight.detach().T.contiguous().clone()
    linear.bias.data = bias.detach().clone()
    return linear


def _layer(activation: str, own: dict[str, Tensor]) -> TowerLayer:
    linear = _linear(own["weight"], own["bias"])
    width = linear.out_features
    if activation == "prelu":
        act: nn.Module = nn.PReLU(width)
        act.weight.data = own["slope"].detach().clone()
    else:
        act = ACTIVATION_MODULES[activation]()
    norm = None
    if "scale" in own:
        norm = nn.BatchNorm1d(width, eps=0.0)
        norm.weight.data, norm.bias.data = own["scale"].detach().clone(), own["shift"].detach().clone()
    return TowerLayer(linear, act, norm)
