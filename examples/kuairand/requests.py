"""Users of the KuaiRand slice who rank its catalog, and the videos that they finished."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from examples.experiments.catalog import Requests
from resflow_kernels.data.features import FeatureSet
from resflow_kernels.training.ranker import encode_rows

from . import prepare


def make_requests(features: FeatureSet, days: prepare.Impressions, videos: pa.Table, users: int) -> Requests:
    """Requests of at most ``users`` users who finished something on those days; feedback is the number of finishes."""
    asking, finishes = prepare.requests(days, users)
    feedback = np.zeros((asking.num_rows, videos.num_rows))
    row_of = {user: row for row, user in enumerate(asking["user_id"].to_pylist())}
    column_of = {video: column for column, video in enumerate(videos["video_id"].to_pylist())}
    for user, video, weight in zip(*(finishes[name].to_pylist() for name in finishes.column_names), strict=True):
        feedback[row_of[user], column_of[video]] = weight
    return Requests(encode_rows(features.user, asking), encode_rows(features.item, videos), feedback)
