"""The definitions that all backends share: op schemas, enumerations, the plan's fields and the error texts.

The ``.def`` files next to this module are the only place where each is written. C++ includes them as X-macros
(``csrc/core/contract.h``); this module parses the same files. It imports neither torch nor numpy.
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
    """All rows of one ``.def`` file in order: each is the macro's name and its arguments."""
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
    """A row of ``ops.def``: the arguments of one form of scoring."""

    name: str
    model: str  # "towers" or "twin"
    inputs: tuple[str, ...]  # names of the arguments before the model's
    topk_inputs: tuple[str, ...]  # names of the further arguments that only the topk ending has
    options: dict[str, tuple[()] | None]  # names of the arguments at the end, with their defaults: none, or nothing
    flags: frozenset[str]  # any of "autocast", "triton", "reference"


class Precision(NamedTuple):
    """A precision's row of ``enums.def``."""

    name: str
    code: int  # as stored in plans
    bytes: int  # per value
    flags: frozenset[str]


def precisions_with(*flags: str) -> tuple[str, ...]:
    """The names of the precisions that have any of these flags, in the contract's order."""
    return tuple(name for name, row in PRECISION_ROWS.items() if not row.flags.isdisjoint(flags))


def precision_of_code(code: int) -> str | None:
    """The name of a stored code; ``None`` for an unknown code."""
    return next((name for name, row in PRECISION_ROWS.items() if row.code == code), None)


def _arguments(text: str) -> tuple[str, ...]:
    """The names of a schema's arguments: ``("x", "plan")`` for ``"Tensor x, int[] plan=[]"``."""
    return tuple(part.split()[-1].partition("=")[0] for part in text.split(",") if part.strip())


def _defaults(text: str) -> dict[str, tuple[()] | None]:
    """The defaults of a schema's arguments, ``None`` or ``[]``, by their names."""
    return {name: None if f"{name}=None" in text else () for name in _arguments(text)}


MODELS = _values("ops.def", "MODEL")
FORMS: dict[str, Form] = {
    name: Form(name, model, _arguments(inputs), _arguments(topk), _defaults(options), frozenset(flags.split()))
    for name, model, inputs, topk, options, flags in _rows_of("ops.def", "FORM")
}
TRAINING_OPS = _names("ops.def", "TRAINING_OP")
OP_SCHEMAS: dict[str, str] = {
    f"{form}_{ending}": f"({inputs}{topk if ending == 'topk' else ''}, {MODELS[model]}{own}{options}) -> {results}"
    for form, model, inputs, topk, options, _ in _rows_of("ops.def", "FORM")
    for ending, own, results in _rows_of("ops.def", "ENDING")
}
PLAN_OPS = _names("ops.def", "PLAN_OP")
OP_SCHEMAS |= _values("ops.def", "OP") | _values("ops.def", "TRAINING_OP") | _values("ops.def", "PLAN_OP")

ACTIVATIONS = _names("enums.def", "ACTIVATION")
HEADS = _names("enums.def", "HEAD")
FUSIONS = _names("enums.def", "FUSION")
FUSION_EXTRA_WEIGHTS = {
    name: int(extra) for name, extra in _values("enums.def", "FUSION").items()
}  # beyond one per task
POOLING = _names("enums.def", "POOLING")
WEIGHTS_PER = _names("enums.def", "WEIGHTS_PER")
# Every precision by name; then the names of those in which the CPU's kernels multiply, of those of GPUs alone, and of
# those of tables.
PRECISION_ROWS: dict[str, Precision] = {
    name: Precision(name, int(code), int(size), frozenset(flags.split(" | ")))
    for name, code, size, flags in _rows_of("enums.def", "PRECISION")
}
PRECISIONS = precisions_with("on_cpu")
GPU_PRECISIONS = tuple(name for name in PRECISION_ROWS if name not in PRECISIONS)
TABLE_PRECISIONS = precisions_with("in_tables")
STATISTICS = _names("enums.def", "STATISTICS")
PLAN_FIELDS = _names("plan.def", "PLAN_FIELD")
PLAN_LIMITS = {name: int(value) for name, value in _values("plan.def", "PLAN_LIMIT").items()}
PACKED = {name: int(value) for name, value in _values("plan.def", "PACKED").items()}
PACKED_MAGIC = _values("plan.def", "PACKED_MAGIC")["magic"].encode()
PACKED_FIELDS = _names("plan.def", "PACKED_FIELD")
PACKED_LAYER_FIELDS = _names("plan.def", "PACKED_LAYER_FIELD")
STEPS = _names("program.def", "STEP")
# Where each field of a step is: in which of its numbers, from which bit on, and in how many; a segment is one number.
STEP_FIELDS = {name: tuple(map(int, place)) for name, *place in _rows_of("program.def", "STEP_FIELD")}
SEGMENT_FIELDS = {name: (0, *map(int, place)) for name, *place in _rows_of("program.def", "SEGMENT_FIELD")}
PROGRAM_LIMITS = {name: int(value) for name, value in _values("program.def", "PROGRAM_LIMIT").items()}
_EXPECTED = _values("errors.def", "EXPECT")

_Row = TypeVar("_Row")


def forms_with(flag: str) -> tuple[str, ...]:
    """The names of the forms that have a flag, in the contract's order."""
    return tuple(name for name, form in FORMS.items() if flag in form.flags)


def complete(what: str, names: tuple[str, ...], rows: Mapping[str, _Row], file: str = "enums.def") -> dict[str, _Row]:
    """``rows`` in the order of a list of ``enums.def``, or of another file, one row per name.

    Raises:
        ImportError: a name without its row, or a row without its name.
    """
    for name in names:
        if name not in rows:
            raise ImportError(f"{what} {name!r} of contract/{file} without its row")
    for name in rows:
        if name not in names:
            raise ImportError(f"{what} {name!r} without its name in contract/{file}")
    return {name: rows[name] for name in names}


def error_message(op: str, argument: str, expected: str, got: object, *details: object) -> str:
    """The text of an error: ``<op>: <argument> must be <expected>, got <got>``.

    ``expected`` is a name of ``errors.def``; ``details`` fill its ``{0}``, ``{1}``.
    """
    return f"{op}: {argument} must be {_EXPECTED[expected].format(*details)}, got {got}"
