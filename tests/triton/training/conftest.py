"""Training's kernels under Triton's interpreter, or on a GPU where there is one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from resflow_kernels.ops import backends


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _available() -> None:
    installed = backends.installed()
    reason = installed.triton and installed.triton_interpreter
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(scope="session", autouse=True)
def _quick_calls() -> Iterator[None]:
    """Triton's interpreter prepares ``triton.language`` anew for each call of a function inside a kernel, which takes
    most of its time; the kernel's own preparation serves for all but Triton's own modules.
    """
    if os.environ.get("TRITON_INTERPRET") != "1":
        yield
        return
    from triton.runtime import interpreter

    prepared: set[str] = set()

    def call(function: Any, *arguments: Any, **settings: Any) -> Any:
        module = function.fn.__module__
        if module.startswith("triton.") and module not in prepared:
            prepared.add(module)
            interpreter._patch_lang(function.fn)
        return function.rewrite()(*arguments, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.InterpretedFunction, "__call__", call)
        yield
