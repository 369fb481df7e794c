"""A ranker's own layers in training, the scoring ops in eval mode where no gradient is needed. Needs torch."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..core.program import AnyPlan, Program
from ..ops import backends
from ..ops.call import OPS
from ..reference import Scores, TopK
from .packed import PackedResFlow
from .ranker import LayeredRanker, contiguous_rows
from .watch import Watch


class FusedRanker(LayeredRanker):
    """A ranker that scores through ``torch.ops.resflow`` in eval mode, from weights packed when they change.

    In dtypes, on devices and with layers that the ops do not serve its own layers compute the logits, and it says so
    once.
    """

    backend: str | None = None
    _packed: Tensor | None = None
    _packed_from: list[Any] | None = None
    _watch: Watch | None = None

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
        if not self._use_fused(scoring.form.name, inputs):
            return super()._run(op, inputs, fusion_weights, weights_per, *k)
        rows = tuple(contiguous_rows(tensor) for tensor in inputs)
        fusion = self._fusion(fusion_weights, weights_per)
        made = scoring.towers(rows, self._packed_weights(), self.served_plan, *fusion, *k, backend=self.backend)
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

    def _use_fused(self, form: str, inputs: Sequence[Tensor]) -> bool:
        """Whether the scoring ops serve this call; if they unexpectedly cannot, warn once with the reason."""
        if self.training or self._needs_gradient(inputs):
            return False
        weight = next(self.parameters())
        question = (form, weight.device.type, weight.dtype, self.backend, self.served_plan.precision)
        if torch.compiler.is_compiling():
            return self._decide(*question)
        answers = self._watched().answers
        if question not in answers:
            answers[question] = self._decide(*question)
        return answers[question]

    def _decide(self, form: str, device: str, dtype: torch.dtype, asked: str | None, precision: str) -> bool:
        reason, named = self._unsupported(form, device, dtype, asked, precision)
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
        if unavailable is None and isinstance(plan, Program) and device != "cpu":
            unavailable = "tile programs run on the CPU"
        reason = unsupported_dtype(dtype) or unavailable or self._altered()
        if reason is None:
            return None, None
        return (reason, named) if named else (f"{name} scores with the slow PyTorch reference: {reason}", None)

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
                return ops.pack_towers(self.canonical_weights(), self.served_plan)
        state = self._watched().state()
        if state is None:
            return ops.pack_towers(self.canonical_weights(), self.served_plan)
        if self._packed is None or state != self._packed_from:
            with torch.inference_mode(False), torch.no_grad():
                self._packed = ops.pack_towers(self.canonical_weights(), self.served_plan)
            self._packed_from = state
        return self._packed

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles drop the packed weights: ids and version counters mean nothing in another object."""
        return {**self.__dict__, "_packed": None, "_packed_from": None, "_watch": None}


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
