"""Routes every call from its public function to the compiled op, or to another backend."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..contract import FORMS, FUSIONS, PRECISION_ROWS, TABLE_PRECISIONS, WEIGHTS_PER
from ..core import checks
from ..core.forms import form_of
from ..core.program import AnyPlan
from . import backends, library
from .traced import PackedFrom, name_of

_FUSION_CODES = {name: code for code, name in enumerate(FUSIONS)}
_WEIGHTS_PER_CODES = {name: code for code, name in enumerate(WEIGHTS_PER)}


class ScoringOp:
    """A scoring op of ``torch.ops.resflow``, a form with an ending, and the steps that Python adds to it.

    Python refuses inputs that require a gradient (an autograd kernel would slow every call), turns names into codes,
    and selects another backend's function if one is named. The op checks everything else.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.form, ranks = form_of(name)
        self._arguments = (*self.form.inputs, *(self.form.topk_inputs if ranks else ()))
        self._has_backends = "triton" in self.form.flags or "reference" in self.form.flags

    def towers(
        self,
        inputs: tuple[Any, ...],
        packed: Tensor | PackedFrom,
        plan: AnyPlan,
        fusion_weights: Tensor,
        fusion: str,
        weights_per: str,
        *k: int,
        options: tuple[Any, ...] = (),
        backend: str | None = None,
    ) -> Any:
        """Call a form whose logits come from packed towers; inputs and options are in the order of the form's row."""
        name = self.name
        if torch.is_grad_enabled() and _any_asks_for_gradient((*inputs, fusion_weights, *options)):
            self._refuse_gradients(inputs, fusion_weights, options)
        codes = _codes(name, fusion, weights_per)
        if type(packed) is PackedFrom:
            return library.call(name_of(name), *inputs, *packed, fusion_weights, plan.encoded, *codes, *k, *options)
        if self._has_backends:
            first = inputs[0]
            if backend is not None or not (backends.direct_cpu if first.is_cpu else backends.direct_cuda):
                other = backends.function_of(name, self.form.name, first.device.type, plan, backend)
                if other is not None:
                    return other(*inputs, packed, fusion_weights, plan.encoded, *codes, *k)
        try:  # library.call inlined, which saves a step per request
            op = getattr(library.namespace, name)
            return op(*inputs, packed, fusion_weights, plan.encoded, *codes, *k, *options)
        except RuntimeError as error:
            raise library.promised(name, error) from None

    def twin(
        self,
        inputs: tuple[Tensor, ...],
        fusion_weights: Tensor,
        parents: Sequence[int],
        non_increasing: bool,
        fusion: str,
        weights_per: str,
        *k: int,
    ) -> Any:
        """Call a form whose logits are dot products; ``inputs`` are in the order of the form's row."""
        name = self.name
        if torch.is_grad_enabled() and _any_asks_for_gradient((*inputs, fusion_weights)):
            self._refuse_gradients(inputs, fusion_weights)
        codes = _codes(name, fusion, weights_per)
        return library.call(name, *inputs, fusion_weights, list(parents), non_increasing, *codes, *k)

    def _refuse_gradients(self, inputs: tuple[Any, ...], fusion_weights: Tensor, options: tuple[Any, ...] = ()) -> None:
        names = (*self._arguments, "fusion_weights", *(self.form.options if options else ()))
        for argument, value in zip(names, (*inputs, fusion_weights, *options), strict=True):
            if isinstance(value, Tensor):
                checks.no_grad(self.name, **{argument: value})
            elif isinstance(value, (list, tuple)):
                for index, tensor in enumerate(value):
                    if isinstance(tensor, Tensor):
                        checks.no_grad(self.name, **{f"{argument}[{index}]": tensor})


def _any_asks_for_gradient(values: Iterable[Any]) -> bool:
    for value in values:
        if isinstance(value, Tensor):
            if value.requires_grad:
                return True
        elif isinstance(value, (list, tuple)) and _any_asks_for_gradient(value):
            return True
    return False


OPS = {name: ScoringOp(name) for name in (f"{form}_{ending}" for form in FORMS for ending in ("scores", "topk"))}


def table_dtype(op: str, dtype: str) -> int:
    """The code of the precision of a table's rows.

    Raises:
        ValueError: an unknown dtype.
    """
    checks.name_of(op, "dtype", dtype, TABLE_PRECISIONS)
    return PRECISION_ROWS[dtype].code


def other_backend(op: str, form: str, tensor: Tensor, plan: AnyPlan, backend: str | None) -> partial[Any] | None:
    """An op's function on the backend for a tensor's device; ``None``: the compiled op."""
    if backend is None and (backends.direct_cpu if tensor.is_cpu else backends.direct_cuda):
        return None
    return backends.function_of(op, form, tensor.device.type, plan, backend)


def _codes(op: str, fusion: str, weights_per: str) -> tuple[int, int]:
    try:
        return _FUSION_CODES[fusion], _WEIGHTS_PER_CODES[weights_per]
    except (KeyError, TypeError):
        checks.name_of(op, "fusion", fusion, FUSIONS)
        checks.name_of(op, "weights_per", weights_per, WEIGHTS_PER)
        raise
