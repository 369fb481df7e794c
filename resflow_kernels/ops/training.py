"""The training ops: a batch's logits, and the gradients of all their inputs.

``train_forward`` and ``train_backward`` compute in float32 whatever the plan's precision. They are independent of
autograd: :func:`training_logits` combines them in a function outside the ops, so that scoring has no overhead from it.
On CPU tensors they are compiled; on a GPU they are Triton kernels, which are imported at the first call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..contract import STATISTICS, TRAINING_OPS
from ..core import checks, outputs
from ..core.plan import Plan
from . import backends, library

# Pre-activations are kept for the backward pass unless all layers' together exceed this many bytes.
KEPT_BYTES = 1 << 30


def training_logits(
    x: Tensor,
    weights: Sequence[Tensor],
    plan: Plan,
    statistics: str = "given",
    eps: float = 1e-5,
    recompute: bool | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of a batch, differentiable once in ``x`` and all weights.

    Args:
        x: ``[B, D]`` float32, contiguous rows with any row stride.
        weights: contiguous float32 tensors as ``plan.weight_shapes`` lists them, except that matrices are
            ``[outputs, inputs]`` as in ``nn.Linear``.
        plan: the network; its precision has no effect.
        statistics: the meaning of each layer's ``scale`` and ``shift``: ``"given"``: applied after the activation
            unchanged; ``"batch_after"`` or ``"batch_before"``: gamma and beta of a BatchNorm after or before the
            activation, which normalises by the batch's own mean and variance.
        eps: the eps of those BatchNorms.
        recompute: compute the pre-activations again in the backward pass instead of keeping them; ``None``: only if
            they exceed 1 GiB.
        backend: a name of ``backends.BACKENDS``, or ``None``: that of ``RESFLOW_BACKEND``, else ``"auto"``.

    The weights' gradients are slices of one tensor. ``torch.func`` transforms and forward mode are not supported.

    Returns:
        Logits ``[B, K]``; the batch's mean and biased variance, each ``[sum of K * H_l]`` in the order layer, task,
        channel, without gradient (empty for ``"given"``).

    Raises:
        ValueError: bad input; the message names the argument, what was expected and what was got.
    """
    checks.matrix("train_forward", "x", x, plan.in_features, torch.float32)
    checks.name_of("train_forward", "statistics", statistics, STATISTICS)
    encoded = replace(plan, precision="float32").encoded if plan.precision != "float32" else plan.encoded
    if recompute is None:
        recompute = outputs.pre_activation_count(plan, x.shape[0]) * 4 > KEPT_BYTES
    keep = not recompute and torch.is_grad_enabled()
    interpreted = _is_interpreted(x, plan, backend)
    return _TrainingLogits.apply(x, encoded, STATISTICS.index(statistics), eps, keep, interpreted, *weights)


def _is_interpreted(x: Tensor, plan: Plan, backend: str | None) -> bool:
    """Whether Triton's kernels compute on CPU tensors, for which the ops use the compiled ones."""
    if backend is None and (x.is_cuda or backends.direct_cpu):
        return False
    own = plan if plan.precision == "float32" else replace(plan, precision="float32")
    return backends.decide(x.device.type, own, "training", backend).backend == "triton" and not x.is_cuda


def _call(interpreted: bool, op: str, *arguments: Any) -> Any:
    if interpreted:
        from ..triton import training

        return getattr(training, op)(*arguments)
    return library.call(op, *arguments)


class _TrainingLogits(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        plan: tuple[int, ...],
        statistics: int,
        eps: float,
        keep: bool,
        interpreted: bool,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        logits, *state = _call(interpreted, "train_forward", x, list(weights), plan, statistics, eps, keep)
        ctx.save_for_backward(x, *state, *weights)
        ctx.settings, ctx.interpreted = (plan, statistics, eps), interpreted
        _, _, mean, variance = state
        ctx.mark_non_differentiable(mean, variance)
        return logits, mean, variance

    @staticmethod
    def backward(ctx: Any, logit_gradients: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, task_logits, pre_activations, mean, variance, *weights = ctx.saved_tensors
        x_needed = ctx.needs_input_grad[0]
        with torch.no_grad():
            x_gradients, flat = _call(
                ctx.interpreted,
                "train_backward",
                logit_gradients.contiguous(),
                x,
                weights,
                task_logits,
                pre_activations,
                mean,
                variance,
                *ctx.settings,
                x_needed,
            )
            parts = flat.split([weight.numel() for weight in weights])
            gradients = [x_gradients, *(part.view(weight.shape) for part, weight in zip(parts, weights, strict=True))]
        if torch.is_grad_enabled():  # create_graph was passed
            gradients = list(_Once.apply(len(gradients), *gradients, logit_gradients, x, *weights))
        return (gradients[0] if x_needed else None, None, None, None, None, None, *gradients[1:])


class _Once(torch.autograd.Function):
    """Makes differentiating a second time raise instead of returning zero.

    PyTorch's ``once_differentiable`` does not catch gradients that depend only on x or the weights.
    """

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return tuple(tensor.view_as(tensor) for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> NoReturn:  # type: ignore[override]
        raise RuntimeError(
            "training_logits: gradients must be differentiated once, got a second time (no op has that formula): set "
            "RESFLOW_NO_LIBRARY=1, with which modules compute in plain PyTorch"
        )


def _on_gpus(name: str) -> Callable[..., Any]:
    def kernel(*arguments: Any) -> Any:
        from ..triton import training

        return getattr(training, name)(*arguments)

    return kernel


if backends.no_triton_on_gpus() is None:
    library.implement({name: _on_gpus(name) for name in TRAINING_OPS}, "CUDA")
