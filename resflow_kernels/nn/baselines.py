"""The methods that the paper compares ResFlow with, as ``nn.Module``s. Needs torch.

All are built, called and trained like :class:`~resflow_kernels.nn.ResFlow`; in eval mode, if no gradient is needed,
they score in one pass as tile programs (:mod:`resflow_kernels.core.program`).
``NSE`` and ``ESMM`` are settings of ResFlow itself (:mod:`resflow_kernels.nn`), so they use the fused kernels.

Number of parameters without biases, slopes and BatchNorms, with ``P = D H_1 + sum_l H_{l-1} H_l`` for one tower and ``H
= H_L``: ResFlow, NSE and ESMM have ``K (P + H)``; AITM has ``4 H^2`` more per task with a parent; MMoE, with as many
experts as tasks, ``K^2 D`` more (its gates); SharedBottom has one bottom instead of ``K``.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..core.fusion import Additive, Fusion
from ..core.plan import Plan, topology
from ..core.program import Program, Row, joined
from .fused import FusedRanker
from .layers import ACTIVATION_MODULES, check_layer_settings, make_layer
from .steps import ModuleSteps
from .watch import why_altered


class Baseline(FusedRanker):
    """Layers and checks that the baselines share.

    Args:
        in_features: width ``D`` of a candidate's input row.
        hidden: widths of the hidden layers between a candidate's input row and a task's logit.
        tasks: names of the ``K`` tasks, dense feedback first.
        parents: as for :func:`~resflow_kernels.topology`; ``None``: a chain. SharedBottom and MMoE do not use them;
            ``plan.parents`` keeps them for functions of ordered tasks, such as ``calibrator_loss``.
        activation, norm, norm_after_activation, norm_eps, input_norm, fusion: as in ``ResFlow``.

    ``plan`` holds the shapes and the topology; ``served_plan`` is the tile program of the layers, which the ops take.
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int] = (128, 64),
        tasks: Sequence[str] = ("ctr", "ctcvr"),
        parents: Sequence[int] | Mapping[str, str] | str | None = None,
        activation: str = "prelu",
        norm: str | None = None,
        norm_after_activation: bool = True,
        norm_eps: float = 1e-3,
        input_norm: bool = False,
        fusion: Fusion | None = None,
    ) -> None:
        check_layer_settings(activation, norm)
        named = "prelu" if activation == "leaky_relu" else activation
        plan = Plan(in_features, tuple(hidden), topology(parents, tasks), named, False, False)
        super().__init__(plan, tasks, Additive() if fusion is None else fusion)
        self.input_norm = nn.BatchNorm1d(in_features, eps=norm_eps) if input_norm else None
        self._program: Program | None = None
        self._layer_settings = (activation, norm, norm_after_activation, norm_eps)

    def _mlp(self, widths: Sequence[int]) -> nn.Sequential:
        """Hidden layers from ``widths[0]`` to ``widths[-1]``; none for a single width."""
        return nn.Sequential(*(make_layer(a, b, *self._layer_settings) for a, b in pairwise(widths)))

    def _head(self) -> nn.Linear:
        return nn.Linear(self.plan.hidden[-1], 1)

    @abstractmethod
    def task_logits(self, x: Tensor) -> list[Tensor]:
        """Each task's logits ``[B, 1]`` from rows ``[B, D]``."""

    @abstractmethod
    def _steps(self, steps: ModuleSteps) -> list[Row]:
        """Each task's logit as steps of a program: what :meth:`task_logits` computes in eval mode."""

    @property
    def served_plan(self) -> Program:
        """The tile program of the layers."""
        if self._program is None:
            self._program = self._written()[0]
        return self._program

    def canonical_weights(self) -> list[Tensor]:
        """See :class:`~resflow_kernels.nn.fused.FusedRanker`."""
        altered = self._altered()
        if altered is not None:
            name = type(self).__name__
            raise ValueError(
                f"{name}: layers must be as they were made to have canonical weights, got a model where {altered}"
            )
        program, weights = self._written()
        self._program = program
        return weights

    def _written(self) -> tuple[Program, list[Tensor]]:
        norm = cast("nn.BatchNorm1d | None", self.input_norm)
        with torch.no_grad():
            steps = ModuleSteps(self.plan.in_features, norm)
            return steps.build(self._steps(steps), (-1,) * self.plan.tasks)

    def _altered(self) -> str | None:
        reasons = (why_altered(module) for module in self.modules() if module is not self)
        return next((reason for reason in reasons if reason is not None), None)

    def _logits(self, x: Tensor) -> Tensor:
        return torch.cat(self.task_logits(x if self.input_norm is None else self.input_norm(x)), dim=1)


