"""Packs canonical weights into the tensor that the scoring ops take."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..core.program import AnyPlan
from . import library


def pack_towers(weights: Sequence[Tensor], plan: AnyPlan) -> Tensor:
    """Pack canonical weights for the scoring ops.

    Args:
        weights: contiguous float32 tensors as ``plan.weight_shapes`` lists them.
        plan: the network they belong to.

    Returns:
        ``uint8 [n]``, the same for every instruction set; it is valid only for this plan.

    Raises:
        ValueError: a weight of the wrong shape or dtype; the message names it.

    Example:
        >>> ops.pack_towers(model.canonical_weights(), model.plan).dtype  # doctest: +SKIP
        torch.uint8
    """
    if weights and weights[0].is_cuda and not library.cuda_status()[0]:  # for Triton's kernels
        packed = library.call("pack_towers", [weight.cpu() for weight in weights], plan.encoded)
        return packed.to(weights[0].device)
    return library.call("pack_towers", list(weights), plan.encoded)
