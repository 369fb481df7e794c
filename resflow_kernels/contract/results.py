"""The results of scoring, as torch tensors or NumPy arrays; imports neither library."""

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
    positions: Any  # [R, k] int64, position in the request; -1 past the last candidate
