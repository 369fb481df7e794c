"""Chooses the backend that computes a call: one rule for the ops, the modules and ``resflow info``.

``auto`` selects the compiled kernels of the tensors' device (``cpu``, ``cuda``) if they are loaded and support the
form, otherwise ``triton`` if it can run, otherwise ``reference``. Any other name selects that backend, or raises with
the reason why it cannot serve. A call names a backend, or its module does, or the environment variable
``RESFLOW_BACKEND``, which is read at import.
"""

from __future__ import annotations

import os
from functools import cache, partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch

from ..contract import FORMS, forms_with
from ..core import checks
from ..core.plan import Plan
from ..core.program import AnyPlan
from . import library

BACKENDS = ("auto", "cuda", "triton", "cpu", "reference")
SCORING_FORMS = tuple(FORMS)
TRITON_FORMS = (*forms_with("triton"), "training")
REFERENCE_FORMS = forms_with("reference")

library.load()


class Decision(NamedTuple):
    """A backend, and the reason for choosing it."""

    backend: str
    reason: str


class Installed(NamedTuple):
    """The installed backends: for each the reason why it is unavailable, or ``None``."""

    cpu: str | None
    cuda: str | None
    triton: str | None  # on GPUs
    triton_interpreter: str | None  # on tensors of the CPU


def choose(device: str, plan: AnyPlan, form: str, asked: str, installed: Installed) -> Decision:
    """Choose the backend for tensors on a type of device, for one of the contract's forms.

    Raises:
        ValueError: the requested backend cannot serve the call; the message says why.
    """
    if asked not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {asked!r}")
    if asked != "auto":
        reason = _unsupported(asked, device, plan, form, installed)
        if reason is not None:
            raise ValueError(f"backend must be one that serves this call, got {asked!r}: {reason}")
        return Decision(asked, "requested")
    own = "cpu" if device == "meta" else device
    has_ops = own in ("cpu", "cuda")
    reasons = [] if has_ops else [f"there are no compiled ops for {own} tensors"]
    for backend in (*((own,) if has_ops else ()), "triton", "reference"):
        # A precision is refused by the backend that would otherwise be chosen, with a list of its precisions.
        reason = _unsupported(backend, own, plan, form, installed, any_precision=True)
        if reason is None:
            return Decision(backend, "; ".join(reasons) or f"the kernels of {own} tensors are loaded")
        reasons.append(f"not {backend}: {reason}")
    return Decision("cpu" if own == "cpu" else "cuda", "; ".join(reasons))  # its ops raise with the reason


def _unsupported(
    backend: str, device: str, plan: AnyPlan, form: str, installed: Installed, any_precision: bool = False
) -> str | None:
    """Why a backend does not serve; ``None`` if it does."""
    if not isinstance(plan, Plan) and backend == "reference":
        return "tile programs run on the kernels of cpu, cuda and triton"
    if not isinstance(plan, Plan) and backend != "cpu" and form == "catalog":
        return "it has no catalogs of tile programs"
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
    if not any_precision and plan.precision not in known:
        return f"it computes in {', '.join(known)}, not in {plan.precision}"
    return None


def has_triton() -> bool:
    """Whether Triton is installed; a folder named ``triton`` does not count."""
    spec = find_spec("triton")
    return spec is not None and spec.origin is not None


@cache
def installed() -> Installed:
    """The backends that this process can run."""
    (loaded, why), (cuda, why_no_cuda) = library.status(), library.cuda_status()
    no_triton = None if has_triton() else "triton is not installed"
    if no_triton is None and not loaded:
        no_triton = f"its weights are packed by the compiled ops: {why}"
    not_interpreting = None if _interpreting() else "on CPU tensors it runs under TRITON_INTERPRET=1 alone"
    return Installed(
        cpu=None if loaded else why,
        cuda=library.too_old() if cuda else why_no_cuda,
        triton=no_triton or no_triton_on_gpus(),
        triton_interpreter=no_triton or not_interpreting,
    )


def no_triton_on_gpus() -> str | None:
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
# Whether `auto` always selects the compiled ops for such tensors, for every plan and form: these calls skip the choice.
# Whether a GPU is new enough for the ops is not determined at import, because that would start CUDA.
direct_cpu = _named == "auto" and "cpu" in _loaded_on
direct_cuda = False


def named(asked: str | None) -> str | None:
    """The backend that the call or the environment names; ``None`` if neither does."""
    name = asked or _named
    return None if name == "auto" else name


@cache
def decide(device: str, plan: AnyPlan, form: str, asked: str | None = None) -> Decision:
    """:func:`choose` with the installed backends; without ``asked``, that of ``RESFLOW_BACKEND``, or ``auto``."""
    try:
        return choose(device, plan, form, asked or _named, installed())
    except ValueError as error:
        if asked:
            raise
        raise ValueError(f"RESFLOW_BACKEND: {error}") from None


def decide_quickly(device: str, plan: AnyPlan, form: str, asked: str | None) -> str:
    """The backend of :func:`decide`, without hashing the plan in the common cases."""
    global direct_cuda
    if asked is None and _named == "auto" and device in _loaded_on:
        if device == "cpu":
            return device
        if library.too_old() is None:
            if not torch.compiler.is_compiling():
                direct_cuda = True
            return device
    return decide(device, plan, form, asked).backend


def _untrainable_reason(device: str) -> str | None:
    """Why no backend, or not the one of ``RESFLOW_BACKEND``, trains on this type of device.

    Called at import: with ``auto`` it does not call :func:`installed`, so that Triton's interpreter can still be
    enabled.
    """
    if _named == "auto":
        reason = no_triton_on_gpus() if device == "cuda" else None
        return reason and f"the training ops of {device} tensors are Triton's: {reason}"
    try:
        decide(device, Plan(1, (1,), (-1,)), "training")
    except ValueError as error:
        return str(error)
    return None


def function_of(op: str, form: str, device: str, plan: AnyPlan, asked: str | None) -> partial[Any] | None:
    """An op's function on the backend for a call, with the op's own arguments; ``None``: the compiled op."""
    backend = decide_quickly(device, plan, form, asked)
    if backend == "triton":
        from ..triton import dispatch

        return partial(dispatch.run, op)
    if backend == "reference":
        from ..reference import packed

        return partial(packed.run, op)
    return None


# By type of device, computed at import: a compiler's graphs cannot compute it.
_untrainable: dict[str, str | None] = {}


def unsupported_reason(device: str, precision: str | None = None, training: bool = False) -> str | None:
    """Why the ops do not serve a type of device (in this precision, or for training); ``None`` if they do.

    >>> unsupported_reason("xla")
    'there are no compiled ops for xla tensors'
    """
    if training:
        reason = _untrainable.get(device)
        return reason if reason is not None or device == "cuda" else unsupported_reason(device)
    if device not in ("cpu", "meta", "cuda"):
        return f"there are no compiled ops for {device} tensors"
    loaded, reason = library.cuda_status() if device == "cuda" else library.status()
    if not loaded:
        return reason
    if device == "cuda" and library.too_old() is not None:
        return library.too_old()
    return None if precision is None else unsupported_precision(device, precision)


def unsupported_precision(device: str, precision: str) -> str | None:
    """Why kernels of a type of device do not compute in this precision; ``None`` if they do."""
    known = checks.precisions_of(device)
    if device == "meta" or precision in known:
        return None
    return f"on this device ({device}) the ops compute in {', '.join(known)}, not in {precision}"


_untrainable.update({device: _untrainable_reason(device) for device in ("cpu", "meta", "cuda")})
