"""Progressive layered extraction (PLE). Needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from ..core.program import Row
from .baselines import Baseline, layers, own_towers, split
from .steps import ModuleSteps

Expert = TypeVar("Expert")


class Extraction(nn.Module):
    """One level of PLE: experts of each task and shared ones, and a gate per task over both.

    Args:
        experts: for each task its experts; last the shared ones.
        inputs: width of the rows that experts and gates read.
        gates_shared: whether the shared experts have a gate over all experts, for a level above.
    """

    def __init__(self, experts: Sequence[Sequence[nn.Sequential]], inputs: int, gates_shared: bool) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.ModuleList(own) for own in experts)
        *own, shared = (len(one) for one in experts)
        sizes = [count + shared for count in own] + ([sum(own) + shared] if gates_shared else [])
        self.gates = nn.ModuleList(nn.Linear(inputs, size, bias=False) for size in sizes)

    def forward(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """``[B, H]`` for each task, and last for the shared experts of the next level if there is one.

        ``rows`` are each task's and the shared ``[B, W]``.
        """
        made = [
            [expert(row) for expert in cast(nn.ModuleList, own)] for own, row in zip(self.experts, rows, strict=True)
        ]
        mixed = []
        for gate, row, read in zip(self.gates, rows, self._read(made), strict=False):
            shares = torch.softmax(gate(row), dim=1)
            mixed.append((shares[:, :, None] * torch.stack(read, dim=1)).sum(1))
        return mixed

    def steps(self, steps: ModuleSteps, rows: Sequence[Row]) -> list[Row]:
        """:meth:`forward` as steps of a program."""
        made = [
            [steps.mlp(row, layers(expert)) for expert in cast(nn.ModuleList, own)]
            for own, row in zip(self.experts, rows, strict=True)
        ]
        return [
            steps.mix(steps.softmax(steps.linear(row, cast(nn.Linear, gate))), read)
            for gate, row, read in zip(self.gates, rows, self._read(made), strict=False)
        ]

    @staticmethod
    def _read(made: list[list[Expert]]) -> list[list[Expert]]:
        """The experts that each gate mixes: a task's and the shared ones; of the shared gate all."""
        *own, shared = made
        return [*([*one, *shared] for one in own), [expert for one in own for expert in one] + shared]


class PLE(Baseline):
    """Progressive layered extraction (Tang et al., RecSys 2020); one level is CGC.

    Args:
        experts: number of each task's own experts, and of the shared ones.
        levels: number of extraction levels; each expert of the first has the hidden layers that tasks do not have for
            themselves, those of later levels the last of them.
        tower_layers: as in :class:`~resflow_kernels.nn.baselines.SharedBottom`. The other arguments are those of
            :class:`~resflow_kernels.nn.baselines.Baseline`.

    Raises:
        ValueError: a setting that is out of range; the message names it.

    Example:
        >>> PLE(576, tasks=("ctr", "ctcvr"), experts=2, levels=2)(torch.randn(10, 576)).probs.shape
        torch.Size([10, 2])
    """

    def __init__(
        self,
        *args: Any,
        experts: int | None = None,
        levels: int = 1,
        tower_layers: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(*args, **settings)
        experts = 1 if experts is None else experts
        for name, value in (("experts", experts), ("levels", levels)):
            if value < 1:
                raise ValueError(f"PLE: {name} must be at least 1, got {value}")
        shared, own = split(self.plan, tower_layers)
        groups = self.plan.tasks + 1
        self.levels = nn.ModuleList()
        for level in range(levels):
            widths = shared if level == 0 else (shared[-1], shared[-1])
            made = [[self._mlp(widths) for _ in range(experts)] for _ in range(groups)]
            self.levels.append(Extraction(made, widths[0], gates_shared=level + 1 < levels))
        self.towers = nn.ModuleList(self._mlp(own) for _ in self.tasks)
        self.heads = nn.ModuleList(self._head() for _ in self.tasks)

    def task_logits(self, x: Tensor) -> list[Tensor]:
        """See :class:`~resflow_kernels.nn.baselines.Baseline`."""
        rows = [x] * (self.plan.tasks + 1)
        for level in self.levels:
            rows = level(rows)
        return [head(tower(row)) for head, tower, row in zip(self.heads, self.towers, rows, strict=True)]

    def _steps(self, steps: ModuleSteps) -> list[Row]:
        rows = [steps.x] * (self.plan.tasks + 1)
        for level in self.levels:
            rows = cast(Extraction, level).steps(steps, rows)
        return own_towers(steps, rows, self.towers, self.heads)
