"""Users ranking a whole catalog: every item's probabilities for every user, and their feedback."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from resflow_kernels import ResFlow
from resflow_kernels.metrics import weighted_recall_of_ranking
from resflow_kernels.training.ranker import FeatureModel

from .methods import SeparateModels


@dataclass(frozen=True)
class Requests:
    """Users, the catalog they all rank, and their feedback.

    Args:
        user: rows of the user's features, ``R`` of them.
        item: rows of the catalog's features, ``M`` of them.
        feedback: ``[R, M]``, the value of each item for each user: how often it was finished, expected orders.
    """

    user: Mapping[str, Tensor]
    item: Mapping[str, Tensor]
    feedback: NDArray[np.float64]

    @property
    def offsets(self) -> NDArray[np.int64]:
        """``[R + 1]``: every request has the whole catalog."""
        requests, items = self.feedback.shape
        return np.arange(requests + 1, dtype=np.int64) * items

    def recall(self, scores: NDArray[np.floating], k: int = 100) -> float:
        """Weighted Recall@K of scores ``[R, M]``."""
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return weighted_recall_of_ranking(best, self.feedback.ravel(), self.offsets)


@torch.inference_mode()
def probabilities(model: nn.Module, requests: Requests) -> NDArray[np.float32]:
    """Probabilities ``[R, M, K]`` of every item for every user."""
    parts = list(model.models) if isinstance(model, SeparateModels) else [model]
    return np.concatenate([_probabilities(cast(FeatureModel, part), requests) for part in parts], axis=2)


def _probabilities(model: FeatureModel, requests: Requests) -> NDArray[np.float32]:
    model.eval()
    users, items = model.embed(requests.user), model.embed(requests.item)
    offsets, towers = torch.tensor([0, len(items)]), cast(ResFlow, model.towers)
    # One user at a time: methods without fused ops join the rows, and those of several users would not fit in a cache.
    scored = [towers.request_scores(user[None], items, offsets).probs for user in users]
    return torch.stack(scored).numpy()
