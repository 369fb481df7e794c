"""The one place where a fused module calls a program."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ... import ops
from ...core.program import Program
from ...ops import library

Runner = Callable[[Tensor, Tensor], Tensor]


def runner(program: Program) -> Runner:
    """What computes a program's outputs of rows ``[B, D]`` and packed weights, in the rows' dtype."""
    encoded = program.encoded
    op = library.namespace.program_outputs  # without the wrapper's checks, which the caller has made

    def run(x: Tensor, packed: Tensor) -> Tensor:
        dtype = x.dtype
        if dtype is not torch.float32:
            return run(x.float(), packed).to(dtype)
        if x.stride(1) != 1:
            x = x.contiguous()
        made: Tensor = op(x, packed, encoded)
        return made

    return run


def pack(weights: Sequence[Tensor], program: Program) -> Tensor:
    """A program's weights as its runner takes them."""
    floats = [weight.to(torch.float32).contiguous() for weight in weights]
    return ops.pack_towers(floats, program)  # type: ignore[arg-type]
