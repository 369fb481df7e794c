"""The training that all methods share: the same loop, batches, budget of epochs and early stopping."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from resflow_kernels.training.loop import fit
from resflow_kernels.training.settings import FitSettings

from .data import Encoded, epochs_of
from .store import Setting

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Budget:
    """The budget of every method in a comparison.

    Args:
        epochs: largest number of passes over the training data.
        patience: epochs without a better validation outcome before training ends.
        batch: candidates per step.
        seeds: number of final runs; their seeds are 1 to this.
        cells: number of cells used of each tuning grid, from the first; 0: all.
    """

    epochs: int
    patience: int = 1
    batch: int = 2048
    seeds: int = 5
    cells: int = 0

    def grid(self, cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The cells of a grid that the budget allows."""
        return cells[: self.cells] if self.cells else cells

    @property
    def final_seeds(self) -> range:
        """Seeds of the final runs; seed 0 is for tuning."""
        return range(1, self.seeds + 1)

    def conditions(self, **others: Any) -> dict[str, Any]:
        """The conditions that runs in one table must share, for :class:`Store`."""
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
        make: returns the model, with weights drawn from torch's generator.
        data: the candidates to train on.
        loss: the mean loss over a batch, of logits ``[B, K]`` and labels.
        valid: the validation outcome to maximise.
        setting: contains ``learning_rate``.
        seed: seed of weights, dropout and shuffling.
        budget: epochs, patience, batch.

    Returns:
        The model, its validation outcome, and the epochs as JSON values.
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
    history = fit(model, epochs_of(data, budget.batch, seed), loss, evaluate, settings)
    epochs = [[result.epoch, result.loss, result.metrics["valid"]] for result in history.epochs]
    return model.eval(), history.best, {"epochs": epochs, "best_epoch": history.best_epoch}
