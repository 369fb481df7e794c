"""Loading the compiled ops into ``torch.ops.resflow``, once.

Without the compiled library the same schemas are defined from Python, so that the names exist, fake tensors
work, and a call says what is missing.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from .contract import OP_SCHEMAS

LIBRARY = Path(__file__).parent / "_ops.so"
_HOW_TO_BUILD = "build it with `make build` or `pip install --no-build-isolation .`"

_python_library: torch.library.Library | None = None
_status = (False, "not loaded yet")


def _defined() -> bool:
    """Whether some library of this process has defined ``resflow``'s ops already."""
    name = next(iter(OP_SCHEMAS))
    return torch._C._dispatch_has_kernel(f"resflow::{name}") or hasattr(torch.ops.resflow, name)


def load() -> tuple[bool, str]:
    """Load the ops if they are not there yet; returns whether compiled kernels are, and a word on why (not).

    A second library that defines the namespace would end the process, so what is there already is kept.
    """
    global _status, _python_library
    if _python_library is not None:
        return _status
    if _defined():
        _status = (True, "defined by a library that was loaded before")
    elif os.environ.get("RESFLOW_NO_LIBRARY") == "1":
        _status = (False, "RESFLOW_NO_LIBRARY=1 asks for the reference")
    elif not LIBRARY.exists():
        _status = (False, f"the compiled library {LIBRARY.name} is missing; {_HOW_TO_BUILD}")
    else:
        try:
            torch.ops.load_library(str(LIBRARY))
            _status = (True, f"loaded {LIBRARY.name}")
        except OSError as error:
            _status = (False, f"the compiled library does not load into torch {torch.__version__}: {error}")
    _python_library = torch.library.Library("resflow", "FRAGMENT")
    if not _status[0]:
        for name, schema in OP_SCHEMAS.items():
            _python_library.define(name + schema)
    return _status


def status() -> tuple[bool, str]:
    """Whether the compiled ops are loaded, and why (not)."""
    return load()
