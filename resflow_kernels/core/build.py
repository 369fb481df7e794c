"""Facts about the build, stored in ``_build.json``; needs neither torch nor NumPy."""

from __future__ import annotations

import json
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1]


def facts() -> dict[str, Any]:
    """``cuda``: the version of nvcc or ``None``; ``architectures``; ``left_out``: why each missing part is missing."""
    file = PACKAGE / "_build.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def why_left_out(part: str) -> str | None:
    """Why this build lacks ``torch`` (the torch ops), ``numpy`` (the runtime) or ``cuda`` (GPU kernels)."""
    return facts().get("left_out", {}).get(part)


def why_no_runtime() -> str:
    """Why the compiled library of the NumPy runtime is missing, and what to do about it."""
    why = why_left_out("numpy")
    if why is not None:
        return f"built without the NumPy runtime: {why}. Build again with pybind11, without RESFLOW_WITHOUT=numpy"
    files = (file.name for file in PACKAGE.glob("_runtime.*.so"))
    of_others = sorted(name for name in files if not name.endswith(EXTENSION_SUFFIXES[0]))
    if of_others:
        return f"it is built for another Python: there is {', '.join(of_others)}. Install the package with this Python"
    return "build it with `make build` in a checkout, or install the package with `pip install --no-build-isolation .`"
