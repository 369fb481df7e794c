"""What scoring returns, of torch tensors or of NumPy arrays; imports neither."""

from __future__ import annotations

from typing import Any, NamedTuple


class Scores(NamedTuple):
    """Scores of ``B`` candidates: float32 tensors, or arrays from a :class:`~resflow_kernels.Scorer`."""

    logits: Any  # [B, K]
    probs: Any  # [B, K]
    score: Any  # [B]


class TopK(NamedTuple):
    """The best candidates of ``R`` requests, best first."""

    scores: Any  # [R, k] float32, NaN where a request has fewer than k candidates
    positions: Any  # [R, k] int64, place in the request, -1 where there is none
