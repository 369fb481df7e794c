"""The twin tower ranker as an ``nn.Module``: trained in plain PyTorch, served from a table of item vectors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from .. import ops, reference
from ..contract import WEIGHTS_PER
from ..core.fusion import Additive, Fusion
from ..core.plan import chain
from ..reference import Scores, TopK, twin
from .layers import TowerLayer, check_layer_settings, make_layer


class TwinTable(NamedTuple):
    """Item vectors of a catalog, as rounded by :meth:`TwinTower.build_table`."""

    rows: Tensor  # [M, K * W] float32, bfloat16 or int8
    scales: Tensor  # [M, K] float32 for int8 rows, else [0, K]


class TwinTower(nn.Module):
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

    Raises:
        ValueError: arguments that contradict each other; the message names one.

    Example:
        >>> model = TwinTower(320, 256, tasks=("ctr", "ctcvr"), fusion=Additive((1, 20))).eval()
        >>> table = model.build_table(torch.randn(5000, 256), "int8")
        >>> model.twin_topk(torch.randn(2, 320), table, k=10).positions.shape
        torch.Size([2, 10])
    """

    fusion_weights: Tensor

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
    ) -> None:
        super().__init__()
        check_layer_settings(activation, norm)
        self.parents = chain(len(tasks)) if parents is None else tuple(parents)
        if len(self.parents) != len(tasks):
            raise ValueError(f"parents must be one per task ({len(tasks)}), got {len(self.parents)}")
        if non_increasing and not logit_residual:
            raise ValueError("non_increasing must be False without a logit residual, got True")
        self.tasks = tuple(tasks)
        self.feature_residual, self.logit_residual, self.non_increasing = (
            feature_residual,
            logit_residual,
            non_increasing,
        )
        self.fusion = Additive() if fusion is None else fusion
        weights = torch.tensor(self.fusion.weights_for(len(tasks)), dtype=torch.float32)
        self.register_buffer("fusion_weights", weights, persistent=False)

        def towers(features: int) -> nn.ModuleList:
            def layers() -> list[nn.Module]:
                settings = (activation, norm, norm_after_activation, norm_eps)
                return [make_layer(a, b, *settings) for a, b in pairwise((features, *hidden))]

            return nn.ModuleList(nn.ModuleList(layers()) for _ in tasks)

        self.user_towers = towers(user_features)
        self.item_towers = towers(item_features)

    def user_vectors(self, user: Tensor) -> Tensor:
        """Map ``[R, Du]`` to ``[R, K * W]``, the concatenated vectors of all tasks; differentiable."""
        return self._vectors(user, self.user_towers)

    def item_vectors(self, item: Tensor) -> Tensor:
        """Map ``[M, Di]`` to ``[M, K * W]``; differentiable."""
        return self._vectors(item, self.item_towers)

    def forward(self, user: Tensor, item: Tensor, fusion_weights: Tensor | None = None) -> Scores:
        """Score pairs of users and items, as in training; plain PyTorch, differentiable.

        Args:
            user: ``[B, Du]``, the user of each candidate.
            item: ``[B, Di]``.
            fusion_weights: ``[K]`` or ``[B, K]`` instead of the model's own.

        Returns:
            :class:`Scores`: logits ``[B, K]``, probs ``[B, K]``, score ``[B]``.
        """
        tasks = len(self.tasks)
        users = self.user_vectors(user).unflatten(1, (tasks, -1))
        items = self.item_vectors(item).unflatten(1, (tasks, -1))
        logits = twin.twin_logits(users, items, self._logit_parents, self.non_increasing)
        return reference.finish(
            logits, self.fusion_weights if fusion_weights is None else fusion_weights, self.fusion.kind
        )

    @torch.no_grad()
    def build_table(self, items: Tensor, dtype: str = "int8", batch: int = 65536) -> TwinTable:
        """The item vectors of a catalog ``[M, Di]``, rounded to ``dtype`` (``"float32"``, ``"bfloat16"`` or
        ``"int8"``), ``batch`` items at a time. The module must be in eval mode if it has BatchNorms.

        Raises:
            ValueError: an unknown ``dtype``, or no compiled ops for this device.
        """
        parts = [ops.twin_rows(self.item_vectors(part).float(), len(self.tasks), dtype) for part in items.split(batch)]
        rows, scales = zip(*parts, strict=True)
        return TwinTable(torch.cat(rows), torch.cat(scales))

    @torch.no_grad()
    def twin_topk(
        self, user: Tensor, table: TwinTable, k: int, fusion_weights: Tensor | None = None, weights_per: str = "call"
    ) -> TopK:
        """The ``k`` best items of the whole table for every user.

        Args:
            user: ``[R, Du]``.
            table: from :meth:`build_table`.
            k: number of items per user, at least 1.
            fusion_weights: instead of the model's own: ``[K]``, ``[R, K]`` with ``weights_per="request"``,
                or one set per item ``[M, K]`` with ``"candidate"``.

        Returns:
            :class:`TopK`: scores ``[R, k]`` and positions ``[R, k]``, rows of the table. Equal scores rank by lower
            position, NaN after every number; a table of fewer than ``k`` items is padded with NaN and -1.
        """
        vectors = self.user_vectors(user).float()
        return ops.twin_topk(vectors, table.rows, table.scales, *self._settings(fusion_weights, weights_per), k)

    @torch.no_grad()
    def twin_ids_topk(
        self,
        user: Tensor,
        ids: Tensor,
        offsets: Tensor,
        table: TwinTable,
        k: int,
        fusion_weights: Tensor | None = None,
        weights_per: str = "call",
    ) -> TopK:
        """The ``k`` best of each user's own list: ``ids [N]`` int64, rows of the table, divided by ``offsets [R + 1]``.

        Positions are indices in the list. Weights per candidate are ``[N, K]``; the rest is as in :meth:`twin_topk`.
        """
        vectors = self.user_vectors(user).float()
        return ops.twin_ids_topk(
            vectors, ids, offsets, table.rows, table.scales, *self._settings(fusion_weights, weights_per), k
        )

    @torch.no_grad()
    def twin_ids_scores(
        self,
        user: Tensor,
        ids: Tensor,
        offsets: Tensor,
        table: TwinTable,
        fusion_weights: Tensor | None = None,
        weights_per: str = "call",
    ) -> Scores:
        """:class:`Scores` of the ``N`` candidates of :meth:`twin_ids_topk`."""
        vectors = self.user_vectors(user).float()
        return ops.twin_ids_scores(
            vectors, ids, offsets, table.rows, table.scales, *self._settings(fusion_weights, weights_per)
        )

    def extra_repr(self) -> str:
        return f"tasks={self.tasks}, parents={self.parents}, fusion={self.fusion}"

    @property
    def _logit_parents(self) -> tuple[int, ...]:
        return self.parents if self.logit_residual else (-1,) * len(self.parents)

    def _settings(
        self, fusion_weights: Tensor | None, weights_per: str
    ) -> tuple[Tensor, tuple[int, ...], bool, str, str]:
        """Fusion weights, parents, non_increasing, fusion and weights_per, in the order of the ops' arguments."""
        if weights_per not in WEIGHTS_PER:
            raise ValueError(f"weights_per must be one of {', '.join(WEIGHTS_PER)}, got {weights_per!r}")
        if fusion_weights is None:
            fusion_weights, weights_per = self.fusion_weights, "call"
        return fusion_weights, self._logit_parents, self.non_increasing, self.fusion.kind, weights_per

    def _vectors(self, x: Tensor, towers: nn.ModuleList) -> Tensor:
        layers = [cast("list[TowerLayer]", list(cast(nn.ModuleList, tower))) for tower in towers]
        return twin.tower_vectors(x, layers, self.parents, self.feature_residual).flatten(1)
