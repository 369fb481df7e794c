"""The ResFlow ranker as an ``nn.Module``: ordinary parameters, fused scoring in eval mode.

In eval mode, where no gradient is asked for, :class:`ResFlow` scores through ``torch.ops.resflow``; in
training, and in dtypes or on devices the ops do not serve, through :mod:`resflow_kernels.reference`.
:meth:`ResFlow.packed` gives a module that holds nothing but the packed weights: the form to export.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from operator import attrgetter
from typing import Any, cast

import torch
from torch import Tensor, nn

from . import fold, ops, reference
from .contract import WEIGHTS_PER
from .fusion import Additive, Fusion
from .plan import Plan, chain
from .reference import Scores, TopK

ACTIVATION_MODULES: dict[str, Any] = {
    "identity": nn.Identity,
    "relu": nn.ReLU,
    "prelu": nn.PReLU,
    "leaky_relu": nn.LeakyReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


class TowerLayer(nn.Module):
    """One hidden layer of a tower: Linear, activation, and a BatchNorm before or after the activation.

    ``f_k^l`` of the README, without the residual. Any ``nn.Linear``, activation of
    :data:`ACTIVATION_MODULES` and ``nn.BatchNorm1d`` will do, so that a user's own layers can be taken as they are.
    """

    def __init__(
        self,
        linear: nn.Linear,
        activation: nn.Module,
        norm: nn.BatchNorm1d | None = None,
        norm_after_activation: bool = True,
        dropout: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.linear = linear
        self.activation = activation
        self.norm = norm
        self.norm_after_activation = norm_after_activation
        self.dropout = dropout

    def forward(self, value: Tensor) -> Tensor:
        """``[B, H_{l-1}]`` to ``[B, H_l]``."""
        value = self.linear(value)
        if self.norm is not None and not self.norm_after_activation:
            value = self.norm(value)
        value = self.activation(value)
        if self.norm is not None and self.norm_after_activation:
            value = self.norm(value)
        return value if self.dropout is None else self.dropout(value)

    @property
    def activation_name(self) -> str:
        """The activation's name in the plan (LeakyReLU is a PReLU there)."""
        return activation_name(self.activation)

    def canonical_weights(self, affine: bool, input_affine: fold.Affine | None) -> list[Tensor]:
        """The layer's part of ``Plan.weight_shapes``, in float64."""
        weight = self.linear.weight.double().T
        bias = _bias(self.linear, weight)
        if input_affine is not None:
            weight, bias = fold.before_linear(input_affine, weight, bias)
        norm = None if self.norm is None else norm_affine(self.norm)
        if norm is not None and not self.norm_after_activation:
            weight, bias = fold.after_linear(weight, bias, norm)
            norm = None
        weights = [weight, bias]
        if self.activation_name == "prelu":
            weights.append(_slope(self.activation, bias))
        if affine:
            weights += [torch.ones_like(bias), torch.zeros_like(bias)] if norm is None else [norm.scale, norm.shift]
        return weights


def check_layer_settings(activation: str, norm: str | None) -> None:
    """Refuse what :func:`make_layer` does not know."""
    if activation not in ACTIVATION_MODULES:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATION_MODULES)}, got {activation!r}")
    if norm not in (None, "batch"):
        raise ValueError(f"norm must be None or 'batch', got {norm!r}")


def make_layer(
    inputs: int, width: int, activation: str, norm: str | None, norm_after_activation: bool, norm_eps: float
) -> TowerLayer:
    """A new layer ``[B, inputs]`` to ``[B, width]``."""
    act = nn.PReLU(width) if activation == "prelu" else ACTIVATION_MODULES[activation]()
    batch_norm = nn.BatchNorm1d(width, eps=norm_eps) if norm else None
    return TowerLayer(nn.Linear(inputs, width), act, batch_norm, norm_after_activation)


