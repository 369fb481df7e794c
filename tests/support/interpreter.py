"""Triton's interpreter, quicker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def quick_calls() -> Iterator[None]:
    """Call functions inside kernels as they are.

    The interpreter prepares ``triton.language`` anew for each of these calls, which takes most of its time; the
    kernel's own preparation serves for all but Triton's own modules.
    """
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
