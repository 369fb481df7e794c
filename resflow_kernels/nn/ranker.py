"""The calls that all rankers have, independent of how their logits are computed. Needs torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..contract import WEIGHTS_PER
from ..contract.results import Scores, TopK
from ..core.fusion import Fusion
from ..reference import layers


class RankerBase(nn.Module, ABC):
    """The common part of all rankers: tasks, a fusion with default weights, the calls of the dense and request forms.

    A call has the name of its op: :meth:`dense_scores` (which is :meth:`forward`), :meth:`dense_topk`,
    :meth:`request_scores` and :meth:`request_topk`.
    """

    fusion_weights: Tensor

    def __init__(self, plan: Any, tasks: Sequence[str], fusion: Fusion) -> None:
        super().__init__()
        self.plan = plan
        self.tasks = tuple(tasks)
        self.fusion = fusion
        weights = torch.tensor(fusion.weights_for(plan.tasks), dtype=torch.float32)
        self.register_buffer("fusion_weights", weights, persistent=False)

    @abstractmethod
    def _run(
        self, op: str, inputs: tuple[Tensor, ...], fusion_weights: Tensor | None, weights_per: str, *k: int
    ) -> tuple[Tensor, ...]:
        """Compute an op from its form's inputs; without fusion weights, with the model's own."""

    def forward(self, x: Tensor, fusion_weights: Tensor | None = None, weights_per: str = "call") -> Scores:
        """Score candidates.

        Args:
            x: ``[B, D]`` float32.
            fusion_weights: for this call instead of the model's own: ``[K]``, or ``[B, K]`` with
                ``weights_per="candidate"`` (``K + 1`` values for :class:`ExpectedValue`).
            weights_per: ``"call"`` or ``"candidate"``.

        Returns:
            :class:`Scores`: logits ``[B, K]``, probs ``[B, K]``, score ``[B]``.

        Raises:
            ValueError: an input of the wrong shape, dtype or device; the message names it.
        """
        return cast(Scores, self._run("dense_scores", (x,), fusion_weights, weights_per))

    dense_scores = forward

    def dense_topk(
        self,
        x: Tensor,
        k: int,
        offsets: Tensor | None = None,
        fusion_weights: Tensor | None = None,
        weights_per: str = "call",
    ) -> TopK:
        """The ``k`` best candidates of each request; on the CPU their scores are never in memory.

        Args:
            x: ``[B, D]`` float32.
            k: number of candidates per request, at least 1.
            offsets: ``[R + 1]`` int64; ``None``: all rows are one request.
            fusion_weights: as in :meth:`forward`, also ``[R, K]`` with ``weights_per="request"``.
            weights_per: ``"call"``, ``"request"`` or ``"candidate"``.

        Returns:
            :class:`TopK`: scores ``[R, k]`` and positions ``[R, k]`` within the request. Equal scores are ordered by
            lower position, NaN after every number; a request with fewer than ``k`` candidates is padded with
            score NaN and position -1.

        Raises:
            ValueError: bad input; the message names it.
        """
        offsets = one_request(x) if offsets is None else offsets
        return cast(TopK, self._run("dense_topk", (x, offsets), fusion_weights, weights_per, k))

    def request_scores(
        self,
        user: Tensor,
        item: Tensor,
        offsets: Tensor,
        fusion_weights: Tensor | None = None,
        weights_per: str = "call",
    ) -> Scores:
        """Score the candidates of requests: one user row, many items; the user's part is computed once per request.

        Args:
            user: ``[R, Du]`` float32, one row per request.
            item: ``[N, Di]`` float32, the candidates of all requests, concatenated; ``Du + Di = D``.
            offsets: ``[R + 1]`` int64; request ``r`` owns candidates ``offsets[r]`` to ``offsets[r + 1]``.
            fusion_weights: as in :meth:`dense_topk`.
            weights_per: ``"call"``, ``"request"`` or ``"candidate"``.

        Returns:
            :class:`Scores` of the ``N`` candidates, bitwise those of :meth:`forward` on the joined rows.

        Raises:
            ValueError: bad input; the message names it.
        """
        return cast(Scores, self._run("request_scores", (user, item, offsets), fusion_weights, weights_per))

    def request_topk(
        self,
        user: Tensor,
        item: Tensor,
        offsets: Tensor,
        k: int,
        fusion_weights: Tensor | None = None,
        weights_per: str = "call",
    ) -> TopK:
        """:meth:`dense_topk` of the request form; arguments as in :meth:`request_scores`."""
        return cast(TopK, self._run("request_topk", (user, item, offsets), fusion_weights, weights_per, k))

    def _fusion(self, fusion_weights: Tensor | None, weights_per: str) -> tuple[Tensor, str, str]:
        """Fusion weights, the fusion's name and the weights' scope, in the order of the ops' arguments."""
        if fusion_weights is None:
            return cast(Tensor, self._buffers["fusion_weights"]), self.fusion.kind, "call"  # without Module.__getattr__
        if weights_per not in WEIGHTS_PER:
            raise ValueError(f"weights_per must be one of {', '.join(WEIGHTS_PER)}, got {weights_per!r}")
        return fusion_weights, self.fusion.kind, weights_per

    def extra_repr(self) -> str:
        return f"tasks={self.tasks}, {self.plan}, fusion={self.fusion}"


class LayeredRanker(RankerBase):
    """A ranker whose layers compute the logits: differentiable, in any floating dtype and on any device."""

    @abstractmethod
    def _logits(self, x: Tensor) -> Tensor:
        """Logits ``[B, K]`` of rows ``[B, D]``."""

    def _own_rows(self, argument: str, x: Tensor) -> Tensor:
        """Rows in the dtype of the layers."""
        return x

    def _run(
        self, op: str, inputs: tuple[Tensor, ...], fusion_weights: Tensor | None, weights_per: str, *k: int
    ) -> Any:
        rows = ("x",) if op.startswith("dense") else ("user", "item")
        pairs = zip(rows, inputs, strict=False)
        own = [contiguous_rows(self._own_rows(argument, tensor)) for argument, tensor in pairs]
        fusion = self._fusion(fusion_weights, weights_per)
        tensors = (*own, *inputs[len(own) :])
        return layers.run(op, self._logits, tensors, self.plan, *fusion, *k)


def one_request(x: Tensor) -> Tensor:
    """Offsets for a single request of all rows."""
    if x.is_cpu:
        return torch.tensor([0, x.shape[0]], device=x.device)
    return torch.arange(2, device=x.device) * x.shape[0]  # no copy: it would synchronise, and no CUDA graph can hold it


def contiguous_rows(x: Tensor) -> Tensor:
    """Rows with contiguous elements, which the ops require; they read rows in place at any row stride."""
    if x.is_contiguous() or x.dim() != 2 or x.stride(1) == 1 or x.shape[1] <= 1:
        return x
    return x.contiguous()
