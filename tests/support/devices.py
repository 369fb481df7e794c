"""The ops on every kind of kernels, called with CPU tensors and answering with CPU tensors.

Property tests (tests/ops) run the same body on all of them. ``DEVICES`` says what each serves.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from resflow_kernels import ops
from resflow_kernels.contract import PRECISION_ROWS
from resflow_kernels.core.checks import precisions_of, row_dtypes
from resflow_kernels.ops import backends, library
from tests.support.numpy_ops import NumpyOps

EMULATED_LIBRARY = Path(__file__).parents[1] / "emulator" / "_emulated.so"


@dataclass(frozen=True)
class Served:
    """What a device computes, and how it answers."""

    forms: tuple[str, ...]  # names of the contract's forms
    precisions: tuple[str, ...]  # of plans
    rows: tuple[torch.dtype, ...]  # what input rows may be stored as
    raises: bool  # of ids, offsets and weights that make no sense: raises. Otherwise their candidates score NaN
    bitwise: bool  # a candidate has the same bits in every batch
    small: bool = True  # plans and batches are drawn small
    programs: bool = True  # takes tile programs


_CPU, _GPU = precisions_of("cpu"), precisions_of("cuda")
_FORMS = backends.SCORING_FORMS
DEVICES = {
    # The compiled ops for CPU tensors, on the best instruction set or on that of RESFLOW_ISA.
    "cpu": Served(_FORMS, _CPU, row_dtypes("cpu"), raises=True, bitwise=True, small=False),
    # The same kernels behind NumPy arrays, without torch.
    "numpy": Served(_FORMS, _CPU, (torch.float32,), raises=True, bitwise=True, small=False),
    # Plain PyTorch: a matrix product may add up in another order in a batch of another size.
    "reference": Served(
        backends.REFERENCE_FORMS,
        tuple(PRECISION_ROWS),
        row_dtypes("cuda"),
        raises=True,
        bitwise=False,
        small=False,
        programs=False,
    ),
    # The sources of the CUDA kernels compiled for the CPU.
    "emulated": Served(_FORMS, _GPU, row_dtypes("cuda"), raises=False, bitwise=True),
    "cuda": Served(_FORMS, _GPU, row_dtypes("cuda"), raises=False, bitwise=True),
    # Triton's kernels on a GPU, or under its interpreter with TRITON_INTERPRET=1.
    "triton": Served(
        tuple(form for form in _FORMS if form in backends.TRITON_FORMS),
        _GPU,
        row_dtypes("cuda"),
        raises=False,
        bitwise=True,
    ),
}


class Device:
    """The functions of :mod:`resflow_kernels.ops` with a device's kernels: tensors go there and results come back.

    What an op leaves unwritten of its results is NaN, or the largest integer; NumPy's results are not filled before.
    A device has the attributes of its row of ``DEVICES`` as well.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.slow = is_slow(name)
        self.interpreted = self.slow and name == "triton"
        self.place = "cuda" if name in ("cuda", "triton") and not self.slow else "cpu"
        served = DEVICES[name]
        self.forms, self.precisions, self.rows = served.forms, served.precisions, served.rows
        self.raises, self.bitwise, self.small = served.raises, served.bitwise, served.small
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
        if name == "emulated":
            return None if EMULATED_LIBRARY.exists() else f"{EMULATED_LIBRARY.name} is not built"
        if name == "numpy":
            return None if find_spec("resflow_kernels._runtime") else "the NumPy runtime is not built"
        return None if library.status()[0] else library.status()[1]

    def tensor(self, tensor: Tensor) -> Tensor:
        """On the device; views of it keep their strides, which a view that is moved does not."""
        return tensor.to(self.place)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(ops, name)

        def call(*arguments: Any, **settings: Any) -> Any:
            arguments, settings = tree_map_only(Tensor, self.tensor, (arguments, settings))
            if self.name in ("triton", "reference") and name != "pack_towers":
                settings["backend"] = self.name
            with self._kernels(), _unwritten_is_nan():
                return tree_map_only(Tensor, Tensor.cpu, function(*arguments, **settings))

        return call

    def raw(self, name: str) -> Callable[..., Any]:
        """An op itself, on tensors that lie where its kernels are."""
        return getattr(torch.ops.resflow_emulated if self.name == "emulated" else torch.ops.resflow, name)

    def _kernels(self) -> AbstractContextManager[None]:
        if self.name == "emulated":
            return library.use(torch.ops.resflow_emulated)
        return library.use(NumpyOps()) if self.name == "numpy" else nullcontext()


def is_slow(name: str) -> bool:
    """Whether a device takes about a millisecond per row: it is emulated, or interpreted."""
    return name == "emulated" or (name == "triton" and os.environ.get("TRITON_INTERPRET") == "1")


@contextmanager
def _unwritten_is_nan() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
