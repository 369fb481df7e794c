"""Tile programs: rows through a list of steps, for networks that are not a forest of equal towers."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import checks
from ..core.program import Program
from . import library
from .call import other_backend


def program_outputs(x: Tensor, packed: Tensor, program: Program, *, backend: str | None = None) -> Tensor:
    """Compute a program's output columns in one pass over its rows.

    A program that has tasks is scored by :func:`~resflow_kernels.ops.dense_scores` and the other forms but the
    catalog's, which take it as their plan.

    Args:
        x: ``[B, D]`` float32 or bfloat16 (on a GPU also float16); rows contiguous, any row stride.
        packed: from :func:`~resflow_kernels.ops.pack_towers`, on the weights that ``program.weight_shapes`` lists.
        program: the program it was packed for.
        backend: as in :func:`resflow_kernels.ops.dense_scores`.

    Returns:
        ``[B, program.output_columns]`` float32. A row's outputs do not depend on the other rows.

    Raises:
        ValueError: bad input; the message names the argument, what was expected and what was got.

    Example:
        >>> from resflow_kernels.core.program import ProgramBuilder, Step
        >>> builder = ProgramBuilder(3)
        >>> program = builder.build(builder.add(Step("linear", 1, builder.x), ("weight", "bias")))
        >>> packed = ops.pack_towers([torch.ones(3, 1), torch.zeros(1)], program)  # doctest: +SKIP
        >>> ops.program_outputs(torch.ones(2, 3), packed, program)                 # doctest: +SKIP
        tensor([[3.],
                [3.]])
    """
    if torch.is_grad_enabled() and x.requires_grad:
        checks.no_grad("program_outputs", x=x)
    other = other_backend("program_outputs", "dense", x, program, backend)
    arguments = (x, packed, program.encoded)
    outputs: Tensor = library.call("program_outputs", *arguments) if other is None else other(*arguments)
    return outputs
