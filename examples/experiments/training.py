"""The one way all methods are trained: the same loop, batches, budget of epochs and early stopping."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from resflow_kernels.training.loop import fit
from resflow_kernels.training.settings import FitSettings

from .data import Encoded, shuffled
from .store import Setting

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Budget:
    """What every method of a comparison gets.

    Args:
        epochs: passes over the training data, at most.
        patience: epochs without a better validation outcome before training ends.
        batch: candidates a step.
        seeds: of the final runs, 1 to this.
        cells: only the first so many cells of each tuning grid; 0: all.
    """

    epochs: int
    patience: int = 1
    batch: int = 2048
    seeds: int = 5
    cells: int = 0

    def grid(self, cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The cells of a grid that the budget is for."""
        return cells[: self.cells] if self.cells else cells

    @property
    def final_seeds(self) -> range:
        """Seeds of the final runs; 0 is the one that settings are tuned with."""
        return range(1, self.seeds + 1)

    def conditions(self, **others: Any) -> dict[str, Any]:
        """What runs must share to stand in one table, for :class:`Store`."""
        return {"epochs": self.epochs, "patience": self.patience, "batch": self.batch, **others}


def trained(
    make: Callable[[], nn.Module],
    data: Encoded,
    loss: Loss,
    valid: Callable[[nn.Module], float],
    setting: Setting,
    seed: int,
    budget: Budget,
) -> tuple[nn.Module, float, dict[str, Any]]:
    """Make and train a model; it ends with the weights of its best epoch.

    Args:
        make: the model, its weights drawn from torch's generator.
        data: to train on.
        loss: of logits ``[B, K]`` and labels, its mean over a batch.
        valid: the validation outcome to maximise.
        setting: has ``learning_rate``.
        seed: of weights, dropout and shuffling.
        budget: epochs, patience, batch.

    Returns:
        the model, its validation outcome, and the epochs as JSON values.
    """
    torch.manual_seed(seed)
    model = make()

    def evaluate(trained: nn.Module) -> Mapping[str, float]:
        return {"valid": valid(trained)}

    settings = FitSettings(
        epochs=budget.epochs,
        patience=budget.patience,
        learning_rate=setting["learning_rate"],
        monitor="valid",
        seed=seed,
    )
    history = fit(model, shuffled(data, budget.batch, seed), loss, evaluate, settings)
    epochs = [[result.epoch, result.loss, result.metrics["valid"]] for result in history.epochs]
    return model.eval(), history.best, {"epochs": epochs, "best_epoch": history.best_epoch}
