"""The one place where a fused module calls a program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

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

    def __call__(self, ids: Tensor, tables: list[Tensor], packed: Tensor, *lists: Any) -> Tensor:
        """Output columns of ``ids [B, tables without lists]``.

        Args:
            lists: the ids of lists, their offsets and weights, which tables have one, how they are pooled, and their
                padding ids, as the feature form takes them; none where no table has lists.
        """
        op = library.namespace.feature_scores
        if lists:
            values, offsets, weights, ragged, *how = lists
            given = (ids, values, offsets, tables, [], ragged, packed, self._weights, *self._rest, weights, *how)
            pooled: Tensor = op(*given)[0]
            return pooled
        logits: Tensor = op(ids, *self._none, tables, [], [], packed, self._weights, *self._rest)[0]
        return logits


def matrix(x: Tensor) -> Tensor:
    """A matrix with contiguous rows, as a table."""
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def _places(count: int) -> Tensor:
    """``[count, 1]``: the ids of a table of which candidate ``i`` reads row ``i``."""
    return torch.arange(count)[:, None]


def _no_ids(count: int) -> Tensor:
    """``[count, 0]``: the ids of candidates that have lists alone."""
    return torch.zeros(count, 0, dtype=torch.int64)


def _evenly(count: int, lengths: tuple[int, ...]) -> Tensor:
    """Offsets of ``count`` lists of a length for each feature, and the end of the last."""
    places, begin = torch.arange(count), 0
    parts = []
    for length in lengths:
        parts.append(places * length + begin * count)
        begin += length
    return torch.cat([*parts, torch.full((1,), begin * count)])


def _kept(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``make``, whose last results are kept, except by a trace, which would hold them for its sizes alone."""

    @lru_cache(maxsize=8)
    def kept(*given: Any) -> Tensor:
        with torch.inference_mode(False):
            return make(*given)

    def made(*given: Any) -> Tensor:
        traced = torch.compiler.is_compiling() or torch._C._get_tracing_state()
        return make(*given) if traced else kept(*given)

    return made


def starts(lengths: Tensor) -> Tensor:
    """Offsets of lists of these lengths, and the end of the last."""
    return torch.cat([lengths.new_zeros(1, dtype=torch.int64), lengths.cumsum(0)])


def joined(offsets: Sequence[Tensor], count: int, sizes: Sequence[int]) -> Tensor:
    """Offsets of the lists of several features, one after another, and the end of the last.

    Args:
        offsets: of the lists of each feature among its own ids; what follows the first ``count`` is not read.
        count: lists of each feature.
        sizes: numbers of ids of each feature.
    """
    total = 0
    parts: list[Tensor] = []
    for own, size in zip(offsets, sizes, strict=True):
        parts.append(own[:count] + total if parts else own[:count])
        total += size
    return torch.cat([*parts, torch.full((1,), total)])


# What a fused module's source calls.
HELPERS: dict[str, Callable[..., Tensor]] = {
    "cat": torch.cat,
    "ones": partial(torch.ones, dtype=torch.float32),
    "matrix": matrix,
    "starts": starts,
    "joined": joined,
    "places": _kept(_places),
    "no_ids": _kept(_no_ids),
    "evenly": _kept(_evenly),
}


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
