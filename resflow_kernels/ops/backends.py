"""Which backend computes a call: one rule for the ops, the modules and ``resflow info``.

``auto`` takes the compiled kernels of the tensors' device (``cpu``, ``cuda``) where they are loaded and have the form,
else ``triton`` where it can run, else ``reference``. Another name takes that backend, or says why it cannot. A call
names one, or its module does, or the environment variable ``RESFLOW_BACKEND``, which is read at import.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch

from ..core import checks
from ..core.plan import Plan
from . import library

BACKENDS = ("auto", "cuda", "triton", "cpu", "reference")
FORMS = ("dense", "request", "catalogue", "feature", "twin", "training")
TRITON_FORMS = ("dense", "request", "catalogue", "training")
REFERENCE_FORMS = ("dense", "request", "catalogue")

library.load()


class Decision(NamedTuple):
    """A backend, and why it was taken."""

    backend: str
    reason: str


class Installed(NamedTuple):
    """What there is: for each backend why it cannot be had, or None."""

    cpu: str | None
    cuda: str | None
    triton: str | None  # on GPUs
    triton_interpreter: str | None  # on tensors of the CPU


def choose(device: str, plan: Plan, form: str, asked: str, installed: Installed) -> Decision:
    """The backend for tensors of a type of device, of the contract's forms.

    Raises:
        ValueError: the backend that is asked for cannot serve, and why.
    """
    if asked not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {asked!r}")
    if asked != "auto":
        obstacle = _obstacle(asked, device, plan, form, installed)
        if obstacle is not None:
            raise ValueError(f"backend must be one that serves this call, got {asked!r}: {obstacle}")
        return Decision(asked, "asked for")
    own = "cpu" if device == "meta" else device
    has_ops = own in ("cpu", "cuda")
    reasons = [] if has_ops else [f"there are no compiled ops for {own} tensors"]
    for backend in (*((own,) if has_ops else ()), "triton", "reference"):
        # A precision is refused by the backend that would take it otherwise, with the precisions there are.
        obstacle = _obstacle(backend, own, None, form, installed)
        if obstacle is None:
            return Decision(backend, "; ".join(reasons) or f"the kernels of {own} tensors are loaded")
        reasons.append(f"not {backend}: {obstacle}")
    return Decision("cpu" if own == "cpu" else "cuda", "; ".join(reasons))  # whose ops say what is missing


def _obstacle(backend: str, device: str, plan: Plan | None, form: str, installed: Installed) -> str | None:
    """Why a backend does not serve; ``None`` if it does. Without a plan: whatever the plan."""
    if backend == "reference":
        return None if form in REFERENCE_FORMS else f"no op of the {form} form runs on it"
    kernels = "cuda" if backend == "triton" else backend
    if backend == "triton":
        if form not in TRITON_FORMS:
            return f"it has the forms {', '.join(TRITON_FORMS)}, not {form}"
        missing = installed.triton_interpreter if device == "cpu" else installed.triton
    elif backend == "cuda" and form == "training":
        return "its kernels score; those of training on GPUs are triton's"
    elif backend != device:
        return f"it serves {backend} tensors, these are {device}'s"
    else:
        missing = getattr(installed, backend)
    if missing is not None:
        return missing
    known = checks.precisions_of(kernels)
    if plan is not None and plan.precision not in known:
        return f"it computes in {', '.join(known)}, not in {plan.precision}"
    return None


def has_triton() -> bool:
    """Whether Triton is installed; a folder of that name is not it."""
    spec = find_spec("triton")
    return spec is not None and spec.origin is not None


@cache
def installed() -> Installed:
    """What this process can run."""
    (loaded, why), (cuda, why_no_cuda) = library.status(), library.cuda_status()
    no_triton = None if has_triton() else "triton is not installed"
    if no_triton is None and not loaded:
        no_triton = f"its weights are packed by the compiled ops: {why}"
    not_interpreting = None if _interpreting() else "on CPU tensors it runs under TRITON_INTERPRET=1 alone"
    return Installed(
        cpu=None if loaded else why,
        cuda=library.too_old() if cuda else why_no_cuda,
        triton=no_triton or why_no_triton_on_gpus(),
        triton_interpreter=no_triton or not_interpreting,
    )


def why_no_triton_on_gpus() -> str | None:
    """Why Triton's kernels do not run on GPU tensors; ``None`` if they do."""
    if os.environ.get("RESFLOW_NO_LIBRARY") == "1":
        return "RESFLOW_NO_LIBRARY=1 asks for the reference"
    if not has_triton():
        return "triton is not installed"
    if _interpreting():
        return "TRITON_INTERPRET=1 interprets kernels, on CPU tensors"
    return None if torch.cuda.device_count() > 0 else "there is no GPU"


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


_named = os.environ.get("RESFLOW_BACKEND", "auto")
_loaded_on = frozenset(
    kind for kind, (loaded, _) in (("cpu", library.status()), ("cuda", library.cuda_status())) if loaded
)
# Whether `auto` on such tensors means their compiled ops, whatever the plan and the form: such calls go straight there.
# Whether a GPU is new enough for them is not asked at import, because it starts CUDA.
direct_cpu = _named == "auto" and "cpu" in _loaded_on
direct_cuda = False


def named(asked: str | None) -> str | None:
    """The backend that a call or the environment names; ``None``: neither does."""
    name = asked or _named
    return None if name == "auto" else name


@cache
def decide(device: str, plan: Plan, form: str, asked: str | None = None) -> Decision:
    """:func:`choose` with what is installed; without ``asked`` what ``RESFLOW_BACKEND`` names, or ``auto``."""
    try:
        return choose(device, plan, form, asked or _named, installed())
    except ValueError as error:
        if asked:
            raise
        raise ValueError(f"RESFLOW_BACKEND: {error}") from None


def decide_quickly(device: str, plan: Plan, form: str, asked: str | None) -> str:
    """:func:`decide`'s backend; hashing a plan takes longer than this."""
    global direct_cuda
    if asked is None and _named == "auto" and device in _loaded_on:
        if device == "cpu":
            return device
        if library.too_old() is None:
            if not torch.compiler.is_compiling():
                direct_cuda = True
            return device
    return decide(device, plan, form, asked).backend


def why_untrainable(device: str) -> str | None:
    """Why no backend trains on this type of device, or not the one that ``RESFLOW_BACKEND`` names.

    Asked at import: with ``auto`` it leaves :func:`installed` alone, so that Triton's interpreter can still be set.
    """
    if _named == "auto":
        reason = why_no_triton_on_gpus() if device == "cuda" else None
        return reason and f"the training ops of {device} tensors are Triton's: {reason}"
    try:
        decide(device, Plan(1, (1,), (-1,)), "training")
    except ValueError as error:
        return str(error)
    return None


def function_of(name: str, form: str, device: str, plan: Plan, asked: str | None) -> Callable[..., Any] | None:
    """An op's function on the backend for a call; ``None``: the compiled op."""
    backend = decide_quickly(device, plan, form, asked)
    if backend == "triton":
        from ..triton.dispatch import FORMS as TRITON_FUNCTIONS

        return TRITON_FUNCTIONS[name]
    if backend == "reference":
        from ..reference.packed import FUNCTIONS

        return FUNCTIONS[name]
    return None
