"""What all rankers are called by, whatever computes their logits. Needs torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import ops
from ..contract import WEIGHTS_PER
from ..core.fusion import Fusion
from ..core.plan import Plan
from ..reference import Scores, TopK


class RankerBase(nn.Module):
    """What every ranker has: its tasks, and a fusion with default weights."""

    fusion_weights: Tensor

    def __init__(self, plan: Plan, tasks: Sequence[str], fusion: Fusion) -> None:
        super().__init__()
        self.plan = plan
        self.tasks = tuple(tasks)
        self.fusion = fusion
        weights = torch.tensor(fusion.weights_for(plan.tasks), dtype=torch.float32)
        self.register_buffer("fusion_weights", weights, persistent=False)

    def _fusion(self, weights: Tensor | None, weights_per: str) -> tuple[Tensor, int, int]:
        if weights is None:
            return self.fusion_weights, self.fusion.code, 0
        if weights_per not in WEIGHTS_PER:
            raise ValueError(f"weights_per must be one of {', '.join(WEIGHTS_PER)}, got {weights_per!r}")
        return weights, self.fusion.code, WEIGHTS_PER.index(weights_per)

    def extra_repr(self) -> str:
        return f"tasks={self.tasks}, {self.plan}, fusion={self.fusion}"


class LayeredRanker(RankerBase, ABC):
    """A ranker whose own layers give the logits: differentiable, in any floating dtype and on any device.

    The calls are those of :class:`~resflow_kernels.nn.ResFlow`, where shapes and errors are described.
    """

    @abstractmethod
    def _logits(self, x: Tensor) -> Tensor:
        """Logits ``[B, K]`` of rows ``[B, D]``."""

    def _own_rows(self, argument: str, x: Tensor) -> Tensor:
        """Rows as the layers take them."""
        return x

    def forward(self, x: Tensor, weights: Tensor | None = None, weights_per: str = "call") -> Scores:
        """Score candidates ``x [B, D]``, see :meth:`ResFlow.forward`."""
        fusion = self._fusion(weights, weights_per)
        return ops.reference_scores(self._logits, self._own_rows("x", x), self.plan, *fusion)

    def forward_requests(
        self, user: Tensor, item: Tensor, offsets: Tensor, weights: Tensor | None = None, weights_per: str = "call"
    ) -> Scores:
        """Score the candidates of requests, see :meth:`ResFlow.forward_requests`."""
        user, item = self._own_rows("user", user), self._own_rows("item", item)
        fusion = self._fusion(weights, weights_per)
        return ops.reference_request_scores(self._logits, user, item, offsets, self.plan, *fusion)

    def top_k(
        self, x: Tensor, k: int, offsets: Tensor | None = None, weights: Tensor | None = None, weights_per: str = "call"
    ) -> TopK:
        """The ``k`` best candidates of each request, see :meth:`ResFlow.top_k`."""
        offsets = one_request(x) if offsets is None else offsets
        fusion = self._fusion(weights, weights_per)
        return ops.reference_topk(self._logits, self._own_rows("x", x), offsets, self.plan, *fusion, k)

    def top_k_requests(
        self,
        user: Tensor,
        item: Tensor,
        offsets: Tensor,
        k: int,
        weights: Tensor | None = None,
        weights_per: str = "call",
    ) -> TopK:
        """:meth:`top_k` of the request form, see :meth:`ResFlow.top_k_requests`."""
        user, item = self._own_rows("user", user), self._own_rows("item", item)
        fusion = self._fusion(weights, weights_per)
        return ops.reference_request_topk(self._logits, user, item, offsets, self.plan, *fusion, k)


def one_request(x: Tensor) -> Tensor:
    """Offsets that make all rows one request."""
    if x.is_cpu:
        return torch.tensor([0, x.shape[0]], device=x.device)
    return torch.arange(2, device=x.device) * x.shape[0]  # made there: a copy would wait, and no CUDA graph can hold it


def side_by_side(x: Tensor) -> Tensor:
    """The ops read rows in place at any row stride, but want a row's elements side by side."""
    return x if x.dim() != 2 or x.stride(1) == 1 or x.shape[1] <= 1 else x.contiguous()
