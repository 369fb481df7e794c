"""A ranker with packed weights, to serve and to export. Needs torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from .. import ops
from ..contract.results import Scores, TopK
from ..core.fusion import Fusion
from ..core.program import AnyPlan
from ..ops.call import OPS
from .ranker import RankerBase

if TYPE_CHECKING:
    from typing_extensions import Self


class PackedResFlow(RankerBase):
    """A ranker that holds only packed weights for the fused ops, made by :meth:`ResFlow.packed`.

    It cannot be trained, has one buffer, and exports as one op, so that ``torch.export`` and AOTInductor packages
    contain the packed weights. Its calls and the attribute ``backend`` are those of :class:`ResFlow`.
    """

    packed_weights: Tensor

    def __init__(
        self,
        plan: AnyPlan,
        tasks: Sequence[str],
        fusion: Fusion,
        packed_weights: Tensor,
        backend: str | None = None,
    ) -> None:
        super().__init__(plan, tasks, fusion)
        self.backend = backend
        self.register_buffer("packed_weights", packed_weights)

    @property
    def served_plan(self) -> AnyPlan:
        """:attr:`plan`."""
        return self.plan

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the buffers. Whatever dtype is asked for, weights remain as packed, and fusion weights float32."""
        super()._apply(fn, recurse)
        self._buffers["fusion_weights"] = self.fusion_weights.float()
        return self

    def _run(
        self, op: str, inputs: tuple[Tensor, ...], fusion_weights: Tensor | None, weights_per: str, *k: int
    ) -> Any:
        fusion = self._fusion(fusion_weights, weights_per)
        packed = cast(Tensor, self._buffers["packed_weights"])  # without Module.__getattr__
        made = OPS[op].towers(inputs, packed, self.plan, *fusion, *k, backend=self.backend)
        return TopK(*made) if k else Scores(*made)

    def catalog_rows(self, item: Tensor, dtype: str = "bfloat16") -> tuple[Tensor, Tensor]:
        """The items' part of the first layers: table and scales; see :func:`resflow_kernels.ops.catalog_rows`."""
        return ops.catalog_rows(item, self.packed_weights, self.plan, dtype, backend=self.backend)

    def catalog_scores(
        self,
        user: Tensor,
        ids: Tensor,
        offsets: Tensor,
        table: Tensor,
        scales: Tensor,
        fusion_weights: Tensor | None = None,
        weights_per: str = "call",
    ) -> Scores:
        """Score items of a catalog by id; see :func:`resflow_kernels.ops.catalog_scores`.

        ``table`` and ``scales`` are those of :meth:`catalog_rows`. Those of a :class:`~resflow_kernels.Catalog` become
        tensors by ``torch.from_numpy`` (bfloat16 by ``.view(torch.bfloat16)``).
        """
        inputs = (user, ids, offsets, table, scales)
        return self._run("catalog_scores", inputs, fusion_weights, weights_per)

    def catalog_topk(
        self,
        user: Tensor,
        ids: Tensor,
        offsets: Tensor,
        table: Tensor,
        scales: Tensor,
        k: int,
        fusion_weights: Tensor | None = None,
        weights_per: str = "call",
    ) -> TopK:
        """The ``k`` best of each request of the catalog form; positions are indices in the request's list of ids."""
        inputs = (user, ids, offsets, table, scales)
        return self._run("catalog_topk", inputs, fusion_weights, weights_per, k)
