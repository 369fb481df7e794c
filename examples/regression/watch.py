"""The share of a video that is watched, in percent of its duration: the KuaiRand slice."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from examples.experiments.data import Encoded, Split, encode
from examples.kuairand import prepare
from resflow_kernels.data.features import FeatureSet

from .problem import Problem, bucket_means, thresholds_at

WIDTH = 8  # of each feature's embedding
PERCENTILES = tuple(range(10, 100, 10))


def load(rows: int = 0) -> Problem:
    """Impressions of videos of known duration, split by date as in :mod:`examples.kuairand`.

    Args:
        rows: read only this many rows of each part; 0: all.
    """
    data = prepare.load()
    features = prepare.feature_set(WIDTH).fit(data.train.table, min_count=prepare.MIN_COUNT)
    train, valid, test = (
        _encoded(features, days.part(0, rows) if rows else days) for days in (data.train, data.valid, data.test)
    )
    values = train.labels[:, 0].numpy().astype(np.float64)
    thresholds = thresholds_at(values, PERCENTILES)
    return Problem(Split(features, train, valid, test), thresholds, bucket_means(values, thresholds))


def percent(watched: NDArray[np.floating]) -> NDArray[np.float32]:
    """Watched shares as percent; a video watched more than once counts as 100."""
    return (100 * np.minimum(watched, 1)).astype(np.float32)


def _encoded(features: FeatureSet, days: prepare.Impressions) -> Encoded:
    known = ~np.isnan(days.watched)
    return encode(features, days.table.filter(pa.array(known)), percent(days.watched[known])[:, None])
