"""Form 2, request: one user row and many item rows per request; the user's part is computed once per request."""

from __future__ import annotations

from torch import Tensor

from ..contract.results import Scores, TopK
from ..core.program import AnyPlan
from .call import OPS

_SCORES, _TOPK = OPS["request_scores"], OPS["request_topk"]


def request_scores(
    user: Tensor,
    item: Tensor,
    offsets: Tensor,
    packed: Tensor,
    plan: AnyPlan,
    fusion_weights: Tensor,
    fusion: str = "additive",
    weights_per: str = "call",
    *,
    backend: str | None = None,
) -> Scores:
    """Score the candidates of requests.

    Args:
        user: ``[R, Du]``, the first ``Du`` columns of the input row; dtypes as in
            :func:`~resflow_kernels.ops.dense_scores`.
        item: ``[N, Di]``, the candidates of all requests, concatenated; ``Du + Di`` is the plan's input.
        offsets: ``[R + 1]`` int64; request ``r`` owns candidates ``offsets[r]`` to ``offsets[r + 1]``.
        packed: from :func:`~resflow_kernels.ops.pack_towers`.
        plan: the plan it was packed for.
        fusion_weights: ``[K]``, ``[R, K]`` or ``[N, K]`` float32, depending on ``weights_per``.
        fusion: ``"additive"``, ``"multiplicative"`` or ``"expected_value"``.
        weights_per: ``"call"``, ``"request"`` or ``"candidate"``.
        backend: as in :func:`~resflow_kernels.ops.dense_scores`.

    Returns:
        :class:`Scores` of the ``N`` candidates: logits ``[N, K]``, probs ``[N, K]``, score ``[N]``.

    Raises:
        ValueError: bad input; the message names it.
    """
    inputs = (user, item, offsets)
    return Scores(*_SCORES.towers(inputs, packed, plan, fusion_weights, fusion, weights_per, backend=backend))


def request_topk(
    user: Tensor,
    item: Tensor,
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
    """The ``k`` best candidates of each request; arguments are those of :func:`request_scores`.

    Returns:
        :class:`TopK` of scores ``[R, k]`` and positions ``[R, k]``.

    Raises:
        ValueError: bad input; the message names it.
    """
    inputs = (user, item, offsets)
    return TopK(*_TOPK.towers(inputs, packed, plan, fusion_weights, fusion, weights_per, k, backend=backend))
