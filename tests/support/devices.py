"""The ops on GPU kernels, called with CPU tensors: on a GPU, or emulated and interpreted where there is none."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from resflow_kernels import ops
from resflow_kernels.ops import backends, library

EMULATED_LIBRARY = Path(__file__).parents[1] / "emulator" / "_emulated.so"


class Device:
    """The functions of :mod:`resflow_kernels.ops` with a device's kernels: tensors go there and results come back.

    What an op leaves unwritten of its results is NaN, or the largest integer.

    Args:
        name: ``"cuda"``; ``"emulated"``: the sources of the GPU kernels compiled for the CPU; or ``"triton"``: Triton's
            kernels on a GPU, or under its interpreter with ``TRITON_INTERPRET=1``.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        interpreted = name == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
        self.emulated = name == "emulated" or interpreted
        self.place = "cpu" if self.emulated else "cuda"
        if name == "emulated" and not hasattr(torch.ops.resflow_emulated, "dense_scores"):
            torch.ops.load_library(str(EMULATED_LIBRARY))

    @staticmethod
    def why_missing(name: str) -> str | None:
        """Why there is no such device here; ``None`` if there is."""
        if name == "cuda":
            return ops.unsupported_reason("cuda")
        if name == "triton":
            installed = backends.installed()
            return installed.triton and installed.triton_interpreter
        return None if EMULATED_LIBRARY.exists() else f"{EMULATED_LIBRARY.name} is not built"

    def tensor(self, tensor: Tensor) -> Tensor:
        """On the device; views of it keep their strides, which a view that is moved does not."""
        return tensor.to(self.place)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(ops, name)

        def call(*arguments: Any, **settings: Any) -> Any:
            moved = tree_map_only(Tensor, self.tensor, (arguments, settings))
            if self.name == "triton" and name != "pack_towers":
                moved[1]["backend"] = "triton"
            with self._kernels(), _unwritten_is_nan():
                made = function(*moved[0], **moved[1])
                return tree_map_only(Tensor, Tensor.cpu, made)

        return call

    def raw(self, name: str) -> Callable[..., Any]:
        """An op itself, on tensors that lie where its kernels are."""
        return getattr(torch.ops.resflow_emulated if self.name == "emulated" else torch.ops.resflow, name)

    @contextmanager
    def _kernels(self) -> Iterator[None]:
        with library.use(torch.ops.resflow_emulated) if self.name == "emulated" else nullcontext():
            yield


@contextmanager
def _unwritten_is_nan() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
