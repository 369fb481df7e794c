"""The compared methods, under the names of :func:`resflow_kernels.nn.baselines.make_ranker`, and one more."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from resflow_kernels.data.features import FeatureSet
from resflow_kernels.nn.methods import make_ranker
from resflow_kernels.training.ranker import FeatureModel

# The methods' names in the tables, in the order of the tables.
NAMES = {
    "single_task": "single task",
    "shared_bottom": "shared bottom",
    "mmoe": "MMoE",
    "esmm": "ESMM",
    "aitm": "AITM",
    "nse": "NSE",
    "resflow_fr": "ResFlow, FR",
    "resflow_lr": "ResFlow, LR",
    "resflow": "ResFlow, FR + LR",
}


class SeparateModels(nn.Module):
    """A separate model for each task, embeddings included: no sharing at all.

    They are trained at once on the sum of their losses, which for Adam gives the steps of training each alone.
    """

    def __init__(self, models: Iterable[FeatureModel]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, rows: dict[str, Tensor]) -> Tensor:
        """Logits ``[n, K]``."""
        return torch.cat([model(rows).logits for model in self.models], dim=1)


def make(
    method: str,
    features: FeatureSet,
    tasks: Sequence[str],
    hidden: Sequence[int],
    dropout: float,
    parents: Sequence[int] | None = None,
    **settings: Any,
) -> nn.Module:
    """A method's model over one embedding per feature.

    Args:
        method: a name of :data:`NAMES`.
        features: the fitted features.
        tasks: names of the ``K`` tasks, dense feedback first.
        hidden: widths of each tower's hidden layers.
        dropout: dropout rate of the input row.
        parents: the task each task inherits from, -1 for a root; ``None``: a chain.
        settings: passed on to :func:`make_ranker`.

    Raises:
        ValueError: an unknown method.
    """
    width = features.user_width + features.item_width
    if method == "single_task":
        towers = [make_ranker("nse", width, hidden, (task,), **settings) for task in tasks]
        return SeparateModels(FeatureModel(features, tower, dropout) for tower in towers)
    return FeatureModel(features, make_ranker(method, width, hidden, tasks, parents, **settings), dropout)


def chosen(names: Sequence[str] | None) -> list[str]:
    """Some methods in the order of the tables; all methods if none are named.

    Raises:
        ValueError: an unknown name.
    """
    unknown = sorted(set(names or ()) - set(NAMES))
    if unknown:
        raise ValueError(f"method must be one of {', '.join(NAMES)}, got {', '.join(unknown)}")
    return [name for name in NAMES if not names or name in names]


def logits_of(model: nn.Module, rows: Any) -> Tensor:
    """Logits ``[n, K]`` of a model that returns them, or :class:`~resflow_kernels.Scores`."""
    given = model(rows)
    return given if isinstance(given, Tensor) else given.logits


@torch.inference_mode()
def probabilities(model: nn.Module, batches: Iterable[Any]) -> Tensor:
    """Probabilities ``[n, K]`` of all batches' rows, in eval mode."""
    model.eval()
    return torch.cat([logits_of(model, rows) for rows in batches]).sigmoid()
