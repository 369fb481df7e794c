"""The residuals that ResFlow learns: the distribution of each task's own logit, by how far the user went."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from examples.experiments.data import Encoded
from examples.experiments.methods import logits_of

# The steps of the chain that an impression reached, by the number of its positive labels.
GROUPS = ("exposed only", "clicked", "long viewed", "finished")
EDGES = np.linspace(-5, 4, 91)


@torch.inference_mode()
def residual_histograms(model: nn.Module, data: Encoded, parents: Sequence[int]) -> dict[str, Any]:
    """Residual logits of a trained chain, by group of outcome.

    Args:
        model: a model of tasks with logit residuals, in eval mode.
        data: impressions with labels of the tasks, each of which implies the one before.
        parents: the tasks' parents.

    Returns:
        JSON values, each by task, by group: ``counts``, one per bin of :data:`EDGES` (values beyond are in the outer
        bins), ``means`` and ``deviations``.
    """
    logits = torch.cat([logits_of(model, rows) for rows in data.scored_at_once()]).numpy()
    own = residuals(logits, parents)
    went = data.labels.sum(1).long().numpy()
    groups = [own[went == group] for group in range(len(GROUPS))]
    tasks = range(own.shape[1])
    return {
        "counts": [[_histogram(group[:, task]) for group in groups] for task in tasks],
        "means": [[_rounded(np.mean, group[:, task]) for group in groups] for task in tasks],
        "deviations": [[_rounded(np.std, group[:, task]) for group in groups] for task in tasks],
    }


def residuals(logits: NDArray[np.float32], parents: Sequence[int]) -> NDArray[np.float32]:
    """Each task's own logit ``r_k = z_k - z_parent(k)``; a root's is its logit.

    >>> residuals(np.array([[1.0, 0.25]]), (-1, 0)).tolist()
    [[1.0, -0.75]]
    """
    heirs = [task for task, parent in enumerate(parents) if parent >= 0]
    own = logits.copy()
    own[:, heirs] -= logits[:, [parents[task] for task in heirs]]
    return own


def _histogram(values: NDArray[np.float32]) -> list[int]:
    return np.histogram(np.clip(values, EDGES[0], EDGES[-1]), EDGES)[0].tolist()


def _rounded(statistic: Any, values: NDArray[np.float32]) -> float:
    return round(float(statistic(values)), 4) if len(values) else float("nan")
