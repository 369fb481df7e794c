"""The dense, request and catalog forms as Triton kernels: one source for the GPUs that Triton compiles for.

Selected by ``backend="triton"`` (:mod:`resflow_kernels.ops.backends`). The kernels compute in float32, tensorfloat32,
bfloat16 and float16 on the packed weights that all backends share. Importing this package does not import Triton;
calling :func:`tune` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .tuning import tune

__all__ = ["tune"]


def __getattr__(name: str) -> Any:
    if name == "tune":
        from .tuning import tune

        return tune
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
