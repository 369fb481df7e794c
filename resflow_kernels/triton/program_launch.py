"""The launch of a tile program's kernel. Runs nothing and reads no tensor's data."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..contract import PACKED
from ..core.fusion import weight_count
from ..core.program import Program
from .configs import program_config
from .launch import FOREST_PROGRAMS, Launch, power_of_2
from .layout import MAGIC
from .program import program_kernel
from .program_layout import program_layout


class ProgramRows(NamedTuple):
    """Input rows: those of ``x``, or a user's columns and those of ``x``."""

    x: Tensor
    user: Tensor | None = None
    offsets: Tensor | None = None


class Ending(NamedTuple):
    """How a program's outputs become scores, and where these go."""

    fusion_weights: Tensor
    fusion: str
    weights_per: str
    logits: Tensor
    probs: Tensor
    score: Tensor


def program_launch(
    rows: ProgramRows, packed: Tensor, program: Program, ending: Ending | Tensor, interpreted: bool
) -> Launch:
    """The launch that scores candidates, or writes their output columns to ``ending [B, output_columns]``."""
    count = rows.x.shape[0]
    scores = ending if isinstance(ending, Ending) else None
    config = program_config(program.precision)
    users = 0 if rows.user is None else rows.user.shape[1]
    programs = torch.sym_min(-(-count // config.block_m), FOREST_PROGRAMS)
    frame = program_layout(program).frame
    arguments = {
        "x": rows.x,
        "x_stride": rows.x.stride(0),
        "user": rows.user,
        "user_stride": 0 if rows.user is None else rows.user.stride(0),
        "count": count,
        "offsets": rows.offsets,
        "requests": 0 if rows.offsets is None else rows.offsets.shape[0] - 1,
        "packed": packed,
        "fusion_weights": scores and scores.fusion_weights,
        "logits": scores and scores.logits,
        "probs": scores and scores.probs,
        "score": scores and scores.score,
        "outputs": None if scores else ending,
        "workspace": packed.new_empty((programs * (config.block_m * frame),), dtype=torch.float32),
    }
    fusing = (scores.fusion, scores.weights_per) if scores else ("additive", "call")
    constants = _constants(program, users, *fusing, interpreted)
    return Launch(program_kernel, (programs,), arguments, constants, config.options)


@lru_cache(maxsize=1024)
def _constants(program: Program, users: int, fusion: str, weights_per: str, interpreted: bool) -> dict[str, Any]:
    layout, config = program_layout(program), program_config(program.precision)
    return {
        "STEPS": _plain(layout.steps),
        "OUTPUTS": _plain(layout.outputs),
        "OUTPUT_COLUMNS": program.output_columns,
        "LOGITS": layout.columns if program.tasks else (),
        "PARENTS": program.parents,
        "JOIN": program.join,
        "HEADER": (MAGIC, layout.fingerprint),
        "FLOATS": PACKED["header_bytes"],
        "PRECISION": program.precision,
        "USER_COLUMNS": users,
        "ITEM_COLUMNS": program.in_features - users,
        "FRAME": layout.frame,
        "FUSION": fusion,
        "PER": weights_per,
        "WEIGHT_COUNT": weight_count(fusion, program.tasks),
        "TASK_COLUMNS": power_of_2(max(1, program.tasks)),
        "BLOCK_N": config.block_n,
        "BLOCK_M": config.block_m,
        "BLOCK_K": config.block_k,
        "INTERPRETED": interpreted,
    }


def _plain(value: Any) -> Any:
    """Tuples without names, which Triton takes as constants."""
    return tuple(map(_plain, value)) if isinstance(value, tuple) else value
