"""What all backends share: op schemas, enumerations, the plan's fields and the error texts.

The ``.def`` files beside this module are the only place where each is written. C++ includes them as
X-macros (``csrc/core/contract.h``); this module reads the same files. It imports neither torch nor
numpy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeVar

_ENTRY = re.compile(r"^RESFLOW_(\w+)\(([^()\"]*(?:\"[^\"]*\"[^()\"]*)*)\)", re.MULTILINE)
_FIELD = re.compile(r'"([^"]*)"|([^\s,][^,"]*)')


@cache
def _rows(file: str) -> list[tuple[str, ...]]:
    """All rows of one ``.def`` file in order, each the macro's name and its arguments."""
    text = (Path(__file__).parent / file).read_text(encoding="utf-8")
    text = re.sub(r"^#.*$", "", text, flags=re.MULTILINE)
    return [(m[1], *(quoted or bare.strip() for quoted, bare in _FIELD.findall(m[2]))) for m in _ENTRY.finditer(text)]


def _rows_of(file: str, macro: str) -> list[tuple[str, ...]]:
    return [row[1:] for row in _rows(file) if row[0] == macro]


def _names(file: str, macro: str) -> tuple[str, ...]:
    return tuple(row[0] for row in _rows_of(file, macro))


def _values(file: str, macro: str) -> dict[str, str]:
    return {row[0]: row[1] for row in _rows_of(file, macro)}


class Form(NamedTuple):
    """A row of ``ops.def``: what one form of scoring takes."""

    name: str
    model: str  # "towers" or "twin"
    inputs: tuple[str, ...]  # names of the arguments before the model's
    topk_inputs: tuple[str, ...]  # those that only the topk ending has, after them
    flags: frozenset[str]  # of "autocast", "triton", "reference"


def _arguments(text: str) -> tuple[str, ...]:
    """Names of a schema's arguments: of ``"Tensor x, int[] plan"`` ``("x", "plan")``."""
    return tuple(part.split()[-1] for part in text.split(",") if part.strip())


MODELS = _values("ops.def", "MODEL")
FORMS: dict[str, Form] = {
    name: Form(name, model, _arguments(inputs), _arguments(topk), frozenset(flags.split()))
    for name, model, inputs, topk, flags in _rows_of("ops.def", "FORM")
}
TRAINING_OPS = _names("ops.def", "TRAINING_OP")
OP_SCHEMAS: dict[str, str] = {
    f"{form}_{ending}": f"({inputs}{topk if ending == 'topk' else ''}, {MODELS[model]}{arguments}) -> {results}"
    for form, model, inputs, topk, _ in _rows_of("ops.def", "FORM")
    for ending, arguments, results in _rows_of("ops.def", "ENDING")
}
OP_SCHEMAS |= _values("ops.def", "OP") | _values("ops.def", "TRAINING_OP")

ACTIVATIONS = _names("enums.def", "ACTIVATION")
HEADS = _names("enums.def", "HEAD")
FUSIONS = _names("enums.def", "FUSION")
FUSION_EXTRA_WEIGHTS = {
    name: int(extra) for name, extra in _values("enums.def", "FUSION").items()
}  # beyond one per task
WEIGHTS_PER = _names("enums.def", "WEIGHTS_PER")
PRECISIONS = _names("enums.def", "PRECISION")
GPU_PRECISIONS = _names("enums.def", "GPU_PRECISION")
STATISTICS = _names("enums.def", "STATISTICS")
PLAN_FIELDS = _names("plan.def", "PLAN_FIELD")
PLAN_LIMITS = {name: int(value) for name, value in _values("plan.def", "PLAN_LIMIT").items()}
_EXPECTED = _values("errors.def", "EXPECT")

_Row = TypeVar("_Row")


def complete(what: str, names: tuple[str, ...], rows: Mapping[str, _Row]) -> dict[str, _Row]:
    """``rows`` in the order of a list of ``enums.def``, one per name.

    Raises:
        ImportError: a name without its row, or a row without its name.
    """
    for name in names:
        if name not in rows:
            raise ImportError(f"{what} {name!r} of contract/enums.def without its row")
    for name in rows:
        if name not in names:
            raise ImportError(f"{what} {name!r} without its name in contract/enums.def")
    return {name: rows[name] for name in names}


def error_message(op: str, argument: str, expected: str, got: object, *details: object) -> str:
    """The text of one error: ``<op>: <argument> must be <expected>, got <got>``.

    ``expected`` is a name of ``errors.def``; ``details`` fill its ``{0}``, ``{1}``.
    """
    return f"{op}: {argument} must be {_EXPECTED[expected].format(*details)}, got {got}"
