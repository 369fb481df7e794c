"""Settings of training, and its reports. Imports torch only for the type of a loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class FitSettings:
    """Settings of training.

    Args:
        epochs: largest number of passes over the batches.
        patience: number of epochs without a better ``monitor`` after which training ends.
        learning_rate: Adam's.
        weight_decay: Adam's (added to the gradient).
        embedding_learning_rate: of embedding tables; ``None``: the same as the others'.
        embedding_weight_decay: likewise.
        monitor: the metric of ``evaluate`` that is maximised.
        seed: of dropout and anything else that draws from torch's generator; ``None`` leaves the generator as it is.
        accumulate: number of batches per step; every row has the same weight, as if they were one batch.
        autocast: run the model's forward in bfloat16 where PyTorch's autocast does (ResFlow's fused training still
            computes in float32; its baselines' layers, and ResFlow's if plain PyTorch trains it, do not).
        clip: the largest norm of the gradient; larger ones are scaled down to it.

    Raises:
        ValueError: a setting out of range; the message names it.
    """

    epochs: int = 10
    patience: int = 2
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    embedding_learning_rate: float | None = None
    embedding_weight_decay: float | None = None
    monitor: str = "auc"
    seed: int | None = 0
    accumulate: int = 1
    autocast: bool = False
    clip: float | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "patience", "accumulate"):
            _require(
                name, _is_integer(getattr(self, name)) and getattr(self, name) >= 1, "an integer of at least 1", self
            )
        for name in ("learning_rate", "embedding_learning_rate", "clip"):
            optional = name != "learning_rate" and getattr(self, name) is None
            _require(name, optional or (_is_finite(getattr(self, name)) and getattr(self, name) > 0), "above 0", self)
        for name in ("weight_decay", "embedding_weight_decay"):
            optional = name != "weight_decay" and getattr(self, name) is None
            _require(
                name, optional or (_is_finite(getattr(self, name)) and getattr(self, name) >= 0), "0 or more", self
            )
        _require(
            "seed", self.seed is None or (_is_integer(self.seed) and self.seed >= 0), "an integer of 0 or more", self
        )
        _require("monitor", isinstance(self.monitor, str) and self.monitor != "", "a metric's name", self)
        _require("autocast", isinstance(self.autocast, bool), "true or false", self)


@dataclass(frozen=True)
class EpochResult:
    """The result of an epoch: its mean training loss (over rows) and the metrics of ``evaluate``."""

    epoch: int
    loss: float
    metrics: Mapping[str, float]


@dataclass
class History:
    """The epochs of a training run; ranks other than 0 have only the monitored metric.

    ``best_epoch`` is the epoch whose weights the model has. ``interrupted`` means that ``stop`` ended the run early;
    the model then has the last step's weights.
    """

    epochs: list[EpochResult] = field(default_factory=list)
    best_epoch: int = 0
    best: float = -math.inf
    interrupted: bool = False


@dataclass(frozen=True)
class Progress:
    """The state of training after a step or, with a ``result``, after an epoch."""

    epoch: int
    step: int  # of this epoch, from 1
    rows: int  # all ranks' rows of the step, or of the epoch
    loss: Tensor  # mean over this rank's rows of the step, or over all rows of the epoch; detached
    result: EpochResult | None = None


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    return (_is_integer(value) or isinstance(value, float)) and math.isfinite(cast(float, value))


def _require(name: str, holds: bool, expected: str, settings: FitSettings) -> None:
    if not holds:
        raise ValueError(f"FitSettings: {name} must be {expected}, got {getattr(settings, name)!r}")