def activation_name(module: nn.Module) -> str:
    """A PyTorch activation module's name in the plan.

    Raises:
        ValueError: the module is none of :data:`ACTIVATION_MODULES`.
    """
    if isinstance(module, (nn.PReLU, nn.LeakyReLU)):
        return "prelu"
    if isinstance(module, nn.GELU):
        return "gelu" if module.approximate == "none" else "gelu_tanh"
    for name in ("identity", "relu", "silu", "tanh", "sigmoid"):
        if type(module) is ACTIVATION_MODULES[name]:
            return name
    raise ValueError(f"activation must be one of {', '.join(ACTIVATION_MODULES)}, got {module}")


def norm_affine(norm: nn.BatchNorm1d) -> fold.Affine:
    """An eval-mode BatchNorm as a scale and shift, in float64."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("BatchNorm1d must keep running statistics (track_running_stats=True) to be scored with")
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    gamma = torch.ones_like(mean) if norm.weight is None else norm.weight.double()
    beta = torch.zeros_like(mean) if norm.bias is None else norm.bias.double()
    return fold.batch_norm(gamma, beta, mean, variance, norm.eps)


def _bias(linear: nn.Linear, weight: Tensor) -> Tensor:
    return weight.new_zeros(weight.shape[1]) if linear.bias is None else linear.bias.double()


def _slope(activation: nn.Module, like: Tensor) -> Tensor:
    if isinstance(activation, nn.LeakyReLU):
        return torch.full_like(like, activation.negative_slope)
    assert isinstance(activation, nn.PReLU)
    return activation.weight.double().expand_as(like)


class _Scorer(nn.Module):
    """What :class:`ResFlow` and :class:`PackedResFlow` share: fusion defaults and the op calls."""

    fusion_weights: Tensor

    def __init__(self, plan: Plan, tasks: Sequence[str], fusion: Fusion) -> None:
        super().__init__()
        self.plan = plan
        self.tasks = tuple(tasks)
        self.fusion = fusion
        weights = torch.tensor(fusion.weights_for(plan.tasks), dtype=torch.float32)
        self.register_buffer("fusion_weights", weights, persistent=False)

    def _fusion(self, weights: Tensor | None, weights_per: str) -> tuple[Tensor, int, int]:
        if weights is None:
            return self.fusion_weights, self.fusion.code, 0
        if weights_per not in WEIGHTS_PER:
            raise ValueError(f"weights_per must be one of {', '.join(WEIGHTS_PER)}, got {weights_per!r}")
        return weights, self.fusion.code, WEIGHTS_PER.index(weights_per)

    def extra_repr(self) -> str:
        return f"tasks={self.tasks}, {self.plan}, fusion={self.fusion}"


class PackedResFlow(_Scorer):
    """A ranker with its weights packed for the fused ops and nothing else: made by :meth:`ResFlow.packed`.

    It cannot be trained, holds one buffer, and exports as one op, so ``torch.export`` and AOTInductor packages
    carry the packed weights. Calls are those of :class:`ResFlow`.
    """

    packed_weights: Tensor

    def __init__(self, plan: Plan, tasks: Sequence[str], fusion: Fusion, packed_weights: Tensor) -> None:
        super().__init__(plan, tasks, fusion)
        self.register_buffer("packed_weights", packed_weights)

    def forward(self, x: Tensor, weights: Tensor | None = None, weights_per: str = "call") -> Scores:
        """See :meth:`ResFlow.forward`."""
        return ops.dense_scores(x, self.packed_weights, self.plan, *self._fusion(weights, weights_per))

    def forward_requests(
        self, user: Tensor, item: Tensor, offsets: Tensor, weights: Tensor | None = None, weights_per: str = "call"
    ) -> Scores:
        """See :meth:`ResFlow.forward_requests`."""
        fusion = self._fusion(weights, weights_per)
        return ops.request_scores(user, item, offsets, self.packed_weights, self.plan, *fusion)

    def top_k(
        self, x: Tensor, k: int, offsets: Tensor | None = None, weights: Tensor | None = None, weights_per: str = "call"
    ) -> TopK:
        """See :meth:`ResFlow.top_k`."""
        offsets = _one_request(x) if offsets is None else offsets
        return ops.dense_topk(x, offsets, self.packed_weights, self.plan, *self._fusion(weights, weights_per), k)

    def top_k_requests(
        self,
        user: Tensor,
        item: Tensor,
        offsets: Tensor,
        k: int,
        weights: Tensor | None = None,
        weights_per: str = "call",
    ) -> TopK:
        """See :meth:`ResFlow.top_k_requests`."""
        fusion = self._fusion(weights, weights_per)
        return ops.request_topk(user, item, offsets, self.packed_weights, self.plan, *fusion, k)

    def catalog_rows(self, item: Tensor, element: str = "bfloat16") -> tuple[Tensor, Tensor]:
        """The items' side of the first layers: table and scales; see :func:`resflow_kernels.ops.catalog_rows`."""
        return ops.catalog_rows(item, self.packed_weights, self.plan, element)

    def forward_catalog(
        self,
        user: Tensor,
        ids: Tensor,
        offsets: Tensor,
        table: Tensor,
        scales: Tensor,
        weights: Tensor | None = None,
        weights_per: str = "call",
    ) -> Scores:
        """Score items of a catalogue by id; see :func:`resflow_kernels.ops.catalog_scores`.

        ``table`` and ``scales`` are those of :meth:`catalog_rows`; a :class:`~resflow_kernels.catalog.Catalog`'s
        become tensors by ``torch.from_numpy`` (bfloat16 by ``.view(torch.bfloat16)``).
        """
        fusion = self._fusion(weights, weights_per)
        return ops.catalog_scores(user, ids, offsets, table, scales, self.packed_weights, self.plan, *fusion)

    def top_k_catalog(
        self,
        user: Tensor,
        ids: Tensor,
        offsets: Tensor,
        table: Tensor,
        scales: Tensor,
        k: int,
        weights: Tensor | None = None,
        weights_per: str = "call",
    ) -> TopK:
        """The ``k`` best of each request of the catalogue form; positions are places in the request's list of ids."""
        fusion = self._fusion(weights, weights_per)
        return ops.catalog_topk(user, ids, offsets, table, scales, self.packed_weights, self.plan, *fusion, k)


