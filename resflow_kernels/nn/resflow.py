"""The ResFlow ranker as an ``nn.Module``: ordinary parameters, fused scoring in eval mode.

In eval mode, if no gradient is needed, :class:`ResFlow` scores through ``torch.ops.resflow``; otherwise, and in
training, its logits come from the training ops (:func:`resflow_kernels.ops.training_logits`). For dtypes, devices and
layers that the ops do not serve, :mod:`resflow_kernels.reference` computes both, and the module warns once.
:meth:`ResFlow.packed` returns a module that holds only the packed weights: the form to export.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from .. import ops, reference
from ..core import checks
from ..core.fusion import Additive, Fusion
from ..core.plan import Plan, chain
from ..core.weights import Tower, in_order
from . import training
from .fused import FusedRanker, unsupported_dtype, warn_once
from .layers import TowerLayer, check_layer_settings, linear_bias, make_layer, norm_affine


class ResFlow(FusedRanker):
    """Residual multi-task ranker (ResFlow, KDD 2024, arXiv 2411.09705).

    Args:
        in_features: width ``D`` of a candidate's input row (``Du + Di`` in the request form, user first).
        hidden: widths of each tower's hidden layers.
        tasks: names of the ``K`` tasks, dense feedback first.
        parents: the task each task inherits from, -1 for a root; ``None``: a chain in the order of ``tasks``.
        activation: a name of :data:`ACTIVATION_MODULES`.
        norm: ``"batch"`` for one BatchNorm per hidden layer, or ``None``.
        norm_after_activation: whether that BatchNorm comes after the activation (as in the paper's code).
        norm_eps: its eps (1e-3 in the paper's code).
        input_norm: a BatchNorm on the input row as well.
        feature_residual: add the parent tower's hidden outputs.
        logit_residual: add the parent's logit.
        non_increasing: keep ``p_k <= p_parent(k)`` by passing the task's own logit through ``min(., 0)``.
        fusion: how probabilities become a score (:mod:`resflow_kernels.core.fusion`).
        precision: the precision to which the fused kernels round weights and rows: ``"float32"``, ``"bfloat16"``, on
            the CPU ``"int8"``, on a GPU ``"float16"`` or ``"tensorfloat32"`` (:class:`~resflow_kernels.Plan`); training
            and the reference path are not rounded.
        recompute: in training, compute pre-activations again in the backward pass instead of keeping them (``B * K``
            times the padded widths, in floats); ``None``: only if they exceed 1 GiB.
        backend: the backend that scores: a name of ``backends.BACKENDS``, or ``None``: that of ``RESFLOW_BACKEND``,
            else ``"auto"``. It is an attribute, so it can be changed; a backend that cannot serve a call raises.
        conditional: ESMM's head, ``p_k = p_parent(k) * sigmoid(r_k)``; excludes ``logit_residual``.

    Raises:
        ValueError: arguments that contradict each other; the message names one.

    Example:
        >>> model = ResFlow(576, tasks=("ctr", "ctcvr"), fusion=Additive((1, 20))).eval()
        >>> with torch.no_grad():
        ...     logits, probs, score = model(torch.randn(1000, 576))
        >>> score.shape
        torch.Size([1000])
    """

    recompute: bool | None = None

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int] = (128, 64),
        tasks: Sequence[str] = ("ctr", "ctcvr"),
        parents: Sequence[int] | None = None,
        activation: str = "prelu",
        norm: str | None = None,
        norm_after_activation: bool = True,
        norm_eps: float = 1e-3,
        input_norm: bool = False,
        feature_residual: bool = True,
        logit_residual: bool = True,
        non_increasing: bool = False,
        fusion: Fusion | None = None,
        conditional: bool = False,
        precision: str = "float32",
        recompute: bool | None = None,
        backend: str | None = None,
    ) -> None:
        check_layer_settings(activation, norm)
        parents = chain(len(tasks)) if parents is None else tuple(parents)
        if len(parents) != len(tasks):
            raise ValueError(f"parents must be one per task ({len(tasks)}), got {len(parents)}")
        plan = Plan(
            in_features,
            tuple(hidden),
            parents,
            "prelu" if activation == "leaky_relu" else activation,
            feature_residual,
            logit_residual,
            non_increasing,
            affine=norm == "batch" and norm_after_activation,
            head="conditional" if conditional else "residual",
            precision=precision,
        )

        def layer(inputs: int, width: int) -> TowerLayer:
            return make_layer(inputs, width, activation, norm, norm_after_activation, norm_eps)

        widths = (in_features, *plan.hidden)
        towers = [[layer(a, b) for a, b in pairwise(widths)] for _ in parents]
        heads = [nn.Linear(widths[-1], 1) for _ in parents]
        self._build(
            plan, tasks, fusion, towers, heads, nn.BatchNorm1d(in_features, eps=norm_eps) if input_norm else None
        )
        self.recompute = recompute
        self.backend = backend

    def _build(
        self,
        plan: Plan,
        tasks: Sequence[str],
        fusion: Fusion | None,
        towers: Iterable[Iterable[nn.Module]],
        heads: Iterable[nn.Module],
        input_norm: nn.BatchNorm1d | None,
    ) -> None:
        super().__init__(plan, tasks, Additive() if fusion is None else fusion)
        self.input_norm = input_norm
        self.towers = nn.ModuleList(nn.ModuleList(tower) for tower in towers)
        self.heads = nn.ModuleList(heads)
        # In training, a BatchNorm before the activation, which scoring folds into the Linear, is also an affine.
        self.affine_plan = replace(plan, affine=True, precision="float32")

    @classmethod
    def from_layers(
        cls,
        plan: Plan,
        tasks: Sequence[str],
        towers: Iterable[Iterable[TowerLayer]],
        heads: Iterable[nn.Linear],
        input_norm: nn.BatchNorm1d | None = None,
        fusion: Fusion | None = None,
    ) -> ResFlow:
        """A ranker around existing layers, which it shares (see :func:`resflow_kernels.fuse`)."""
        model = cls.__new__(cls)
        model._build(plan, tasks, fusion, towers, heads, input_norm)
        return model

    @property
    def served_plan(self) -> Plan:
        """:attr:`plan`."""
        return self.plan

    def canonical_weights(self) -> list[Tensor]:
        """Float32 weights as ``Plan.weight_shapes`` lists them, with BatchNorms folded in float64.

        Raises:
            ValueError: a layer does more than its weights say (hooks, its own ``forward``, another activation).
        """
        reason = training.altered(self)
        if reason is not None:
            raise ValueError(
                f"ResFlow: layers must be as they were made to have canonical weights, got a model where {reason}"
            )
        input_affine = None if self.input_norm is None else norm_affine(self.input_norm)
        towers: list[Tower] = []
        for layers, head in zip(self._tower_layers(), self._head_layers(), strict=True):
            own = (layer.canonical_weights(input_affine if at == 0 else None) for at, layer in enumerate(layers))
            weight = head.weight.double().T
            towers.append(Tower(tuple(own), {"weight": weight[:, 0], "bias": linear_bias(head, weight)}))
        return [weight.float().contiguous() for weight in in_order(self.plan, towers)]

    def _tower_layers(self) -> list[list[TowerLayer]]:
        return [cast("list[TowerLayer]", list(cast(nn.ModuleList, tower))) for tower in self.towers]

    def _head_layers(self) -> list[nn.Linear]:
        return cast("list[nn.Linear]", list(self.heads))

    def _reference_logits(self, x: Tensor) -> Tensor:
        if self.input_norm is not None:
            x = self.input_norm(x)

        def squeezed(head: nn.Module) -> reference.Layer:
            return lambda hidden: head(hidden).squeeze(-1)

        heads = [squeezed(head) for head in self._head_layers()]
        return reference.tower_logits(x, self._tower_layers(), heads, self.plan)

    def _altered(self) -> str | None:
        return training.altered(self)

    def _logits(self, x: Tensor) -> Tensor:
        """Logits ``[B, K]`` with gradients, by the training ops or, if they do not serve the model, the reference."""
        if torch._C._get_tracing_state() or torch.onnx.is_in_onnx_export():  # graphs without ops that pack
            return self._reference_logits(x)
        weight = self._head_layers()[0].weight
        reason = unsupported_dtype(weight.dtype) or ops.unsupported_reason(weight.device.type, training=True)
        reason = reason or training.untrainable_reason(self)
        if reason is None:
            return training.logits(self, x)
        if self.training or self._needs_gradient((x,)):  # otherwise it scores, and _use_fused has warned
            warn_once(f"ResFlow trains with the slow PyTorch reference: {reason}")
        return self._reference_logits(x)

    def _own_rows(self, argument: str, x: Tensor) -> Tensor:
        """Rows in the model's dtype; a float32 model also accepts bfloat16 rows, and those of autocast."""
        wanted = self._head_layers()[0].weight.dtype
        if wanted == torch.float32 and x.dtype in (torch.bfloat16, torch.float16):
            return x.float()
        checks.dtype("ResFlow", argument, x, wanted)
        return x


def NSE(*args: Any, **settings: Any) -> ResFlow:
    """The paper's baseline, naive shared embedding: :class:`ResFlow` without either residual."""
    return ResFlow(*args, **{"feature_residual": False, "logit_residual": False, **settings})


def ESMM(*args: Any, **settings: Any) -> ResFlow:
    """ESMM (SIGIR 2018): conditional towers, ``p_k = p_parent(k) * sigmoid(r_k)``, no residuals."""
    return ResFlow(*args, **{"feature_residual": False, "logit_residual": False, "conditional": True, **settings})
