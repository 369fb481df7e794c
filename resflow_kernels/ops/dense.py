"""Form 1, dense: ``x [B, D]``, one row per candidate."""

from __future__ import annotations

from torch import Tensor

from ..contract.results import Scores, TopK
from ..core.program import AnyPlan
from .call import OPS

_SCORES, _TOPK = OPS["dense_scores"], OPS["dense_topk"]


def dense_scores(
    x: Tensor,
    packed: Tensor,
    plan: AnyPlan,
    fusion_weights: Tensor,
    fusion: str = "additive",
    weights_per: str = "call",
    *,
    backend: str | None = None,
) -> Scores:
    """Score candidates.

    Args:
        x: ``[B, D]`` float32 or bfloat16, on a GPU also float16; contiguous rows with any row stride.
        packed: from :func:`~resflow_kernels.ops.pack_towers`, on the same device.
        plan: the plan it was packed for.
        fusion_weights: ``[K]``, or ``[B, K]`` per candidate (``K + 1`` for expected values), float32.
        fusion: ``"additive"``, ``"multiplicative"`` or ``"expected_value"``.
        weights_per: the scope of a row of fusion weights: ``"call"`` or ``"candidate"``.
        backend: a name of ``backends.BACKENDS``, or ``None``: that of ``RESFLOW_BACKEND``, else ``"auto"``.

    Returns:
        :class:`Scores` of logits ``[B, K]``, probs ``[B, K]`` and score ``[B]``.

    Raises:
        ValueError: bad input; the message names the argument, what was expected and what was got.

    Example:
        >>> packed = ops.pack_towers(model.canonical_weights(), model.plan)  # doctest: +SKIP
        >>> ops.dense_scores(x, packed, model.plan, torch.ones(3)).score     # doctest: +SKIP
    """
    return Scores(*_SCORES.towers((x,), packed, plan, fusion_weights, fusion, weights_per, backend=backend))


def dense_topk(
    x: Tensor,
    offsets: Tensor,
    packed: Tensor,
    plan: AnyPlan,
    fusion_weights: Tensor,
    fusion: str = "additive",
    weights_per: str = "call",
    k: int = 100,
    *,
    backend: str | None = None,
) -> TopK:
    """The ``k`` best candidates of each request of ``x [B, D]``; ``offsets [R + 1]`` int64 divides it into requests.

    Other arguments are those of :func:`dense_scores`; ``weights_per="request"`` means one set per request, ``[R, K]``.

    Returns:
        :class:`TopK` of scores ``[R, k]`` and positions ``[R, k]``; see :meth:`resflow_kernels.ResFlow.dense_topk`.

    Raises:
        ValueError: bad input; the message names it.
    """
    return TopK(*_TOPK.towers((x, offsets), packed, plan, fusion_weights, fusion, weights_per, k, backend=backend))
