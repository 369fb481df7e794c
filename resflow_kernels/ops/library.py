"""Loads the compiled ops into ``torch.ops.resflow``, once: those of the CPU, and those of GPUs if there is one.

Without the compiled library the same schemas are defined from Python, so that the names exist, fake tensors work, and a
call raises with the reason.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..contract import OP_SCHEMAS
from ..core import build, packed_layout

LIBRARY = Path(__file__).parents[1] / "_ops.so"
CUDA_LIBRARY = Path(__file__).parents[1] / "_cuda.so"
OLDEST_CAPABILITY = (8, 0)  # required by cp.async and these mma shapes
_HOW_TO_BUILD = "build it with `make build` in a checkout, or install with `pip install --no-build-isolation .`"

# The namespace of the ops that all calls of this package use.
namespace: Any = torch.ops.resflow

_python_library: torch.library.Library | None = None
_status = (False, "not loaded yet")
_cuda_status = (False, "not loaded yet")


def call(op: str, *arguments: Any) -> Any:
    """Call an op by its name.

    Raises:
        ValueError: the op refuses the input.
    """
    try:
        return getattr(namespace, op)(*arguments)
    except RuntimeError as error:
        raise promised(op, error) from None


def promised(op: str, error: RuntimeError) -> Exception:
    """The exception to raise for an op's error: a ``ValueError`` for input that it refuses, else the error itself.

    PyTorch up to 2.14 turns the kernels' exception into a ``ValueError``, and from 2.15 on into a ``RuntimeError`` with
    the same text.
    """
    if type(error) is RuntimeError and str(error).startswith(f"{op}: "):
        return ValueError(str(error))
    return error


@contextmanager
def use(other: Any) -> Iterator[None]:
    """Redirect all calls, in all threads, to the ops of another namespace within the context: for tests."""
    global namespace
    before, namespace = namespace, other
    try:
        yield
    finally:
        namespace = before


def _defined() -> bool:
    """Whether a library of this process has already defined ``resflow``'s ops."""
    name = next(iter(OP_SCHEMAS))
    return torch._C._dispatch_has_kernel(f"resflow::{name}") or hasattr(torch.ops.resflow, name)


def load() -> tuple[bool, str]:
    """Load the ops unless they are loaded; returns whether compiled kernels are available, and the reason.

    A second library that defines the namespace would end the process, so an existing definition is kept.
    """
    global _status, _cuda_status, _python_library
    if _python_library is not None:
        return _status
    if _defined():
        _status = (True, "defined by a library that was loaded before")
    elif os.environ.get("RESFLOW_NO_LIBRARY") == "1":
        _status = (False, "RESFLOW_NO_LIBRARY=1 asks for the reference")
    elif not LIBRARY.exists():
        _status = (False, _why_missing())
    else:
        _status = _loaded(LIBRARY)
    _python_library = torch.library.Library("resflow", "FRAGMENT")
    if not _status[0]:
        for name, schema in OP_SCHEMAS.items():
            _python_library.define(name + schema)
    else:
        packed_layout.answer_by(torch.ops.resflow.packed_layout)
    _cuda_status = _load_cuda() if _status[0] else _status
    return _status


def _why_missing() -> str:
    why = build.why_left_out("torch")
    if why is not None:
        return f"built without the torch ops: {why}. Build again with torch, without RESFLOW_WITHOUT=torch"
    return f"the compiled library {LIBRARY.name} is missing; {_HOW_TO_BUILD}"


def _loaded(library: Path) -> tuple[bool, str]:
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        return False, f"the compiled library {library.name} does not load into torch {torch.__version__}: {error}"
    return True, f"loaded {library.name}"


def _load_cuda() -> tuple[bool, str]:
    name = next(iter(OP_SCHEMAS))
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"resflow::{name}", "CUDA"):
        return True, "registered by a library that was loaded before"
    if os.environ.get("RESFLOW_NO_CUDA") == "1":
        return False, "RESFLOW_NO_CUDA=1 asks for no GPU kernels"
    if not CUDA_LIBRARY.exists():
        return False, f"built without CUDA: {build.why_left_out('cuda') or f'{CUDA_LIBRARY.name} is missing'}"
    if torch.version.cuda is None:
        return False, f"torch {torch.__version__} is built without CUDA"
    # torch.cuda.is_available() would start CUDA, and a process forked after that could not use it.
    if torch.cuda.device_count() == 0:
        return False, "there is no CUDA device"
    return _loaded(CUDA_LIBRARY)


def implement(functions: Mapping[str, Callable[..., Any]], key: str) -> None:
    """Register Python functions as kernels of a dispatch key; existing registrations are kept."""
    load()
    assert _python_library is not None
    for name, function in functions.items():
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"resflow::{name}", key):
            _python_library.impl(name, function, key)


def define(name: str, schema: str, function: Callable[..., Any]) -> None:
    """Define an op that is a Python function on every device."""
    load()
    assert _python_library is not None
    _python_library.define(name + schema)
    _python_library.impl(name, function, "CompositeExplicitAutograd")


def status() -> tuple[bool, str]:
    """Whether the compiled ops are loaded, and the reason."""
    return load()


def cuda_status() -> tuple[bool, str]:
    """Whether the ops of CUDA tensors are loaded, and the reason."""
    load()
    return _cuda_status


def too_old() -> str | None:
    """Why no GPU of this machine can run the kernels; ``None`` if one can. Starts CUDA, so not for use at import."""
    # torch.compile cannot trace this question: on a GPU that is too old, compiled code fails at its launch.
    return None if torch.compiler.is_compiling() else _too_old()


@cache
def _too_old() -> str | None:
    capabilities = [torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())]
    if any(capability >= OLDEST_CAPABILITY for capability in capabilities):
        return None
    found = ", ".join(f"{major}.{minor}" for major, minor in capabilities)
    return f"the GPU kernels need compute capability {'.'.join(map(str, OLDEST_CAPABILITY))}, there is {found}"
