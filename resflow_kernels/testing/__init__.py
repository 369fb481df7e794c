"""Workloads, random weights and error bounds that tests and benchmarks share. Needs torch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..contract import PRECISION_ROWS, complete
from ..core.plan import Plan, chain
from ..reference import Scores

# Bounds on the difference from the float64 reference, which rounds where the kernels round. A float32 sum at a
# rounding's edge may round to the other side, which moves what follows by one step of the precision, in one channel.
# The steps of float16 and tensorfloat32 are an eighth of bfloat16's. The bound on logits is multiplied by 1 + |logit|.
_TOLERANCES = complete(
    "precision",
    tuple(PRECISION_ROWS),
    {
        "float32": (2e-6, 1e-5),
        "bfloat16": (1e-3, 4e-3),
        "int8": (5e-3, 2e-2),
        "float16": (1.3e-4, 5e-4),
        "tensorfloat32": (1.3e-4, 5e-4),
    },
)
PROBABILITY_TOLERANCE = {name: probability for name, (probability, _) in _TOLERANCES.items()}
LOGIT_TOLERANCE = {name: logit for name, (_, logit) in _TOLERANCES.items()}


@dataclass(frozen=True)
class Workload:
    """A ranker that all measurements use; its input has ``user + item`` features."""

    plan: Plan
    user_features: int
    about: str


def _workload(
    user: int, item: int, hidden: tuple[int, ...], tasks: int, about: str, feature_residual: bool = True
) -> Workload:
    plan = Plan(user + item, hidden, chain(tasks), "prelu", feature_residual, affine=True)
    return Workload(plan, user, about)


WORKLOADS = {
    "ecomm2": _workload(320, 288, (128, 64), 2, "the authors' Ali-CCP model: 19 features of width 32"),
    "prerank3": _workload(320, 256, (128, 64), 3, "click, cart, order: a deployed three-target pre-rank"),
    "video5": _workload(400, 344, (128, 64), 5, "view, like, follow, comment, forward"),
    "progressive9": _workload(400, 344, (128, 64), 9, "regression as nine tasks", feature_residual=False),
    "wide3": _workload(512, 512, (512, 256, 128), 3, "a heavy ranker"),
}


def random_weights(plan: Plan, seed: int = 0) -> list[Tensor]:
    """Canonical float32 weights at the scale of a trained network: logits of order 1 to 10 in every task.

    Feature residuals add up along a chain, so the weights that read them shrink with the task's depth. (Otherwise a
    chain of 16 has logits of 60, whose last bit alone moves a probability by more than the bound, in any float32.)
    """
    generator = torch.Generator().manual_seed(seed)
    depths: list[int] = []
    for parent in plan.parents:
        depths.append(1 + (depths[parent] if parent >= 0 and plan.feature_residual else 0))

    def weight(name: str, shape: tuple[int, ...]) -> Tensor:
        values = torch.randn(shape, generator=generator)
        task, place, kind = name.removeprefix("task ").split(", ")
        if kind == "weight":
            depth = 1 if place == "layer 0" else depths[int(task)]
            return values * shape[0] ** -0.5 / depth
        if kind == "slope":
            return 0.25 + 0.1 * values
        if kind == "scale":
            return 1 + 0.1 * values
        return 0.1 * values

    return [weight(name, shape) for name, shape in plan.weight_shapes]


def assert_exact(got: Scores, exact: Scores, fusion_weights: Tensor | None = None, precision: str = "float32") -> None:
    """Assert that ``got`` is within a precision's bounds of the float64 ``exact``, and NaN exactly where it is NaN."""
    for name, actual, expected in zip(Scores._fields, got, exact, strict=True):
        assert actual.shape == expected.shape, f"{name}: {actual.shape} is not {expected.shape}"
        assert torch.equal(actual.isnan(), expected.isnan()), f"{name}: NaN in other places than the reference"
    logits = exact.logits.nan_to_num(0.0, 0.0, 0.0)
    error = (got.logits.double().nan_to_num(0.0, 0.0, 0.0) - logits).abs() / (1 + logits.abs())
    assert error.numel() == 0 or error.max() <= LOGIT_TOLERANCE[precision], f"logits: error {error.max():.2e}"
    for name in ("probs", "score"):
        scale = 1.0
        if name == "score" and fusion_weights is not None and fusion_weights.numel():
            scale = max(1.0, float(fusion_weights.abs().max()) * fusion_weights.shape[-1])
        difference = (getattr(got, name).double() - getattr(exact, name)).nan_to_num(0.0).abs()
        bound = PROBABILITY_TOLERANCE[precision] * scale
        assert difference.numel() == 0 or difference.max() <= bound, (
            f"{name}: error {difference.max():.2e} > {bound:.2e}"
        )
