"""A training step (forward, loss and backward) against PyTorch eager and torch.compile.

BatchNorm uses the batch's statistics; gradients are computed of the input and of every weight. Each step's gradients
are first compared with eager's; the steps are interleaved. Run with ``make bench``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.cases import CORES
from resflow_kernels import ResFlow
from resflow_kernels.benchmark.baselines import threads_of
from resflow_kernels.benchmark.interleave import Schedule, interleave
from resflow_kernels.testing import WORKLOADS

TASKS = ("ctr", "ctcvr")


class Step:
    """One implementation's step: its own copy of the model, and a way to compute its logits."""

    def __init__(self, model: ResFlow, logits_of: Callable[[Tensor], Tensor], x: Tensor, labels: Tensor) -> None:
        self.model, self.logits_of, self.labels = model, logits_of, labels
        self.x = x.clone().requires_grad_()
        self.optimizer: torch.optim.Optimizer | None = None

    def __call__(self) -> Tensor:
        self.x.grad = None
        self.model.zero_grad()
        loss = F.binary_cross_entropy_with_logits(self.logits_of(self.x), self.labels)
        loss.backward()
        if self.optimizer is not None:
            self.optimizer.step()
        return loss

    def with_adam(self) -> Step:
        """A copy of this step that also runs an optimizer step."""
        other = copy.copy(self)
        other.optimizer = torch.optim.Adam(self.model.parameters())
        return other

    def gradients(self) -> list[Tensor]:
        """Gradients of all weights, after a call."""
        self()
        return [tensor.grad.flatten() for tensor in self.model.parameters() if tensor.grad is not None]


@pytest.mark.parametrize("rows", [1024, 4096, 16384])
@pytest.mark.parametrize("threads", sorted({1, CORES}))
def test_training_step(request: pytest.FixtureRequest, record: Callable[..., None], threads: int, rows: int) -> None:
    """``ecomm2``: the authors' two towers."""
    quick = request.config.getoption("--quick")
    if quick and (rows, threads) != (4096, CORES):
        pytest.skip("left out of the quick run")
    plan = WORKLOADS["ecomm2"].plan
    torch.manual_seed(0)
    base = ResFlow(plan.in_features, plan.hidden, TASKS, norm="batch").train()
    x, labels = torch.randn(rows, plan.in_features), (torch.rand(rows, len(TASKS)) < 0.3).float()

    def step(way: Callable[[ResFlow], Callable[[Tensor], Tensor]]) -> Step:
        model = copy.deepcopy(base)
        return Step(model, way(model), x, labels)

    steps = {"resflow": step(lambda model: model._logits), "eager": step(lambda model: model._reference_logits)}
    if not quick:
        steps["torch.compile"] = step(lambda model: torch.compile(model._reference_logits))
        steps["torch.compile max-autotune"] = step(
            lambda model: torch.compile(model._reference_logits, mode="max-autotune-no-cudagraphs")
        )
    with threads_of(threads), torch.inference_mode(False), torch.enable_grad():
        for one in steps.values():
            # A sum close to PReLU's kink may fall on either side: one in a million changes gradients by thousandths.
            got, expected = torch.cat(one.gradients()), torch.cat(steps["eager"].gradients())
            assert (got - expected).norm() <= 1e-2 * expected.norm()
        implementations = steps | {f"{name}, Adam": steps[name].with_adam() for name in ("resflow", "eager")}
        timings = interleave(implementations, Schedule(rounds=5 if quick else 15, burst_seconds=0.2))
    medians = {name: timing.median for name, timing in timings.items()}
    about = {"form": "training", "workload": "ecomm2", "candidates": rows, "threads": threads}
    info = {**about, "implementation": "resflow", "ours": True, "precision": "float32", "medians": medians}
    record(timings["resflow"].samples, info)
