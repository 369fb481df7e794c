"""The experiments on the KuaiRand slice: the models that are trained, and what is measured on the test days."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from examples.experiments import methods
from examples.experiments.catalog import Requests, probabilities
from examples.experiments.data import Split, encode
from examples.experiments.grid import Experimenter, Outcome, cells, one_factor, runs_of
from examples.experiments.multitask import loss_of, mean_auc
from examples.experiments.store import Run
from examples.experiments.training import Budget, trained
from resflow_kernels.data.features import FeatureSet
from resflow_kernels.metrics import task_metrics

from . import prepare
from .fusions import TUNED_METHODS, plain_recalls, tuned_recalls
from .requests import make_requests
from .residuals import residual_histograms

HIDDEN = (128, 64)
WIDTH = 8  # of each feature's embedding
GRID = cells(learning_rate=(2e-3, 4e-3), dropout=(0.3, 0.5))

# The setting from which the sensitivity experiment changes one hyper-parameter at a time.
BASE = {"learning_rate": 2e-3, "dropout": 0.5, "width": WIDTH, "positive_weight": 1}
FACTORS: dict[str, Sequence[Any]] = {
    "width": (4, 8, 16, 32),
    "learning_rate": (1e-3, 2e-3, 4e-3, 8e-3),
    "positive_weight": (1, 5, 20, 50),
}
SENSITIVITY_SEEDS = 3
SENSITIVITY_METHODS = ("nse", "resflow")


@dataclass(frozen=True)
class Problem:
    """Tasks, and the task that each inherits from (-1: a root)."""

    tasks: tuple[str, ...]
    parents: tuple[int, ...]


CHAIN = Problem(prepare.TASKS, (-1, 0, 1))
BRANCH = Problem(("click", "like"), (-1, 0))

_FEEDBACKS = (*prepare.TASKS, "like")
TOPOLOGIES = {
    "independent": Problem(_FEEDBACKS, (-1, -1, -1, -1)),
    "chain": Problem(_FEEDBACKS, (-1, 0, 1, 2)),
    "tree": Problem(_FEEDBACKS, (-1, 0, 1, 0)),
}
TOPOLOGY_NAMES = {
    "independent": "independent",
    "chain": "chain: click → long view → finish → like",
    "tree": "tree: click → (long view → finish, like)",
}


class Comparison:
    """The data, and the experiments on it.

    Args:
        data: from :func:`prepare.load`.
        budget: the budget of every training run.
        experimenter: trains the runs that its store lacks.
        users: largest number of users who rank the catalog, on validation days and on test days.
        chosen: the methods of chain and branch, names of :data:`methods.NAMES`.
    """

    def __init__(
        self,
        data: prepare.Slice,
        budget: Budget,
        experimenter: Experimenter,
        users: int,
        chosen: Sequence[str] = tuple(methods.NAMES),
    ) -> None:
        self.data, self.budget, self.experimenter, self.users, self.methods = data, budget, experimenter, users, chosen
        self._features = prepare.feature_set(WIDTH).fit(data.train.table, min_count=prepare.MIN_COUNT)
        self._rows = [encode(self._features, days.table, days.labels) for days in (data.train, data.valid, data.test)]
        self._test_users = torch.tensor(data.test.table["user_id"].to_numpy())

    def planned(self, experiment: str) -> int:
        """Number of runs of an experiment."""
        tuned = partial(runs_of, grid=len(self.budget.grid(GRID)), seeds=self.budget.seeds)
        if experiment == "sensitivity":
            return len(SENSITIVITY_METHODS) * len(self.sensitivity_settings) * len(self._sensitivity_seeds)
        return tuned(len(TOPOLOGIES) if experiment == "topology" else len(self.methods))

    def run(self, experiment: str) -> None:
        """Train the missing runs of an experiment, one of :data:`EXPERIMENTS`."""
        getattr(self, experiment)()

    def chain(self) -> None:
        """All methods on click -> long view -> finish; also measures fusion and residuals."""
        self._tuned("chain", self.methods, self.chain_trial)

    def branch(self) -> None:
        """All methods on click -> like."""
        self._tuned("branch", self.methods, lambda run: self._trial(run, BRANCH)[1])

    def topology(self) -> None:
        """ResFlow on four tasks under several topologies; the method's name is the topology's."""

        def trial(run: Run) -> Outcome:
            return self._trial(replace(run, method="resflow"), TOPOLOGIES[run.method])[1]

        self._tuned("topology", list(TOPOLOGIES), trial)

    def sensitivity(self) -> None:
        """NSE and ResFlow on click -> like, one hyper-parameter changed at a time."""
        for method in SENSITIVITY_METHODS:
            for setting in self.sensitivity_settings:
                for seed in self._sensitivity_seeds:
                    run = Run("sensitivity", method, setting, seed, "final")
                    self.experimenter.run(run, lambda run: self._trial(run, BRANCH)[1])

    @property
    def sensitivity_settings(self) -> list[dict[str, Any]]:
        """The distinct settings of the sensitivity experiment."""
        settings: list[dict[str, Any]] = []
        for _, setting in one_factor(BASE, **FACTORS):
            if setting not in settings:
                settings.append(setting)
        return self.budget.grid(settings)

    @property
    def _sensitivity_seeds(self) -> range:
        return self.budget.final_seeds[:SENSITIVITY_SEEDS]

    def chain_trial(self, run: Run) -> Outcome:
        """A run of the chain; a final run also ranks the catalog, and keeps ResFlow's residuals."""
        model, outcome = self._trial(run, CHAIN)
        if run.stage != "final":
            return outcome
        valid, test = self.requests
        probs = probabilities(model, test)
        metrics, details = {**outcome.metrics, **plain_recalls(probs, test)}, dict(outcome.details)
        if run.method in TUNED_METHODS:
            recalls, details["fusions"] = tuned_recalls(probabilities(model, valid), valid, probs, test)
            metrics |= recalls
        if run.method == "resflow":
            details["residuals"] = residual_histograms(model, self._split(CHAIN, WIDTH).test, CHAIN.parents)
        return Outcome(outcome.valid, metrics, details)

    @cached_property
    def requests(self) -> tuple[Requests, Requests]:
        """Users of the validation days and of the test days, ranking the catalog."""
        days = (self.data.valid, self.data.test)
        valid, test = (make_requests(self._features, some, self.data.videos, self.users) for some in days)
        return valid, test

    def _tuned(self, experiment: str, chosen: Sequence[str], trial: Any) -> None:
        self.experimenter.tuned(experiment, chosen, self.budget.grid(GRID), self.budget.final_seeds, trial)

    def _trial(self, run: Run, problem: Problem) -> tuple[nn.Module, Outcome]:
        """Train a model and measure its probabilities on the test days."""
        split = self._split(problem, run.setting.get("width", WIDTH))
        weights = (*(1.0,) * (len(problem.tasks) - 1), float(run.setting.get("positive_weight", 1)))
        model, valid, details = trained(
            lambda: methods.make(
                run.method, split.features, problem.tasks, HIDDEN, run.setting["dropout"], problem.parents
            ),
            split.train,
            loss_of(run.method, problem.parents, weights),
            lambda model: mean_auc(model, split.valid),
            run.setting,
            run.seed,
            self.budget,
        )
        probs = methods.probabilities(model, split.test.scored_at_once())
        found = task_metrics(probs, split.test.labels, problem.tasks, self._test_users)
        metrics = {f"{name}_{task}": value for task, own in found.items() for name, value in own.items()}
        return model, Outcome(valid, metrics, details)

    def _split(self, problem: Problem, width: int) -> Split:
        days = (self.data.train, self.data.valid, self.data.test)
        parts = [rows.with_labels(labels_of(some, problem.tasks)) for rows, some in zip(self._rows, days, strict=True)]
        return Split(_of_width(self._features, width), *parts)


EXPERIMENTS = ("chain", "branch", "topology", "sensitivity")


def labels_of(days: prepare.Impressions, tasks: Sequence[str]) -> NDArray[np.float32]:
    """Labels ``[n, K]`` of tasks by name; a like counts only after a click."""
    columns = {task: days.labels[:, at] for at, task in enumerate(prepare.TASKS)} | {"like": days.likes}
    return np.stack([columns[task] for task in tasks], axis=1)


def _of_width(features: FeatureSet, width: int) -> FeatureSet:
    """Fitted features with embeddings of another width."""
    user, item = (tuple(replace(one, dim=width) for one in side) for side in (features.user, features.item))
    return replace(features, user=user, item=item)
