"""A ranker in plain PyTorch, as well written as it can be by hand, for eager and torch.compile.

The first layers of all tasks are one matrix product, activation and scale included; :meth:`Towers.split` computes
the user's part of it once per request.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import reference
from ..core.fusion import Fusion
from ..core.plan import Plan
from ..core.weights import towers_of

Floats = np.ndarray


class Towers(nn.Module):
    """The towers of a plan.

    Args:
        plan: the network.
        weights: float32 canonical weights, as ``plan.weight_shapes`` lists them.
        fusion: how probabilities become a score.
        user_width: number of user columns, for :meth:`split`.
        dtype: dtype of weights and hidden layers; probabilities and score are float32.
    """

    def __init__(
        self,
        plan: Plan,
        weights: Sequence[Floats | Tensor],
        fusion: Fusion,
        user_width: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.plan = plan
        self.fusion_kind: str = fusion.kind
        firsts: list[dict[str, Tensor]] = []
        towers: list[list[nn.Module]] = []
        heads: list[nn.Module] = []
        for task, tower in enumerate(towers_of(plan, [torch.as_tensor(weight) for weight in weights])):
            first, *later = [own | {"weight": own["weight"].T.contiguous()} for own in tower.layers]
            firsts.append(first)
            towers.append([_Part(task), *map(_Layer, plan.activations[1:], later)])
            heads.append(_Head(tower.head["weight"], tower.head["bias"]))
        joined = {name: torch.cat([first[name] for first in firsts]) for name in firsts[0]}
        self.first: _Layer = _Layer(plan.activations[0], joined)
        self.towers = nn.ModuleList(nn.ModuleList(tower) for tower in towers)
        self.heads = nn.ModuleList(heads)
        self.user_weight = _frozen(joined["weight"][:, :user_width].contiguous())
        self.item_weight = _frozen(joined["weight"][:, user_width:].contiguous())
        self.to(dtype)
        self.fusion_weights = _frozen(torch.tensor(fusion.weights_for(plan.tasks), dtype=torch.float32))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities ``[B, K]`` and score ``[B]`` of rows ``[B, D]``."""
        return self._scores(self.first(x.to(self.user_weight.dtype)))

    def split(self, user: Tensor, item: Tensor, request: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Probabilities and score of user rows ``[R, Du]`` and items ``[N, Di]``.

        ``request [N]`` int64 is the request of each item; it is omitted if there is one request.
        """
        dtype = self.user_weight.dtype
        shared = F.linear(user.to(dtype), self.user_weight, self.first.bias)
        projection = shared if request is None else shared.index_select(0, request)
        return self._scores(self.first.finish(torch.addmm(projection, item.to(dtype), self.item_weight.T)))

    def _scores(self, first: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities and score from the first-layer outputs ``[B, K * H_1]``."""
        parts = first.split(self.plan.hidden[0], dim=1)
        logits = reference.tower_logits(parts, self.towers, self.heads, self.plan).float()  # type: ignore[arg-type]
        probs = torch.sigmoid(logits)
        if self.fusion_kind == "additive":
            return probs, torch.mv(probs, self.fusion_weights)
        return probs, reference.fuse(logits, self.fusion_weights, self.fusion_kind)


class Split(nn.Module):
    """:meth:`Towers.split` as a module's forward: torch.compile freezes only the weights of modules."""

    def __init__(self, towers: Towers) -> None:
        super().__init__()
        self.towers = towers

    def forward(self, user: Tensor, item: Tensor, request: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See :meth:`Towers.split`."""
        return self.towers.split(user, item, request)


class _Part(nn.Module):
    """Selects a task's columns of the joined first layer."""

    def __init__(self, task: int) -> None:
        super().__init__()
        self.task = task

    def forward(self, parts: Sequence[Tensor]) -> Tensor:
        return parts[self.task]


class _Layer(nn.Module):
    """A hidden layer with weights ``[H_l, H_{l-1}]``, as ``F.linear`` takes them."""

    weight: Tensor
    bias: Tensor
    slope: Tensor | None
    scale: Tensor | None
    shift: Tensor

    def __init__(self, activation: str, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.activation = activation
        for name in ("weight", "bias", "slope", "scale", "shift"):
            setattr(self, name, _frozen(weights[name]) if name in weights else None)

    def forward(self, value: Tensor) -> Tensor:
        return self.finish(F.linear(value, self.weight, self.bias))

    def finish(self, value: Tensor) -> Tensor:
        """Apply activation and affine to the result of the matrix product."""
        slope = self.slope
        value = reference.activate(self.activation, value) if slope is None else F.prelu(value, slope)
        return value if self.scale is None else torch.addcmul(self.shift, value, self.scale)


class _Head(nn.Module):
    """A task's logit ``[B]``, before the residual, from ``[B, H_L]``."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = _frozen(weight[None].contiguous()), _frozen(bias)

    def forward(self, value: Tensor) -> Tensor:
        return F.linear(value, self.weight, self.bias).squeeze(-1)


def _frozen(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone(), requires_grad=False)