class SharedBottom(Baseline):
    """One bottom for all tasks and one tower per task (Caruana, Machine Learning 28, 1997).

    Args:
        tower_layers: number of last hidden layers that each task has for itself; ``None``: 1, or 0 if there is only
            one hidden layer. The other arguments are those of :class:`Baseline`.

    Raises:
        ValueError: a setting that is out of range; the message names it.

    Example:
        >>> SharedBottom(576, tasks=("ctr", "ctcvr"))(torch.randn(10, 576)).probs.shape
        torch.Size([10, 2])
    """

    def __init__(
        self,
        *args: Any,
        tower_layers: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(*args, **settings)
        shared, own = split(self.plan, tower_layers)
        self.bottom = self._mlp(shared)
        self.towers = nn.ModuleList(self._mlp(own) for _ in self.tasks)
        self.heads = nn.ModuleList(self._head() for _ in self.tasks)

    def task_logits(self, x: Tensor) -> list[Tensor]:
        """See :class:`Baseline`."""
        hidden = self.bottom(x)
        return [head(tower(hidden)) for tower, head in zip(self.towers, self.heads, strict=True)]

    def _steps(self, steps: ModuleSteps) -> list[Row]:
        hidden = steps.mlp(steps.x, self.bottom)
        return own_towers(steps, [hidden] * self.plan.tasks, self.towers, self.heads)


class MMoE(Baseline):
    """Multi-gate mixture of experts (Ma et al., KDD 2018).

    ``f_k(x) = tower_k(sum_e softmax(G_k x)_e expert_e(x))``

    Args:
        experts: number of experts; ``None``: that of the tasks, so that only the gates are added to NSE's parameters.
        tower_layers: as in :class:`SharedBottom`; each expert has the other hidden layers. The other arguments are
            those of :class:`Baseline`.

    Raises:
        ValueError: a setting that is out of range; the message names it.

    Example:
        >>> MMoE(576, tasks=("ctr", "ctcvr"), experts=4)(torch.randn(10, 576)).probs.shape
        torch.Size([10, 2])
    """

    def __init__(
        self,
        *args: Any,
        experts: int | None = None,
        tower_layers: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(*args, **settings)
        experts = self.plan.tasks if experts is None else experts
        if experts < 1:
            raise ValueError(f"MMoE: experts must be at least 1, got {experts}")
        shared, own = split(self.plan, tower_layers)
        self.experts = nn.ModuleList(self._mlp(shared) for _ in range(experts))
        self.gates = nn.ModuleList(nn.Linear(self.plan.in_features, experts, bias=False) for _ in self.tasks)
        self.towers = nn.ModuleList(self._mlp(own) for _ in self.tasks)
        self.heads = nn.ModuleList(self._head() for _ in self.tasks)

    def task_logits(self, x: Tensor) -> list[Tensor]:
        """See :class:`Baseline`."""
        experts = torch.stack([expert(x) for expert in self.experts], dim=1)  # [B, E, H]
        logits = []
        for gate, tower, head in zip(self.gates, self.towers, self.heads, strict=True):
            shares = torch.softmax(gate(x), dim=1)
            logits.append(head(tower((shares[:, :, None] * experts).sum(1))))
        return logits

    def _steps(self, steps: ModuleSteps) -> list[Row]:
        experts = [steps.mlp(steps.x, layers(expert)) for expert in self.experts]
        shares = [steps.softmax(steps.linear(steps.x, cast(nn.Linear, gate))) for gate in self.gates]
        return own_towers(steps, [steps.mix(own, experts) for own in shares], self.towers, self.heads)


class Transfer(nn.Module):
    """AITM's step from one task to the next (Xi et al., KDD 2021).

    ``p = act(info(z_parent))``, then attention over the two vectors ``u`` of ``p`` and the task's own ``q``:
    ``z = sum_u softmax_u(<h2(u), h3(u)> / sqrt(H)) h1(u)``

    Args:
        width: ``H``, the width of the last hidden layers.
        activation: applied to the transferred information.
    """

    def __init__(self, width: int, activation: str) -> None:
        super().__init__()
        act = nn.PReLU(width) if activation == "prelu" else ACTIVATION_MODULES[activation]()
        self.info = nn.Sequential(nn.Linear(width, width), act)
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))

    def forward(self, parent: Tensor, own: Tensor) -> Tensor:
        """``z [B, H]`` from the parent's ``z [B, H]`` and the task's own last hidden layer ``q [B, H]``."""
        both = torch.stack((own, self.info(parent)), dim=1)  # [B, 2, H]
        # The authors' published code multiplies queries with values and leaves the keys unused; this follows the paper.
        affinity = (self.query(both) * self.key(both)).sum(-1) / math.sqrt(both.shape[-1])
        return (torch.softmax(affinity, dim=1)[:, :, None] * self.value(both)).sum(1)

    def steps(self, steps: ModuleSteps, parent: Row, own: Row) -> Row:
        """:meth:`forward` as steps of a program."""
        info = steps.activated(parent, cast(nn.Linear, self.info[0]), self.info[1])
        both = (own, info)
        pairs = [(steps.linear(row, self.query), steps.linear(row, self.key)) for row in both]
        affinity = joined([segment for pair in pairs for segment in steps.dot(*pair)])
        shares = steps.softmax(affinity, 1 / math.sqrt(self.query.in_features))
        return steps.mix(shares, [steps.linear(row, self.value) for row in both])


