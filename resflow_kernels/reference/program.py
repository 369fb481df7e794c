"""A tile program's steps in plain PyTorch, in any dtype: the ground truth of ``contract/program.def``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..contract import STEPS, complete
from ..core.program import Program, Row, Step
from . import activations
from .rounding import rounded

Parts = list[Tensor]  # a step's inputs


def program_outputs(x: Tensor, weights: Sequence[Tensor], program: Program) -> Tensor:
    """Output columns ``[B, program.output_columns]`` of rows ``x [B, D]``.

    Args:
        x: input rows.
        weights: as ``program.weight_shapes`` lists them, of ``x``'s dtype.
        program: its linear steps round weights and rows to its precision.
    """
    values = [x]
    left = iter(weights)
    for step in program.steps:
        own = {kind: next(left) for kind, _ in step.weights()}
        values.append(_run(step, own, values, program.precision))
    return torch.cat(_read(program.outputs, values), dim=1)


def _read(row: Row, values: Sequence[Tensor]) -> Parts:
    return [values[value][:, column : column + width] for value, column, width in row]


def _run(step: Step, own: dict[str, Tensor], values: Sequence[Tensor], precision: str) -> Tensor:
    inputs = _read(step.inputs, values)
    if step.kind == "linear":
        rows = torch.cat(inputs, dim=1)
        result = rounded(rows, precision) @ rounded(own["weight"], precision, 0) + own["bias"]
    else:
        result = _CORES[step.kind](inputs, step)
    result = activations.ROWS[step.activation].formula(result, own.get("slope"))
    if step.affine:
        result = result * own["scale"] + own["shift"]
    for factor in _read(step.factors, values):
        result = result * factor.repeat_interleave(step.width // factor.shape[1], dim=1)
    for addend in _read(step.addends, values):
        result = result + addend
    return result


def _groups(parts: Parts, step: Step) -> Tensor:
    """The inputs ``[B, groups, columns of one]``."""
    return torch.cat(parts, dim=1).unflatten(1, (step.groups, -1))


def _softmax(parts: Parts, step: Step) -> Tensor:
    return torch.softmax(_groups(parts, step), dim=2).flatten(1)


def _sum(parts: Parts, step: Step) -> Tensor:
    return _groups(parts, step).sum(2)


def _mix(parts: Parts, step: Step) -> Tensor:
    gates, values = parts[0], torch.stack(parts[1:], dim=1)
    return (gates[:, :, None] * values).sum(1)


def _layer_norm(parts: Parts, step: Step) -> Tensor:
    groups = _groups(parts, step)
    centered = groups - groups.mean(2, keepdim=True)
    return (centered / (centered.square().mean(2, keepdim=True) + step.epsilon).sqrt()).flatten(1)


def _rms_norm(parts: Parts, step: Step) -> Tensor:
    groups = _groups(parts, step)
    return (groups / (groups.square().mean(2, keepdim=True) + step.epsilon).sqrt()).flatten(1)


def _l2_norm(parts: Parts, step: Step) -> Tensor:
    groups = _groups(parts, step)
    return (groups / groups.norm(dim=2, keepdim=True).clamp_min(step.epsilon)).flatten(1)


def _fm(parts: Parts, step: Step) -> Tensor:
    fields = _groups(parts, step)
    return 0.5 * (fields.sum(1).square() - fields.square().sum(1))


def _dot(parts: Parts, step: Step) -> Tensor:
    fields = _groups(parts, step)
    first, second = torch.triu_indices(step.groups, step.groups, 1, device=fields.device)
    return (fields @ fields.transpose(1, 2))[:, first, second]


_CORES: dict[str, Callable[[Parts, Step], Tensor]] = complete(
    "step",
    tuple(name for name in STEPS if name != "linear"),
    {
        "copy": lambda parts, step: torch.cat(parts, dim=1),
        "softmax": _softmax,
        "sum": _sum,
        "mix": _mix,
        "layer_norm": _layer_norm,
        "rms_norm": _rms_norm,
        "l2_norm": _l2_norm,
        "fm": _fm,
        "dot": _dot,
    },
)
