"""A ranker's own layers in training, the scoring ops in eval mode where no gradient is needed. Needs torch."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from .. import ops
from ..core.program import AnyPlan
from ..ops import backends, traced
from ..ops.call import OPS
from ..ops.traced import PackedFrom
from ..reference import Scores, TopK
from .packed import PackedResFlow
from .ranker import LayeredRanker, contiguous_rows
from .watch import Contents, Watch

if TYPE_CHECKING:
    from typing_extensions import Self


class Served:
    """A model's packed weights, and what they were made from: its tree of modules, and what its tensors held."""

    def __init__(self, model: nn.Module, before: Served | None) -> None:
        self.watch: Watch = before.watch if before is not None and before.watch.unchanged() else Watch(model)
        self._first = next(model.parameters())
        self._kind = self._first.dtype, self._first.device
        self.contents: Contents | None = None  # once there are packed weights
        self.packed: Tensor | None = None
        self.traced: list[Tensor] | None = None  # what graphs of the model read
        # Whether the ops serve the model, by form and backend.
        self.answers: dict[Any, bool] = {}

    def current(self) -> bool:
        """Whether nothing has changed since."""
        if self.contents is None:
            return self.watch.unchanged() and self._kind == (self._first.dtype, self._first.device)
        return self.watch.unchanged() and self.contents.unchanged()


