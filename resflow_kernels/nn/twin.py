"""The twin tower ranker as an ``nn.Module``: trained in plain PyTorch, served from a table of item vectors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from math import inf
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from ..core.fusion import Fusion
from ..reference import Layer, twin
from .layers import check_layer_settings, make_layer
from .twin_ranker import TwinRanker, TwinTable

__all__ = ["TwinTable", "TwinTower"]

_SHORTEST = 1e-12  # the length below which a vector is not brought to length 1, as in F.normalize


class TwinTower(TwinRanker):
    """A user tower and an item tower for every task; a task's logit is the dot product of their last outputs.

    Args:
        user_features: width ``Du`` of a user's input row.
        item_features: width ``Di`` of an item's.
        hidden: widths of each tower's layers; the last one, ``W``, is the width of the vectors.
        tasks: names of the ``K`` tasks, dense feedback first.
        parents: the task each task inherits from, -1 for a root; ``None``: a chain in the order of ``tasks``.
        activation: a name of :data:`resflow_kernels.nn.layers.ACTIVATION_MODULES`.
        norm: ``"batch"`` for one BatchNorm per layer, or ``None``.
        norm_after_activation: whether that BatchNorm comes after the activation.
        norm_eps: its eps.
        feature_residual: add the parent tower's hidden outputs, on both sides.
        logit_residual: add the parent's logit.
        non_increasing: pass a task's own logit through ``min(., 0)`` so that ``p_k <= p_parent(k)``.
        fusion: how probabilities become a score (:mod:`resflow_kernels.core.fusion`).
        user_hidden: the user towers' widths instead of ``hidden``; the last one is the items' too.
        item_hidden: the item towers' widths instead of ``hidden``.
        linear_last: the last layer of each tower is a Linear alone, without activation and BatchNorm.
        normalize: bring vectors to length 1 (L2), so that a logit is a cosine.
        temperature: logits are divided by it.

    Raises:
        ValueError: arguments that contradict each other; the message names one.

    Example:
        >>> import torch
        >>> from resflow_kernels import Additive
        >>> model = TwinTower(320, 256, tasks=("ctr", "ctcvr"), fusion=Additive((1, 20))).eval()
        >>> table = model.build_table(torch.randn(5000, 256), "int8")
        >>> model.twin_topk(torch.randn(2, 320), table, k=10).positions.shape
        torch.Size([2, 10])
        >>> settings = {"user_hidden": (256, 64), "linear_last": True, "normalize": True, "temperature": 0.05}
        >>> TwinTower(320, 256, (128, 64), ("click",), **settings).user_vectors(torch.randn(2, 320)).shape
        torch.Size([2, 64])
    """

    def __init__(
        self,
        user_features: int,
        item_features: int,
        hidden: Sequence[int] = (128, 64),
        tasks: Sequence[str] = ("ctr", "ctcvr"),
        parents: Sequence[int] | None = None,
        activation: str = "prelu",
        norm: str | None = None,
        norm_after_activation: bool = True,
        norm_eps: float = 1e-3,
        feature_residual: bool = True,
        logit_residual: bool = True,
        non_increasing: bool = False,
        fusion: Fusion | None = None,
        user_hidden: Sequence[int] | None = None,
        item_hidden: Sequence[int] | None = None,
        linear_last: bool = False,
        normalize: bool = False,
        temperature: float = 1.0,
    ) -> None:
        check_layer_settings(activation, norm)
        widths = [tuple(hidden if own is None else own) for own in (user_hidden, item_hidden)]
        if not all(widths) or widths[0][-1] != widths[1][-1]:
            raise ValueError(f"user_hidden and item_hidden must end in one width, got {widths[0]} and {widths[1]}")
        super().__init__(tasks, parents, logit_residual, non_increasing, fusion)

        def tower(features: int, hidden: Sequence[int]) -> nn.ModuleList:
            settings = [(activation, norm, norm_after_activation, norm_eps)] * len(hidden)
            if linear_last:
                settings[-1] = ("identity", None, norm_after_activation, norm_eps)
            sizes = pairwise((features, *hidden))
            return nn.ModuleList(make_layer(a, b, *own) for (a, b), own in zip(sizes, settings, strict=True))

        self._hold(
            [tower(user_features, widths[0]) for _ in tasks],
            [tower(item_features, widths[1]) for _ in tasks],
            feature_residual,
            normalize,
            temperature,
        )

    @classmethod
    def from_layers(
        cls,
        tasks: Sequence[str],
        user_towers: Sequence[nn.Module],
        item_towers: Sequence[nn.Module],
        parents: Sequence[int] | None = None,
        feature_residual: bool = False,
        logit_residual: bool = True,
        non_increasing: bool = False,
        fusion: Fusion | None = None,
        normalize: bool = False,
        temperature: float = 1.0,
    ) -> TwinTower:
        """A model around a user's own towers, which it shares.

        Args:
            tasks: names of the ``K`` tasks.
            user_towers: one for each task, a module from ``[R, Du]`` to ``[R, W]``; an ``nn.Sequential`` or an
                ``nn.ModuleList`` is its layers one after another.
            item_towers: likewise, to ``[M, W]``.
            feature_residual: add the parent's outputs layer by layer; both towers need as many layers of the same
                widths.
            parents, logit_residual, non_increasing, fusion, normalize, temperature: as in :class:`TwinTower`.

        Raises:
            ValueError: not one tower on both sides for each task, or settings that contradict each other.

        Example:
            >>> user, item = nn.Linear(320, 64), nn.Sequential(nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 64))
            >>> model = TwinTower.from_layers(["click"], [user], [item], normalize=True, temperature=0.05)
            >>> model.user_towers[0][0] is user
            True
        """
        made = cls.__new__(cls)
        TwinRanker.__init__(made, tasks, parents, logit_residual, non_increasing, fusion)
        for name, towers in (("user_towers", user_towers), ("item_towers", item_towers)):
            if len(towers) != len(tasks):
                raise ValueError(f"{name} must be one per task ({len(tasks)}), got {len(towers)}")
        users, items = ([_layers_of(tower) for tower in side] for side in (user_towers, item_towers))
        made._hold(users, items, feature_residual, normalize, temperature)
        return made

    def _hold(
        self,
        user_towers: Iterable[nn.ModuleList],
        item_towers: Iterable[nn.ModuleList],
        feature_residual: bool,
        normalize: bool,
        temperature: float,
    ) -> None:
        if not 0 < temperature < inf:
            raise ValueError(f"temperature must be a number above 0, got {temperature}")
        self.feature_residual, self.normalize, self.temperature = feature_residual, normalize, float(temperature)
        self.user_towers = nn.ModuleList(user_towers)
        self.item_towers = nn.ModuleList(item_towers)

    def user_vectors(self, user: Tensor) -> Tensor:
        """Map ``[R, Du]`` to ``[R, K * W]``, the concatenated vectors of all tasks; differentiable.

        Their dot products with :meth:`item_vectors` are the tasks' own logits: the temperature is in them.
        """
        vectors = self._vectors(user, self.user_towers)
        return vectors if self.temperature == 1 else vectors / self.temperature

    def item_vectors(self, item: Tensor) -> Tensor:
        """Map ``[M, Di]`` to ``[M, K * W]``; differentiable."""
        return self._vectors(item, self.item_towers)

    def _parts(self, items: Tensor, batch: int) -> Iterator[Tensor]:
        yield from items.split(batch)

    def extra_repr(self) -> str:
        own = f"normalize={self.normalize}, temperature={self.temperature}"
        return f"{super().extra_repr()}, {own}"

    def _vectors(self, x: Tensor, towers: nn.ModuleList) -> Tensor:
        layers = [cast("list[Layer]", list(cast(nn.ModuleList, tower))) for tower in towers]
        vectors = twin.tower_vectors(x, layers, self.parents, self.feature_residual)
        return (F.normalize(vectors, dim=2, eps=_SHORTEST) if self.normalize else vectors).flatten(1)


def _layers_of(tower: nn.Module) -> nn.ModuleList:
    """A tower's layers one after another."""
    if isinstance(tower, nn.ModuleList):
        return tower
    return nn.ModuleList(tower if isinstance(tower, nn.Sequential) else [tower])