class ResFlow(_Scorer):
    """Residual multi-task ranker (ResFlow, KDD 2024, arXiv 2411.09705).

    Args:
        in_features: width ``D`` of a candidate's input row (in the request form ``Du + Di``, user first).
        hidden: widths of each tower's hidden layers.
        tasks: names of the ``K`` tasks, dense feedback first.
        parents: the task each task inherits from, -1 for a root; ``None``: a chain in the order of ``tasks``.
        activation: a name of :data:`ACTIVATION_MODULES`.
        norm: ``"batch"`` for a BatchNorm a hidden layer, or ``None``.
        norm_after_activation: where that BatchNorm stands (the paper's authors: after).
        norm_eps: its eps (the paper's authors: 1e-3).
        input_norm: a BatchNorm on the input row as well.
        feature_residual: add the parent tower's hidden outputs.
        logit_residual: add the parent's logit.
        non_increasing: keep ``p_k <= p_parent(k)`` by passing the task's own logit through ``min(., 0)``.
        fusion: how probabilities become a score (:mod:`resflow_kernels.fusion`).
        precision: what the fused kernels round weights and rows to: ``"float32"``, ``"bfloat16"`` or ``"int8"``
            (:class:`~resflow_kernels.plan.Plan`); training and the reference path are not rounded.
        conditional: ESMM's head, ``p_k = p_parent(k) * sigmoid(r_k)``; excludes ``logit_residual``.

    Raises:
        ValueError: arguments that contradict each other; the message names the one.

    Example:
        >>> model = ResFlow(576, tasks=("ctr", "ctcvr"), fusion=Additive((1, 20))).eval()
        >>> with torch.no_grad():
        ...     logits, probs, score = model(torch.randn(1000, 576))
        >>> score.shape
        torch.Size([1000])
    """

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
    ) -> None:
        check_layer_settings(activation, norm)
        parents = chain(len(tasks)) if parents is None else tuple(parents)
        if len(parents) != len(tasks):
            raise ValueError(f"parents must be one a task ({len(tasks)}), got {len(parents)}")
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
        self._packed: Tensor | None = None
        self._packed_from: tuple[Any, ...] = ()

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

    def forward(self, x: Tensor, weights: Tensor | None = None, weights_per: str = "call") -> Scores:
        """Score candidates.

        Args:
            x: ``[B, D]`` float32.
            weights: fusion weights for this call instead of the model's own: ``[K]``, or ``[B, K]`` with
                ``weights_per="candidate"`` (``K + 1`` values for :class:`ExpectedValue`).
            weights_per: ``"call"`` or ``"candidate"``.

        Returns:
            :class:`Scores`: logits ``[B, K]``, probs ``[B, K]``, score ``[B]``.

        Raises:
            ValueError: an input of the wrong shape, dtype or device; the message names it.
        """
        fusion = self._fusion(weights, weights_per)
        if self._use_fused(x):
            return ops.dense_scores(_rows(x), self._packed_weights(), self.plan, *fusion)
        return ops.reference_scores(self._reference_logits, x, self.plan, *fusion)

    def forward_requests(
        self, user: Tensor, item: Tensor, offsets: Tensor, weights: Tensor | None = None, weights_per: str = "call"
    ) -> Scores:
        """Score the candidates of requests: one user row, many items; the user's part is computed once.

        Args:
            user: ``[R, Du]`` float32, one row a request.
            item: ``[N, Di]`` float32, the candidates of all requests one after another; ``Du + Di = D``.
            offsets: ``[R + 1]`` int64; request ``r`` owns candidates ``offsets[r]`` to ``offsets[r + 1]``.
            weights: as in :meth:`forward`, also ``[R, K]`` with ``weights_per="request"``.

        Returns:
            :class:`Scores` of the ``N`` candidates, to the bit those of :meth:`forward` on the joined rows.
        """
        fusion = self._fusion(weights, weights_per)
        if self._use_fused(user, item):
            packed = self._packed_weights()
            return ops.request_scores(_rows(user), _rows(item), offsets, packed, self.plan, *fusion)
        return ops.reference_request_scores(self._reference_logits, user, item, offsets, self.plan, *fusion)

    def top_k(
        self, x: Tensor, k: int, offsets: Tensor | None = None, weights: Tensor | None = None, weights_per: str = "call"
    ) -> TopK:
        """The ``k`` best candidates of each request, without their scores in memory.

        Args:
            x: ``[B, D]`` float32.
            k: how many, at least 1.
            offsets: ``[R + 1]`` int64; ``None``: all rows are one request.

        Returns:
            :class:`TopK`: scores ``[R, k]`` and positions ``[R, k]`` within the request. Equal scores stand by
            lower position, NaN after every number; a request with fewer than ``k`` candidates is filled up with
            score NaN and position -1.
        """
        offsets = _one_request(x) if offsets is None else offsets
        fusion = self._fusion(weights, weights_per)
        if self._use_fused(x):
            return ops.dense_topk(_rows(x), offsets, self._packed_weights(), self.plan, *fusion, k)
        return ops.reference_topk(self._reference_logits, x, offsets, self.plan, *fusion, k)

    def top_k_requests(
        self,
        user: Tensor,
        item: Tensor,
        offsets: Tensor,
        k: int,
        weights: Tensor | None = None,
        weights_per: str = "call",
    ) -> TopK:
        """:meth:`top_k` of the request form; arguments as in :meth:`forward_requests`."""
        fusion = self._fusion(weights, weights_per)
        if self._use_fused(user, item):
            packed = self._packed_weights()
            return ops.request_topk(_rows(user), _rows(item), offsets, packed, self.plan, *fusion, k)
        return ops.reference_request_topk(self._reference_logits, user, item, offsets, self.plan, *fusion, k)

    def packed(self, precision: str | None = None) -> PackedResFlow:
        """This model with its weights packed once and for all: the form for export and for serving.

        Args:
            precision: another than the model's own.
        """
        plan = self.plan if precision is None else replace(self.plan, precision=precision)
        with torch.no_grad():
            packed = ops.pack_towers(self.canonical_weights(), plan)
        fusion = type(self.fusion)(tuple(self.fusion_weights.tolist()))
        return PackedResFlow(plan, self.tasks, fusion, packed).eval()

    def canonical_weights(self) -> list[Tensor]:
        """Float32 weights as ``Plan.weight_shapes`` lists them, BatchNorms folded in in float64."""
        input_affine = None if self.input_norm is None else norm_affine(self.input_norm)
        weights: list[Tensor] = []
        for tower, head in zip(self._tower_layers(), self._head_layers(), strict=True):
            for level, layer in enumerate(tower):
                weights += layer.canonical_weights(self.plan.affine, input_affine if level == 0 else None)
            weight = head.weight.double().T
            weights += [weight[:, 0], _bias(head, weight)]
        return [weight.float().contiguous() for weight in weights]

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

    def _use_fused(self, *inputs: Tensor) -> bool:
        """Whether this call goes to the ops; where it cannot though the user would expect it, say why once."""
        if self.training:
            return False
        reason = self._obstacle(inputs)
        if reason is not None:
            _warn_once(f"ResFlow scores with the slow PyTorch reference: {reason}")
        return reason is None

    def _obstacle(self, inputs: Sequence[Tensor]) -> str | None:
        parameter = self._head_layers()[0].weight
        if parameter.dtype != torch.float32:
            return f"the fused ops take float32 models, this one is {parameter.dtype}"
        if not ops.available(parameter.device.type):
            return ops.why_unavailable(parameter.device.type)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (*inputs, *self.parameters())):
            return "gradients are enabled and asked for; call it under torch.no_grad() or torch.inference_mode()"
        return None

    def _packed_weights(self) -> Tensor:
        """The packed weights of the current parameters.

        Repacked whenever a parameter or statistic was replaced or written to (its version counter tells).
        A compiler cannot see that, so in its graphs packing is an op of its own; :meth:`packed` avoids it.
        """
        if torch.compiler.is_compiling():
            return ops.pack_towers(self.canonical_weights(), self.plan)
        sources = [*self.parameters(), *self.buffers()]
        if any(tensor.is_inference() for tensor in sources):  # these have no version counter
            return ops.pack_towers(self.canonical_weights(), self.plan)
        state = (*map(id, sources), *map(_version, sources), *map(_pointer, sources))
        if self._packed is None or state != self._packed_from:
            with torch.inference_mode(False), torch.no_grad():
                self._packed = ops.pack_towers(self.canonical_weights(), self.plan)
            self._packed_from = state
        return self._packed

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles repack for themselves: ids and versions mean nothing elsewhere."""
        return {**self.__dict__, "_packed": None, "_packed_from": ()}


def NSE(*args: Any, **settings: Any) -> ResFlow:
    """The paper's baseline, naive shared embedding: :class:`ResFlow` without either residual."""
    return ResFlow(*args, **{"feature_residual": False, "logit_residual": False, **settings})


def ESMM(*args: Any, **settings: Any) -> ResFlow:
    """ESMM (SIGIR 2018): conditional towers, ``p_k = p_parent(k) * sigmoid(r_k)``, no residuals."""
    return ResFlow(*args, **{"feature_residual": False, "logit_residual": False, "conditional": True, **settings})


_version = attrgetter("_version")
_pointer = Tensor.data_ptr


def _rows(x: Tensor) -> Tensor:
    """The ops read rows in place at any row stride, but want a row's elements side by side."""
    return x if x.dim() != 2 or x.stride(1) == 1 or x.shape[1] <= 1 else x.contiguous()


def _one_request(x: Tensor) -> Tensor:
    return torch.tensor([0, x.shape[0]], dtype=torch.int64, device=x.device)


_warned: set[str] = set()


def _warn_once(message: str) -> None:
    if torch.compiler.is_compiling():
        return
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, stacklevel=4)
