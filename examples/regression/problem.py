"""A number to predict, as progressive tasks or by plain regression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from examples.experiments.data import Split


@dataclass(frozen=True)
class Problem:
    """A number to predict, and the ladder of tasks ``y > t_i`` that represents it.

    Args:
        split: its labels are the number itself, ``[n, 1]``.
        thresholds: ``t_0..t_{K-1}``, ascending.
        values: the value of each of the ``K + 1`` buckets between them.
    """

    split: Split
    thresholds: tuple[float, ...]
    values: tuple[float, ...]


def thresholds_at(values: NDArray[np.floating], percentiles: Sequence[float]) -> tuple[float, ...]:
    """Distinct thresholds at percentiles, without those that no value exceeds.

    >>> thresholds_at(np.array([0.0, 0, 0, 1, 2, 3, 4, 4, 4, 4]), (10, 50, 90))
    (0.0, 2.5)
    """
    cuts = np.unique(np.percentile(values, percentiles))
    return tuple(float(cut) for cut in cuts if (values > cut).any())


def bucket_means(values: NDArray[np.floating], thresholds: Sequence[float]) -> tuple[float, ...]:
    """The mean of the values in each bucket: no other numbers have a smaller squared error.

    Raises:
        ValueError: a bucket without a value.

    >>> bucket_means(np.array([1.0, 3, 5, 9]), (3, 5))
    (2.0, 5.0, 9.0)
    """
    places = np.searchsorted(thresholds, values, side="left")
    counts = np.bincount(places, minlength=len(thresholds) + 1)
    if not counts.all():
        raise ValueError(f"thresholds must have a value between each two, got {counts.tolist()} values by bucket")
    return tuple((np.bincount(places, values) / counts).tolist())
