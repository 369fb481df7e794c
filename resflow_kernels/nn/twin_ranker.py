"""What ranks by dot products of a user's and an item's vectors, whatever computes those vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import ops, reference
from ..contract import WEIGHTS_PER
from ..core.fusion import Additive, Fusion
from ..core.plan import chain
from ..reference import Scores, TopK, twin


class TwinTable(NamedTuple):
    """Item vectors of a catalog, as rounded by :meth:`TwinRanker.build_table`."""

    rows: Tensor  # [M, K * W] float32, bfloat16 or int8
    scales: Tensor  # [M, K] float32 for int8 rows, else [0, K]
    longest: Tensor | None = None  # [1] float32: the largest length of an item's vector, all tasks together


class TwinRanker(nn.Module, ABC):
    """Tasks whose logits are dot products of :meth:`user_vectors` and :meth:`item_vectors`.

    Args:
        tasks: names of the ``K`` tasks.
        parents: the task each task inherits from, -1 for a root; ``None``: a chain in the order of ``tasks``.
        logit_residual: add the parent's logit.
        non_increasing: pass a task's own logit through ``min(., 0)`` so that ``p_k <= p_parent(k)``.
        fusion: how probabilities become a score; ``None``: :class:`~resflow_kernels.Additive`.

    Raises:
        ValueError: arguments that contradict each other; the message names one.
    """

    fusion_weights: Tensor

    def __init__(
        self,
        tasks: Sequence[str],
        parents: Sequence[int] | None,
        logit_residual: bool,
        non_increasing: bool,
        fusion: Fusion | None,
    ) -> None:
        super().__init__()
        self.parents = chain(len(tasks)) if parents is None else tuple(parents)
        if len(self.parents) != len(tasks):
            raise ValueError(f"parents must be one per task ({len(tasks)}), got {len(self.parents)}")
        if non_increasing and not logit_residual:
            raise ValueError("non_increasing must be False without a logit residual, got True")
        self.tasks = tuple(tasks)
        self.logit_residual, self.non_increasing = logit_residual, non_increasing
        self.fusion = Additive() if fusion is None else fusion
        weights = torch.tensor(self.fusion.weights_for(len(tasks)), dtype=torch.float32)
        self.register_buffer("fusion_weights", weights, persistent=False)

    @abstractmethod
    def user_vectors(self, user: Any) -> Tensor:
        """``[R, K * W]``, the concatenated vectors of all tasks."""

    @abstractmethod
    def item_vectors(self, item: Any) -> Tensor:
        """``[M, K * W]``; the dot product with a user's vector is the task's own logit."""

    @abstractmethod
    def _parts(self, items: Any, batch: int) -> Iterator[Any]:
        """The items, ``batch`` at a time."""

    def forward(self, user: Any, item: Any, fusion_weights: Tensor | None = None) -> Scores:
        """Score pairs of users and items, as in training; plain PyTorch, differentiable.

        Args:
            user: the user of each of ``B`` candidates, as for :meth:`user_vectors`.
            item: the candidates, as for :meth:`item_vectors`.
            fusion_weights: ``[K]`` or ``[B, K]`` instead of the model's own.

        Returns:
            :class:`Scores`: logits ``[B, K]``, probs ``[B, K]``, score ``[B]``.
        """
        users = self.user_vectors(user).unflatten(1, (len(self.tasks), -1))
        items = self.item_vectors(item).unflatten(1, (len(self.tasks), -1))
        logits = twin.twin_logits(users, items, self._logit_parents, self.non_increasing)
        return reference.finish(
            logits, self.fusion_weights if fusion_weights is None else fusion_weights, self.fusion.kind
        )

    @torch.no_grad()
    def build_table(self, items: Any, dtype: str = "int8", batch: int = 65536) -> TwinTable:
        """The item vectors of a catalog of ``M`` items, rounded to ``dtype`` (``"float32"``, ``"bfloat16"`` or
        ``"int8"``), ``batch`` items at a time. The module must be in eval mode if it has BatchNorms.

        Raises:
            ValueError: an unknown ``dtype``, or no compiled ops for this device.
        """
        rows, scales, longest = [], [], []
        for part in self._parts(items, batch):
            vectors = self.item_vectors(part).float()
            held = ops.twin_rows(vectors, len(self.tasks), dtype)
            rows.append(held[0])
            scales.append(held[1])
            if len(vectors):
                longest.append(vectors.norm(dim=1).nan_to_num(0.0, posinf=0.0).amax()[None])
        return TwinTable(torch.cat(rows), torch.cat(scales), torch.cat(longest).amax()[None] if longest else None)

    @torch.no_grad()
    def twin_topk(
        self, user: Any, table: TwinTable, k: int, fusion_weights: Tensor | None = None, weights_per: str = "call"
    ) -> TopK:
        """The ``k`` best items of the whole table for every user.

        Of one task the order is that of its logits, also where their probabilities are all 1 in float32.

        Args:
            user: ``R`` users, as for :meth:`user_vectors`.
            table: from :meth:`build_table`.
            k: number of items per user, at least 1.
            fusion_weights: instead of the model's own: ``[K]``, ``[R, K]`` with ``weights_per="request"``,
                or one set per item ``[M, K]`` with ``"candidate"``.

        Returns:
            :class:`TopK`: scores ``[R, k]`` and positions ``[R, k]``, rows of the table. Equal scores rank by lower
            position, NaN after every number; a table of fewer than ``k`` items is padded with NaN and -1.
        """
        settings = self._settings(fusion_weights, weights_per)
        vectors = self.user_vectors(user).float()
        if not self._by_logit(fusion_weights, table):
            return ops.twin_topk(vectors, table.rows, table.scales, *settings, k)
        best = ops.twin_topk(_bounded(vectors, table), table.rows, table.scales, *settings, k)
        return self._rescored(vectors, best.positions, best.positions, table, settings)

    @torch.no_grad()
    def twin_ids_topk(
        self,
        user: Any,
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
        settings = self._settings(fusion_weights, weights_per)
        vectors = self.user_vectors(user).float()
        if not self._by_logit(fusion_weights, table):
            return ops.twin_ids_topk(vectors, ids, offsets, table.rows, table.scales, *settings, k)
        short = _bounded(vectors, table)
        best = ops.twin_ids_topk(short, ids, offsets, table.rows, table.scales, *settings, k)
        if not len(ids):
            return best
        chosen = ids[(best.positions + offsets[:-1, None]).clamp(0, len(ids) - 1)]
        return self._rescored(vectors, best.positions, chosen, table, settings)

    @torch.no_grad()
    def twin_ids_scores(
        self,
        user: Any,
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

    # The order of one task is that of its logits. Probabilities keep less of it: of logits beyond 17, which a cosine
    # over a temperature of 0.05 reaches, all are 1.

    def _by_logit(self, fusion_weights: Tensor | None, table: TwinTable) -> bool:
        if len(self.tasks) > 1 or fusion_weights is not None or table.longest is None:
            return False
        return self.fusion.kind in ("additive", "multiplicative") and self.fusion.weights_for(1)[0] > 0

    def _rescored(
        self, vectors: Tensor, positions: Tensor, ids: Tensor, table: TwinTable, settings: tuple[Any, ...]
    ) -> TopK:
        """The items found by :func:`_bounded` logits in the order of their own ones, and with their own scores."""
        if not len(table.rows):
            return TopK(torch.full(positions.shape, torch.nan, device=positions.device), positions)
        filled, k = positions >= 0, positions.shape[1]
        positions, order = torch.where(filled, positions, torch.iinfo(torch.int64).max).sort(1)
        ids, filled = ids.gather(1, order), filled.gather(1, order)
        offsets = torch.arange(len(ids) + 1, device=ids.device) * k
        scores = ops.twin_ids_scores(vectors, ids.clamp_min(0).flatten(), offsets, table.rows, table.scales, *settings)
        falling = torch.where(filled, -scores.logits.reshape(ids.shape), torch.nan)
        order = falling.sort(dim=1, stable=True).indices  # NaN comes last, padding after it
        own = torch.where(filled, scores.score.reshape(ids.shape), torch.nan).gather(1, order)
        return TopK(own, torch.where(filled, positions, -1).gather(1, order))


def _bounded(vectors: Tensor, table: TwinTable) -> Tensor:
    """User vectors times powers of two that bring all logits between -1 and 1, where a sigmoid keeps their order."""
    assert table.longest is not None
    most = (vectors.norm(dim=1) * table.longest).nan_to_num(1.0, posinf=1.0)
    power = torch.where(most > 0, most, 1.0).log2().ceil().clamp(-100, 100)
    return vectors * torch.exp2(-power)[:, None]
