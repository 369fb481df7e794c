"""What ``fuse`` does to one model: how much of it runs inside, how far it is from eager, and how fast."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from resflow_kernels import fuse
from resflow_kernels.benchmark.baselines import threads_of
from resflow_kernels.benchmark.interleave import Schedule, interleave
from resflow_kernels.convert import CannotFuse

Row = dict[str, Any]
Call = Callable[[], object]

BATCHES = (64, 17)  # the first is the example's; the second shows that the graph is not for one size
SPEED_BATCHES = (1, 128, 4096)
TOLERANCE = 1e-5
WHOLE, NOTHING = 0.99, 0.01  # shares of the multiply-adds
ACCEPTED = ("fused", "partly fused")

_ROUNDS = (7, 60)  # fewest and most
_BURST_SECONDS = 0.02


@dataclass(frozen=True)
class Case:
    """One configuration of a model.

    Args:
        name: the name in the report.
        build: makes the model.
        inputs: the positional arguments of a call with that many candidates, the same on every call.
        kind: single task, multi-task, sequence or two towers.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[Any, ...]]
    kind: str = "single task"


def measure(case: Case, seconds: float | None = None) -> Row:
    """What becomes of a case, as a flat record; timed for about ``seconds`` per batch size if that is given."""
    record: Row = {"name": case.name, "kind": case.kind, "message": ""}
    status = "not built"
    try:
        model = built(case)
        example = case.inputs(BATCHES[0])
        status = "crashed"
        began = time.perf_counter()
        fused = fuse(model, example)
        record["fuse_seconds"] = time.perf_counter() - began
        status = "fails at the call"
        record["difference"] = max(difference(model, fused, case.inputs(batch)) for batch in BATCHES)
        record["share_inside"] = share_inside(model, fused, example)
        record["status"] = classify(record["difference"], record["share_inside"])
        if record["status"] == "partly fused":
            record["message"] = left_outside(model, example)
        elif record["status"] == "wrong":
            record["message"] = f"differs from eager by {record['difference']:.1e}"
    except CannotFuse as refusal:
        return record | {"status": "refused", "message": str(refusal)}
    except Exception as error:
        return record | {"status": status, "message": _text(error)}
    if seconds and record["status"] in ACCEPTED:
        record["speed"] = [speed(case, model, fused, batch, seconds) for batch in SPEED_BATCHES]
    return record


def classify(difference: float, share: float) -> str:
    """The outcome's name.

    >>> classify(1e-7, 1.0), classify(1e-7, 0.5), classify(1e-3, 1.0)
    ('fused', 'partly fused', 'wrong')
    """
    if not difference <= TOLERANCE:
        return "wrong"
    return "fused" if share >= WHOLE else "partly fused" if share >= NOTHING else "nothing inside"


def built(case: Case) -> nn.Module:
    """The model in eval mode, with drawn weights; an error if its outputs do not vary, which would show nothing."""
    torch.manual_seed(0)
    model = randomize(case.build()).eval()
    with torch.inference_mode():
        outputs = tensors(model(*case.inputs(BATCHES[0])))
    if not any(float(output.double().std()) > 1e-4 for output in outputs):
        raise ValueError("eager outputs do not vary")
    return model


@torch.no_grad()
def randomize(model: nn.Module) -> nn.Module:
    """Draw weights and BatchNorm statistics: many packages initialize to outputs that differ by 1e-4."""
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        else:
            inputs = parameter.shape[-1] if parameter.shape[-1] > 1 else parameter.shape[-2]  # a convolution ends in 1
            spread = 0.3 if "embed" in name.lower() else (1.5 / inputs) ** 0.5
            parameter.copy_(torch.randn_like(parameter) * spread)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(torch.randn_like(buffer) * 0.1)
        elif name.endswith("running_var"):
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    return model


def tensors(output: object) -> list[Tensor]:
    """All tensors of an output: a tensor, or a sequence or mapping of outputs."""
    if isinstance(output, Tensor):
        return [output]
    parts = list(output.values()) if isinstance(output, Mapping) else output
    return [tensor for part in parts for tensor in tensors(part)] if isinstance(parts, (list, tuple)) else []


def difference(model: nn.Module, fused: nn.Module, inputs: tuple[Any, ...]) -> float:
    """Largest difference of a call's outputs, relative to the largest output where that is above 1."""
    with threads_of(1):
        wanted, found = tensors(model(*inputs)), tensors(fused(*inputs))
    shapes = [[tuple(tensor.shape) for tensor in outputs] for outputs in (wanted, found)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"eager returns shapes {shapes[0]}, fused {shapes[1]}")
    pairs = [(a.double(), b.double()) for a, b in zip(wanted, found, strict=True)]
    scale = max(1.0, *(float(a.abs().max()) for a, _ in pairs))
    gaps = [float((a - b).abs().nan_to_num(torch.inf).max()) for a, b in pairs]
    return max(gaps) / scale


def share_inside(model: nn.Module, fused: nn.Module, inputs: tuple[Any, ...]) -> float:
    """The share of a call's multiply-adds that PyTorch's own matrix products no longer run."""
    total, left = _multiply_adds(model, inputs), _multiply_adds(fused, inputs)
    return 1 - left / total if total else 1.0


def _multiply_adds(model: nn.Module, inputs: tuple[Any, ...]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*inputs)
    return int(counter.get_total_flops() // 2)


def left_outside(model: nn.Module, inputs: tuple[Any, ...]) -> str:
    """Which modules' matrix products stay PyTorch's, and why."""
    report = fuse.explain(model, inputs)  # type: ignore[attr-defined]
    parts = [f"{', '.join(part.modules[:3])}: {part.reason}" for part in report.left if part.multiply_adds]
    return "; ".join([*parts, *report.remarks])


def speed(case: Case, model: nn.Module, fused: nn.Module, batch: int, seconds: float) -> Row:
    """Median seconds of eager and fused on one thread, interleaved; a problem instead where either fails."""
    inputs = case.inputs(batch)
    try:
        with torch.inference_mode():
            model(*inputs)
    except Exception as error:  # some models lose the batch at one candidate
        return {"batch": batch, "problem": f"eager fails: {_text(error)}"}
    try:
        gap = difference(model, fused, inputs)
    except Exception as error:
        return {"batch": batch, "problem": f"fused fails: {_text(error)}"}
    if not gap <= TOLERANCE:
        return {"batch": batch, "problem": f"fused is wrong by {gap:.0e}"}
    with threads_of(1):
        medians = timed({"eager": lambda: model(*inputs), "fused": lambda: fused(*inputs)}, seconds)
    return {"batch": batch, **medians}


def timed(calls: Mapping[str, Call], seconds: float) -> dict[str, float]:
    """Median seconds per call, of as many rounds as the time allows."""
    began = time.perf_counter()
    for call in calls.values():
        call()
    once = max(time.perf_counter() - began, _BURST_SECONDS * len(calls))
    rounds = min(max(int(seconds / once), _ROUNDS[0]), _ROUNDS[1])
    # No rest: on one thread there are no others that would still be awake.
    schedule = Schedule(rounds, burst_seconds=_BURST_SECONDS, most_rest_seconds=0.0)
    return {name: timing.median for name, timing in interleave(calls, schedule).items()}


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
