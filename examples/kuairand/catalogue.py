"""Users ranking the whole catalogue: every video's probabilities for every user, and what they finished."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from examples.experiments.methods import SeparateModels
from resflow_kernels.features import FeatureSet
from resflow_kernels.training.ranker import FeatureModel, encode_rows

from . import prepare

@dataclass(frozen=True)
class Requests:
    """Users, the catalogue they all rank, and their feedback.

    Args:
        user: rows of the user's features, ``R`` of them.
        item: rows of the catalogue's features, ``M`` of them.
        feedback: ``[R, M]``, how often a user finished a video.
    """

    user: Mapping[str, Tensor]
    item: Mapping[str, Tensor]
    feedback: NDArray[np.float64]

    @property
    def offsets(self) -> NDArray[np.int64]:
        """``[R + 1]``: every request has the whole catalogue."""
        requests, videos = self.feedback.shape
        return np.arange(requests + 1, dtype=np.int64) * videos


def make_requests(features: FeatureSet, days: prepare.Impressions, videos: pa.Table, users: int) -> Requests:
    """Requests of at most ``users`` users who finished something on those days."""
    asking, finishes = prepare.requests(days, users)
    feedback = np.zeros((asking.num_rows, videos.num_rows))
    row_of = {user: row for row, user in enumerate(asking["user_id"].to_pylist())}
    column_of = {video: column for column, video in enumerate(videos["video_id"].to_pylist())}
    for user, video, weight in zip(*(finishes[name].to_pylist() for name in finishes.column_names), strict=True):
        feedback[row_of[user], column_of[video]] = weight
    return Requests(encode_rows(features.user, asking), encode_rows(features.item, videos), feedback)


@torch.inference_mode()
def probabilities(model: nn.Module, requests: Requests) -> NDArray[np.float32]:
    """Probabilities ``[R, M, K]`` of every video for every user."""
    parts = model.models if isinstance(model, SeparateModels) else [model]
    return np.concatenate([_probabilities(part, requests) for part in parts], axis=2)


def _probabilities(model: FeatureModel, requests: Requests) -> NDArray[np.float32]:
    model.eval()
    users, items = model.embed(requests.user), model.embed(requests.item)
    offsets = torch.tensor([0, len(items)])
    # One user at a time: methods without fused ops join the rows, and those of several users are in no cache.
    scored = [model.towers.forward_requests(user[None], items, offsets).probs for user in users]
    return torch.stack(scored).numpy()
