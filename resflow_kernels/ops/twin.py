"""The ops of the twin tower form: a task's logit is the dot product of a user's vector and an item's.

===================  ==============================================================================
``twin_rows``        rounds item vectors to the table of the others: float32, bfloat16 or int8
``twin_scores``      logits, probabilities and score of all items for every request
``twin_topk``        the k best of all items for every request, in one stream over the table
``twin_ids_scores``  like ``twin_scores``, for a list of items per request
``twin_ids_topk``    the k best of each request's list
===================  ==============================================================================

Part of :mod:`resflow_kernels.ops`, which re-exports these functions.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..contract.results import Scores, TopK
from ..core import checks
from . import library
from .call import OPS, table_dtype


def twin_rows(vectors: Tensor, tasks: int, dtype: str = "int8") -> tuple[Tensor, Tensor]:
    """Round item vectors to a table.

    Args:
        vectors: ``[M, K * W]`` float32 or bfloat16, each item's vectors of all tasks concatenated.
        tasks: ``K``.
        dtype: the table's dtype: ``"float32"``, ``"bfloat16"``, or ``"int8"`` with one scale per item and task.

    Returns:
        table ``[M, K * W]`` of that dtype, and scales: float32 ``[M, K]`` for int8, else ``[0, K]``. A vector with
        a NaN or an infinity has the scale NaN.

    Raises:
        ValueError: bad input; the message names the argument, what was expected and what was got.

    Example:
        >>> table, scales = twin_rows(torch.randn(1000, 3 * 64), tasks=3)
        >>> table.dtype, scales.shape
        (torch.int8, torch.Size([1000, 3]))
    """
    checks.no_grad("twin_rows", vectors=vectors)
    return library.call("twin_rows", vectors, tasks, table_dtype("twin_rows", dtype))


def twin_scores(
    user: Tensor,
    table: Tensor,
    scales: Tensor,
    fusion_weights: Tensor,
    parents: Sequence[int],
    non_increasing: bool = False,
    fusion: str = "additive",
    weights_per: str = "call",
) -> Scores:
    """Form 5: score every item of a table for every request.

    Args:
        user: ``[R, K * W]`` float32 or bfloat16, each user's vectors of all tasks concatenated.
        table: ``[M, K * W]`` from :func:`twin_rows`; float32, bfloat16 or int8, any row stride.
        scales: also from :func:`twin_rows`.
        fusion_weights: ``[K]``, ``[R, K]``, or one set per item ``[M, K]``, float32, depending on ``weights_per``.
        parents: for each of the ``K`` tasks the task whose logit is added to its own, or -1.
        non_increasing: pass a task's own logit through ``min(., 0)`` before its parent's is added.
        fusion: ``"additive"``, ``"multiplicative"`` or ``"expected_value"``.
        weights_per: ``"call"``, ``"request"`` or ``"candidate"``.

    Returns:
        :class:`Scores` of ``[R * M]`` candidates: all items for the first request, then for the second, ...

    Raises:
        ValueError: bad input; the message names the argument, what was expected and what was got.
    """
    inputs = (user, table, scales)
    return Scores(*OPS["twin_scores"].twin(inputs, fusion_weights, parents, non_increasing, fusion, weights_per))


def twin_topk(
    user: Tensor,
    table: Tensor,
    scales: Tensor,
    fusion_weights: Tensor,
    parents: Sequence[int],
    non_increasing: bool = False,
    fusion: str = "additive",
    weights_per: str = "call",
    k: int = 100,
) -> TopK:
    """The ``k`` best of all items for every request; arguments as in :func:`twin_scores`.

    On the CPU the scores are never in memory, on a GPU a part of them at a time.

    Returns:
        :class:`TopK` of scores ``[R, k]`` and positions ``[R, k]``, rows of the table.

    Example:
        >>> table, scales = twin_rows(torch.randn(1000, 2 * 32), tasks=2)
        >>> best = twin_topk(torch.randn(4, 2 * 32), table, scales, torch.ones(2), parents=(-1, 0), k=10)
        >>> best.positions.shape
        torch.Size([4, 10])

    Raises:
        ValueError: bad input; the message names it.
    """
    inputs = (user, table, scales)
    return TopK(*OPS["twin_topk"].twin(inputs, fusion_weights, parents, non_increasing, fusion, weights_per, k))


def twin_ids_scores(
    user: Tensor,
    ids: Tensor,
    offsets: Tensor,
    table: Tensor,
    scales: Tensor,
    fusion_weights: Tensor,
    parents: Sequence[int],
    non_increasing: bool = False,
    fusion: str = "additive",
    weights_per: str = "call",
) -> Scores:
    """Form 5 on lists of items: ``ids [N]`` int64 are rows of the table, ``offsets [R + 1]`` int64 divides them into
    requests; fusion weights per candidate are ``[N, K]``. Otherwise bitwise like :func:`twin_scores`.

    Returns:
        :class:`Scores` of the ``N`` candidates.

    Raises:
        ValueError: bad input, such as an id out of range; the message names it.
    """
    inputs = (user, ids, offsets, table, scales)
    return Scores(*OPS["twin_ids_scores"].twin(inputs, fusion_weights, parents, non_increasing, fusion, weights_per))


def twin_ids_topk(
    user: Tensor,
    ids: Tensor,
    offsets: Tensor,
    table: Tensor,
    scales: Tensor,
    fusion_weights: Tensor,
    parents: Sequence[int],
    non_increasing: bool = False,
    fusion: str = "additive",
    weights_per: str = "call",
    k: int = 100,
) -> TopK:
    """The ``k`` best of each request's list of items; positions are indices in the request, not ids.

    Arguments are those of :func:`twin_ids_scores`.

    Returns:
        :class:`TopK` of scores ``[R, k]`` float32 and positions ``[R, k]`` int64.

    Raises:
        ValueError: bad input; the message names it.
    """
    inputs = (user, ids, offsets, table, scales)
    return TopK(*OPS["twin_ids_topk"].twin(inputs, fusion_weights, parents, non_increasing, fusion, weights_per, k))
