"""The ResFlow ranker as an ``nn.Module``: ordinary parameters, fused scoring in eval mode.

In eval mode, if no gradient is needed, :class:`ResFlow` scores through ``torch.ops.resflow``; otherwise, and in
training, its logits come from the training ops (:func:`resflow_kernels.ops.training_logits`). For dtypes, devices and
layers that the ops do not serve, :mod:`resflow_kernels.reference` computes both, and the module warns once.
:meth:`ResFlow.packed` returns a module that holds only the packed weights: the form to export.
"""

from __future__ import annotations

import warnings
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
from ..ops import backends
from ..ops.call import OPS
from ..reference import Scores, TopK
from . import training
from .layers import TowerLayer, check_layer_settings, linear_bias, make_layer, norm_affine
from .packed import PackedResFlow
from .ranker import LayeredRanker, contiguous_rows
from .watch import Watch


class ResFlow(LayeredRanker):
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
    backend: str | None = None

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
        self._packed: Tensor | None = None
        self._packed_from: list[Any] | None = None
        self._watch: Watch | None = None

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

    def _run(
        self, op: str, inputs: tuple[Tensor, ...], fusion_weights: Tensor | None, weights_per: str, *k: int
    ) -> Any:
        scoring = OPS[op]
        if not self._use_fused(scoring.form.name, inputs):
            return super()._run(op, inputs, fusion_weights, weights_per, *k)
        rows = tuple(contiguous_rows(tensor) for tensor in inputs)
        fusion = self._fusion(fusion_weights, weights_per)
        made = scoring.towers(rows, self._packed_weights(), self.plan, *fusion, *k, backend=self.backend)
        return TopK(*made) if k else Scores(*made)

    def packed(self, precision: str | None = None) -> PackedResFlow:
        """This model with its weights packed: the form for export and for serving.

        Args:
            precision: a precision other than the model's own.
        """
        plan = self.plan if precision is None else replace(self.plan, precision=precision)
        with torch.no_grad():
            packed = ops.pack_towers(self.canonical_weights(), plan)
        fusion = type(self.fusion)(tuple(self.fusion_weights.tolist()))
        return PackedResFlow(plan, self.tasks, fusion, packed, self.backend).eval()

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

    def _use_fused(self, form: str, inputs: Sequence[Tensor]) -> bool:
        """Whether the scoring ops serve this call; if they unexpectedly cannot, warn once with the reason."""
        if self.training or self._needs_gradient(inputs):
            return False
        weight = self._head_layers()[0].weight
        question = (form, weight.device.type, weight.dtype, self.backend, self.plan.precision)
        if torch.compiler.is_compiling():
            return self._decide(*question)
        answers = self._watched().answers
        if question not in answers:
            answers[question] = self._decide(*question)
        return answers[question]

    def _decide(self, form: str, device: str, dtype: torch.dtype, asked: str | None, precision: str) -> bool:
        reason, named = self._unsupported(form, device, dtype, asked, precision)
        if named and reason is not None:
            raise ValueError(f"ResFlow: backend must be one that serves this model, got {named!r}: {reason}")
        if reason:
            _warn_once(reason)
        return reason is None

    def _unsupported(
        self, form: str, device: str, dtype: torch.dtype, asked: str | None, precision: str
    ) -> tuple[str | None, str | None]:
        """Why no scoring op serves this model (an empty text: as requested), and the backend that was requested."""
        # The feature form has no choice of backends.
        backend = device if form == "feature" else backends.decide_quickly(device, self.plan, form, asked)
        named = None if form == "feature" else backends.named(asked)
        if backend == "reference" and named:
            return "", None
        on = "cuda" if backend == "triton" else device
        unavailable = None if backend == "triton" else ops.unsupported_reason(device)
        imprecise = ops.unsupported_precision(on, precision)
        if unavailable is None and imprecise is not None:
            return f"ResFlow scores in float32: {imprecise}", None
        reason = _unsupported_dtype(dtype) or unavailable or training.altered(self)
        if reason is None:
            return None, None
        return (reason, named) if named else (f"ResFlow scores with the slow PyTorch reference: {reason}", None)

    def _logits(self, x: Tensor) -> Tensor:
        """Logits ``[B, K]`` with gradients, by the training ops or, if they do not serve the model, the reference."""
        weight = self._head_layers()[0].weight
        reason = _unsupported_dtype(weight.dtype) or ops.unsupported_reason(weight.device.type, training=True)
        reason = reason or training.untrainable_reason(self)
        if reason is None:
            return training.logits(self, x)
        if self.training or self._needs_gradient((x,)):  # otherwise it scores, and _use_fused has warned
            _warn_once(f"ResFlow trains with the slow PyTorch reference: {reason}")
        return self._reference_logits(x)

    def _own_rows(self, argument: str, x: Tensor) -> Tensor:
        """Rows in the model's dtype; a float32 model also accepts bfloat16 rows, and those of autocast."""
        wanted = self._head_layers()[0].weight.dtype
        if wanted == torch.float32 and x.dtype in (torch.bfloat16, torch.float16):
            return x.float()
        checks.dtype("ResFlow", argument, x, wanted)
        return x

    def _needs_gradient(self, inputs: Sequence[Tensor]) -> bool:
        """Whether autograd must record this call; an exported program in eval mode scores."""
        if not torch.is_grad_enabled() or (torch.compiler.is_exporting() and not self.training):
            return False
        return any(tensor.requires_grad for tensor in (*inputs, *self.parameters()))

    def _watched(self) -> Watch:
        watch = self._watch
        if watch is None or watch.changed():
            watch = self._watch = Watch(self)
        return watch

    def _packed_weights(self) -> Tensor:
        """The packed weights of the current parameters.

        They are packed again when a parameter or statistic was replaced or modified (known by its version counter). A
        compiler cannot see that, so in its graphs packing is an op of its own; :meth:`packed` avoids it.
        """
        if torch.compiler.is_compiling():
            with torch.no_grad():
                return ops.pack_towers(self.canonical_weights(), self.plan)
        state = self._watched().state()
        if state is None:
            return ops.pack_towers(self.canonical_weights(), self.plan)
        if self._packed is None or state != self._packed_from:
            with torch.inference_mode(False), torch.no_grad():
                self._packed = ops.pack_towers(self.canonical_weights(), self.plan)
            self._packed_from = state
        return self._packed

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles drop the packed weights: ids and version counters mean nothing in another object."""
        return {**self.__dict__, "_packed": None, "_packed_from": None, "_watch": None}


def NSE(*args: Any, **settings: Any) -> ResFlow:
    """The paper's baseline, naive shared embedding: :class:`ResFlow` without either residual."""
    return ResFlow(*args, **{"feature_residual": False, "logit_residual": False, **settings})


def ESMM(*args: Any, **settings: Any) -> ResFlow:
    """ESMM (SIGIR 2018): conditional towers, ``p_k = p_parent(k) * sigmoid(r_k)``, no residuals."""
    return ResFlow(*args, **{"feature_residual": False, "logit_residual": False, "conditional": True, **settings})


def _unsupported_dtype(dtype: torch.dtype) -> str | None:
    return None if dtype == torch.float32 else f"the fused ops take float32 models, this one is {dtype}"


_warned: set[str] = set()


def _warn_once(message: str) -> None:
    if torch.compiler.is_compiling():
        return
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, stacklevel=6)
