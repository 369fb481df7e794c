"""Lower precisions of a bundle, and their cost in accuracy. Needs torch only for AUC.

No calibration is needed: weights have one scale per column, and a candidate's row has its own scale, computed when it
is scored, so that a score depends on no other candidate and on no sample of data.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .. import metrics
from .bundle import Bundle
from .scorer import Floats, Offsets, Scorer


@dataclass(frozen=True)
class PrecisionErrors:
    """Differences of a precision's scores from float32's, on the same candidates. Lists have one entry per task."""

    precision: str
    tasks: tuple[str, ...]
    largest: list[float]  # difference of probabilities
    mean: list[float]
    overlap: float  # mean share of a request's k best in float32 that remain among them; NaN if no request has over k
    k: int
    auc: list[float] | None  # in the precision; None without labels
    auc_float32: list[float] | None


def quantize(bundle: Bundle, precision: str) -> Bundle:
    """The bundle with another scoring precision; its weights stay float32 and are rounded when packed.

    Raises:
        ValueError: an unknown precision, or one that the plan's widths do not allow.

    Example:
        >>> save_bundle = quantize(load("ranker.safetensors"), "int8")  # doctest: +SKIP
    """
    return replace(bundle, plan=replace(bundle.plan, precision=precision))


def measure_errors(
    bundle: Bundle,
    precision: str,
    x: Floats,
    offsets: Offsets,
    labels: NDArray[np.float32] | None = None,
    k: int = 100,
) -> PrecisionErrors:
    """Score the same candidates in float32 and in ``precision``.

    Args:
        bundle: the model.
        precision: ``"bfloat16"`` or ``"int8"``.
        x: float32 ``[N, D]``, the candidates of all requests, concatenated.
        offsets: int64 ``[R + 1]``; request ``r`` owns candidates ``offsets[r]`` to ``offsets[r + 1]``.
        labels: 0 or 1, ``[N, K]``; with them each task's AUC is measured (needs torchmetrics).
        k: length of the rankings whose overlap is measured; requests with at most ``k`` candidates do not count.

    Raises:
        ValueError: inputs that do not match the model; the message names one.
    """
    exact = Scorer.from_bundle(bundle, precision="float32")
    rounded = Scorer.from_bundle(bundle, precision=precision)
    before, after = (scorer.dense_scores(x) for scorer in (exact, rounded))
    differences = np.abs(after.probs - before.probs)
    some = len(differences) > 0
    kept = [
        len(np.intersect1d(_best(before.score[a:b], k), _best(after.score[a:b], k))) / k
        for a, b in pairwise(offsets.tolist())
        if b - a > k
    ]
    return PrecisionErrors(
        precision,
        bundle.tasks,
        differences.max(0).tolist() if some else [0.0] * len(bundle.tasks),
        differences.mean(0).tolist() if some else [0.0] * len(bundle.tasks),
        float(np.mean(kept)) if kept else float("nan"),
        k,
        None if labels is None else _aucs(after.probs, labels),
        None if labels is None else _aucs(before.probs, labels),
    )


def _best(score: Floats, k: int) -> NDArray[np.int64]:
    return np.argsort(-score, kind="stable")[:k]


def _aucs(probs: Floats, labels: NDArray[np.float32]) -> list[float]:
    if labels.shape != probs.shape:
        raise ValueError(f"quantize: labels must be of shape {list(probs.shape)}, got {list(labels.shape)}")
    return [metrics.auc(probs[:, k], labels[:, k] > 0) for k in range(probs.shape[1])]
