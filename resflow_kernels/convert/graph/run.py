"""The one place where a fused module calls a program."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ... import ops
from ...core.program import Program
from ...reference import program as reference

Runner = Callable[[Tensor, Tensor], Tensor]
_HAS_OP = hasattr(ops, "program_outputs")


def runner(program: Program) -> Runner:
    """What computes a program's outputs of rows ``[B, D]`` and packed weights."""
    if _HAS_OP:
        return lambda x, packed: ops.program_outputs(_rows(x), packed, program).to(x.dtype)
    return lambda x, packed: _by_reference(_rows(x), packed, list(program.encoded)).to(x.dtype)


def pack(weights: Sequence[Tensor], program: Program) -> Tensor:
    """A program's weights as its runner takes them."""
    weights = [weight.to(torch.float32).contiguous() for weight in weights]
    if _HAS_OP:
        return ops.pack_towers(weights, program)  # type: ignore[arg-type]
    return torch.cat([weight.reshape(-1) for weight in weights])


def _rows(x: Tensor) -> Tensor:
    if x.dtype != torch.float32:
        x = x.float()
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


# The stand-in until the op exists: one op to profilers, so that its products count as the kernels'.
@torch.library.custom_op("resflow_stand_in::program_outputs", mutates_args=())
def _by_reference(x: Tensor, packed: Tensor, encoded: list[int]) -> Tensor:
    program = Program.decode(encoded)
    weights, at = [], 0
    for _, shape in program.weight_shapes:
        count = 1
        for size in shape:
            count *= size
        weights.append(packed[at : at + count].reshape(shape))
        at += count
    return reference.program_outputs(x, weights, program).contiguous()
