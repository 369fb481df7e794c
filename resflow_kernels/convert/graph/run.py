"""The one place where a fused module calls a program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ... import ops
from ...core.program import Program
from ...ops import library

Runner = Callable[[Tensor, Tensor], Tensor]


class LookUp:
    """What computes a program's outputs of ids of tables and packed weights.

    Args:
        program: whose output columns are tasks.
    """

    def __init__(self, program: Program) -> None:
        self._rest = (program.encoded, 0, 0)
        self._none = torch.zeros(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
        self._weights = torch.zeros(program.tasks)

    def __call__(self, ids: Tensor, tables: list[Tensor], packed: Tensor) -> Tensor:
        """Output columns of ``ids [B, tables]``."""
        op = library.namespace.feature_scores
        logits: Tensor = op(ids, *self._none, tables, [], [], packed, self._weights, *self._rest)[0]
        return logits


def matrix(x: Tensor) -> Tensor:
    """A matrix with contiguous rows, as a table."""
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


@lru_cache(maxsize=8)
def places(count: int) -> Tensor:
    """``[count, 1]``: the ids of a table of which candidate ``i`` reads row ``i``."""
    with torch.inference_mode(False):
        return torch.arange(count)[:, None]


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