class FusedRanker(LayeredRanker):
    """A ranker that scores through ``torch.ops.resflow`` in eval mode, from weights packed when they change.

    In dtypes, on devices and with layers that the ops do not serve its own layers compute the logits, and it says so
    once.
    """

    backend: str | None = None
    continued: str | None = None
    """What a fused model does to this ranker's probabilities; ``None``: they are the model's own."""
    _served: Served | None = None
    _key: int

    def __new__(cls, *args: Any, **settings: Any) -> Self:
        """A model, of whatever origin (a call, a copy, a file), with its own key for compiled graphs."""
        made = super().__new__(cls)
        made.__dict__["_key"] = traced.add(made)
        return made

    @property
    @abstractmethod
    def served_plan(self) -> AnyPlan:
        """What the ops take for this ranker: its plan, or the tile program of its layers."""

    @abstractmethod
    def canonical_weights(self) -> list[Tensor]:
        """Float32 weights as ``served_plan.weight_shapes`` lists them, with BatchNorms folded in float64."""

    @abstractmethod
    def _altered(self) -> str | None:
        """Why no op computes what this model's layers do; ``None`` if the layers are unaltered."""

    def _run(
        self, op: str, inputs: tuple[Tensor, ...], fusion_weights: Tensor | None, weights_per: str, *k: int
    ) -> Any:
        scoring = OPS[op]
        packed = self._served_weights(scoring.form.name, inputs)
        if packed is None:
            return super()._run(op, inputs, fusion_weights, weights_per, *k)
        rows = tuple([contiguous_rows(tensor) for tensor in inputs])
        fusion = self._fusion(fusion_weights, weights_per)
        made = scoring.towers(rows, packed, self.served_plan, *fusion, *k, backend=self.backend)
        return TopK(*made) if k else Scores(*made)

    def packed(self, precision: str | None = None) -> PackedResFlow:
        """This model with its weights packed: the form for export and for serving.

        Args:
            precision: a precision other than the model's own.
        """
        plan = self.served_plan if precision is None else replace(self.served_plan, precision=precision)
        with torch.no_grad():
            packed = ops.pack_towers(self.canonical_weights(), plan)
        fusion = type(self.fusion)(tuple(self.fusion_weights.tolist()))
        return PackedResFlow(plan, self.tasks, fusion, packed, self.backend).eval()

    def _served_weights(self, form: str, inputs: Sequence[Tensor]) -> Tensor | None:
        """The packed weights with which the ops serve a call; ``None``: they do not.

        If they unexpectedly cannot, warn once with the reason. The weights are packed again when anything that they
        were packed from has changed (:mod:`.watch`).
        """
        if self.training or self._needs_gradient(inputs) or torch._C._get_tracing_state():
            return None
        if torch.compiler.is_compiling():
            return self._traced_weights(form)
        served = self._served
        if served is None or not served.current():
            served = self._served = Served(self, served)
        question = (form, self.backend)
        serves = served.answers.get(question)
        if serves is None:
            serves = served.answers[question] = self._decide(form)
        if not serves:
            return None
        if served.packed is None:
            # Before they are read: what is written meanwhile is seen by the next call.
            served.contents = Contents(served.watch.tensors)
            with torch.inference_mode(False), torch.no_grad():
                served.packed = ops.pack_towers(self.canonical_weights(), self.served_plan)
        return served.packed

    def _decide(self, form: str) -> bool:
        weight = next(self.parameters())
        asked, precision = self.backend, self.served_plan.precision
        reason, named = self._unsupported(form, weight.device.type, weight.dtype, asked, precision)
        if named and reason is not None:
            name = type(self).__name__
            raise ValueError(f"{name}: backend must be one that serves this model, got {named!r}: {reason}")
        if reason:
            warn_once(reason)
        return reason is None

    def _unsupported(
        self, form: str, device: str, dtype: torch.dtype, asked: str | None, precision: str
    ) -> tuple[str | None, str | None]:
        """Why no scoring op serves this model (an empty text: as requested), and the backend that was requested."""
        # The feature form has no choice of backends.
        plan, name = self.served_plan, type(self).__name__
        backend = device if form == "feature" else backends.decide_quickly(device, plan, form, asked)
        named = None if form == "feature" else backends.named(asked)
        if backend == "reference" and named:
            return "", None
        on = "cuda" if backend == "triton" else device
        unavailable = None if backend == "triton" else ops.unsupported_reason(device)
        imprecise = ops.unsupported_precision(on, precision)
        if unavailable is None and imprecise is not None:
            return f"{name} scores in float32: {imprecise}", None
        reason = unsupported_dtype(dtype) or unavailable or self._altered()
        if reason is None:
            return None, None
        return (reason, named) if named else (f"{name} scores with the slow PyTorch reference: {reason}", None)

    def _needs_gradient(self, inputs: Sequence[Tensor]) -> bool:
        """Whether autograd must record this call; an exported program in eval mode scores."""
        if not torch.is_grad_enabled() or (torch.compiler.is_exporting() and not self.training):
            return False
        return any(tensor.requires_grad for tensor in (*inputs, *self.parameters()))

    def _traced_weights(self, form: str) -> Tensor | None:
        """The packed weights in a compiler's graph.

        An exported program holds them as a constant if the model has scored since its weights changed, else it packs in
        each call. The graphs of ``torch.compile`` ask for them (:meth:`packed_now`).
        """
        if torch.onnx.is_in_onnx_export() or not self._decide(form):  # ONNX has no such op: layer by layer
            return None
        if not torch.compiler.is_exporting():
            return cast(Tensor, PackedFrom(_floats(self), self._key))  # the ops take it in graphs
        served = self._served
        contents = None if served is None or served.packed is None else served.contents
        if served is not None and contents is not None and contents.unchanged():
            return served.packed
        with torch.no_grad():
            return ops.pack_towers(self.canonical_weights(), self.served_plan)

    def packed_now(self, form: str, tensors: Sequence[Tensor]) -> Tensor:
        """The packed weights for a graph that was traced when the ops served this model, and reads these tensors.

        Raises:
            RuntimeError: the model is no longer as it was traced.
        """
        packed, served = self._served_weights(form, ()), self._served
        if packed is not None and served is not None:
            if served.traced is None:
                served.traced = _floats(self)
            if len(served.traced) == len(tensors) and all(map(_same, served.traced, tensors)):
                return packed
        raise RuntimeError(f"{type(self).__name__}: model must be as it was compiled; compile it again")

    def train(self, mode: bool = True) -> Self:
        """Set the mode, as of every module; in training the packed weights are dropped."""
        if mode:
            self._served = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles drop the packed weights: they belong to this object's tensors."""
        state = {**self.__dict__, "_served": None}
        del state["_key"]
        return state


def _floats(model: nn.Module) -> list[Tensor]:
    """Parameters and statistics, in PyTorch's order."""
    return [one for one in (*model.parameters(), *model.buffers()) if one.is_floating_point()]


def _same(own: Tensor, other: Tensor) -> bool:
    address = torch._C._data_address  # type: ignore[attr-defined]
    return own is other or address(own) == address(other)


def unsupported_dtype(dtype: torch.dtype) -> str | None:
    """Why no op computes in a dtype of parameters; ``None`` if one does."""
    return None if dtype == torch.float32 else f"the fused ops take float32 models, this one is {dtype}"


_warned: set[str] = set()


def warn_once(message: str) -> None:
    """Warn, but not twice with one text, and not while a compiler traces."""
    if torch.compiler.is_compiling():
        return
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, stacklevel=6)
