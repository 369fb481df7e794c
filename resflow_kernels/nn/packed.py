"""A ranker with its weights packed once and for all: what is served and exported. Needs torch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import ops
from ..core.fusion import Fusion
from ..core.plan import Plan
from ..reference import Scores, TopK
from .ranker import RankerBase, one_request


class PackedResFlow(RankerBase):
    """A ranker with its weights packed for the fused ops and nothing else: made by :meth:`ResFlow.packed`.

    It cannot be trained, holds one buffer, and exports as one op, so ``torch.export`` and AOTInductor packages
    carry the packed weights. Calls are those of :class:`ResFlow`; ``backend`` is an attribute, as there.
    """

    packed_weights: Tensor

    def __init__(
        self,
        plan: Plan,
        tasks: Sequence[str],
        fusion: Fusion,
        packed_weights: Tensor,
        backend: str | None = None,
    ) -> None:
        super().__init__(plan, tasks, fusion)
        self.backend = backend
        self.register_buffer("packed_weights", packed_weights)

    def forward(self, x: Tensor, weights: Tensor | None = None, weights_per: str = "call") -> Scores:
        """See :meth:`ResFlow.forward`."""
        return ops.dense_scores(
            x, self.packed_weights, self.plan, *self._fusion(weights, weights_per), backend=self.backend
        )

    def forward_requests(
        self, user: Tensor, item: Tensor, offsets: Tensor, weights: Tensor | None = None, weights_per: str = "call"
    ) -> Scores:
        """See :meth:`ResFlow.forward_requests`."""
        fusion = self._fusion(weights, weights_per)
        return ops.request_scores(user, item, offsets, self.packed_weights, self.plan, *fusion, backend=self.backend)

    def top_k(
        self, x: Tensor, k: int, offsets: Tensor | None = None, weights: Tensor | None = None, weights_per: str = "call"
    ) -> TopK:
        """See :meth:`ResFlow.top_k`."""
        offsets = one_request(x) if offsets is None else offsets
        fusion = self._fusion(weights, weights_per)
        return ops.dense_topk(x, offsets, self.packed_weights, self.plan, *fusion, k, backend=self.backend)

    def top_k_requests(
        self,
        user: Tensor,
        item: Tensor,
        offsets: Tensor,
        k: int,
        weights: Tensor | None = None,
        weights_per: str = "call",
    ) -> TopK:
        """See :meth:`ResFlow.top_k_requests`."""
        fusion = self._fusion(weights, weights_per)
        return ops.request_topk(user, item, offsets, self.packed_weights, self.plan, *fusion, k, backend=self.backend)

    def catalog_rows(self, item: Tensor, element: str = "bfloat16") -> tuple[Tensor, Tensor]:
        """The items' side of the first layers: table and scales; see :func:`resflow_kernels.ops.catalog_rows`."""
        return ops.catalog_rows(item, self.packed_weights, self.plan, element, backend=self.backend)

    def forward_catalog(
        self,
        user: Tensor,
        ids: Tensor,
        offsets: Tensor,
        table: Tensor,
        scales: Tensor,
        weights: Tensor | None = None,
        weights_per: str = "call",
    ) -> Scores:
        """Score items of a catalogue by id; see :func:`resflow_kernels.ops.catalog_scores`.

        ``table`` and ``scales`` are those of :meth:`catalog_rows`; a :class:`~resflow_kernels.Catalog`'s
        become tensors by ``torch.from_numpy`` (bfloat16 by ``.view(torch.bfloat16)``).
        """
        fusion = self._fusion(weights, weights_per)
        catalogue = (user, ids, offsets, table, scales)
        return ops.catalog_scores(*catalogue, self.packed_weights, self.plan, *fusion, backend=self.backend)

    def top_k_catalog(
        self,
        user: Tensor,
        ids: Tensor,
        offsets: Tensor,
        table: Tensor,
        scales: Tensor,
        k: int,
        weights: Tensor | None = None,
        weights_per: str = "call",
    ) -> TopK:
        """The ``k`` best of each request of the catalogue form; positions are places in the request's list of ids."""
        fusion = self._fusion(weights, weights_per)
        catalogue = (user, ids, offsets, table, scales)
        return ops.catalog_topk(*catalogue, self.packed_weights, self.plan, *fusion, k, backend=self.backend)