class AITM(Baseline):
    """Adaptive information transfer (Xi et al., KDD 2021): attention from a task's last hidden layer to its child's.

    Each edge of the topology has a :class:`Transfer` of its own. The paper's behavioural expectation calibrator is a
    term of the loss: :func:`resflow_kernels.nn.losses.calibrator_loss`.

    Arguments are those of :class:`Baseline`.

    Raises:
        ValueError: a setting that is out of range; the message names it.

    Example:
        >>> AITM(576, tasks=("ctr", "ctcvr"))(torch.randn(10, 576)).probs.shape
        torch.Size([10, 2])
    """

    def __init__(
        self,
        *args: Any,
        **settings: Any,
    ) -> None:
        super().__init__(*args, **settings)
        self.towers = nn.ModuleList(self._mlp((self.plan.in_features, *self.plan.hidden)) for _ in self.tasks)
        self.transfers = nn.ModuleDict(
            {
                str(task): Transfer(self.plan.hidden[-1], self._layer_settings[0])
                for task, parent in enumerate(self.plan.parents)
                if parent >= 0
            }
        )
        self.heads = nn.ModuleList(self._head() for _ in self.tasks)

    def task_logits(self, x: Tensor) -> list[Tensor]:
        """See :class:`Baseline`."""
        last: list[Tensor] = []
        for task, parent in enumerate(self.plan.parents):
            own = self.towers[task](x)
            last.append(self.transfers[str(task)](last[parent], own) if parent >= 0 else own)
        return [head(hidden) for head, hidden in zip(self.heads, last, strict=True)]

    def _steps(self, steps: ModuleSteps) -> list[Row]:
        last: list[Row] = []
        for task, parent in enumerate(self.plan.parents):
            own = steps.mlp(steps.x, layers(self.towers[task]))
            transfer = cast(Transfer, self.transfers[str(task)]) if parent >= 0 else None
            last.append(transfer.steps(steps, last[parent], own) if transfer else own)
        return [steps.linear(row, cast(nn.Linear, head)) for row, head in zip(last, self.heads, strict=True)]


def layers(sequential: nn.Module) -> nn.Sequential:
    """A module known to be hidden layers one after another."""
    return cast(nn.Sequential, sequential)


def own_towers(steps: ModuleSteps, rows: Sequence[Row], towers: nn.ModuleList, heads: nn.ModuleList) -> list[Row]:
    """Each task's own tower on its row, and its logit."""
    hidden = [steps.mlp(row, layers(tower)) for row, tower in zip(rows, towers, strict=True)]
    return [steps.linear(row, cast(nn.Linear, head)) for row, head in zip(hidden, heads, strict=True)]


def split(plan: Plan, tower_layers: int | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Widths of the shared layers, including the input row, and of a task's own, including the shared output."""
    own = min(1, plan.layers - 1) if tower_layers is None else tower_layers
    if not 0 <= own < plan.layers:
        raise ValueError(f"tower_layers must be 0 to {plan.layers - 1} of {plan.layers} hidden layers, got {own}")
    at = plan.layers - own
    return (plan.in_features, *plan.hidden[:at]), plan.hidden[at - 1 :]
