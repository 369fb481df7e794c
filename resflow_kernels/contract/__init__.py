"""What all backends share: op schemas, enumerations, the plan's fields and the error texts.

The ``.def`` files beside this module are the only place where each is written. C++ includes them as
X-macros (``csrc/core/contract.h``); this module reads the same files. It imports neither torch nor
numpy.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

_ENTRY = re.compile(r'^RESFLOW_(\w+)\((\w+)(?:,\s*(?:"([^"]*)"|(-?\d+)))?\)', re.MULTILINE)


@cache
def _entries(file: str) -> list[tuple[str, str, str]]:
    """All ``(list, name, value)`` entries of one ``.def`` file, in order."""
    text = (Path(__file__).parent / file).read_text(encoding="utf-8")
    return [(m[1], m[2], m[3] if m[3] is not None else m[4]) for m in _ENTRY.finditer(text)]


def _names(file: str, kind: str) -> tuple[str, ...]:
    return tuple(name for entry, name, _ in _entries(file) if entry == kind)


def _values(file: str, kind: str) -> dict[str, str]:
    return {name: value for entry, name, value in _entries(file) if entry == kind}


TRAINING_OPS = _names("ops.def", "TRAINING_OP")
OP_SCHEMAS: dict[str, str] = _values("ops.def", "OP") | _values("ops.def", "TRAINING_OP")
ACTIVATIONS = _names("enums.def", "ACTIVATION")
HEADS = _names("enums.def", "HEAD")
FUSIONS = _names("enums.def", "FUSION")
WEIGHTS_PER = _names("enums.def", "WEIGHTS_PER")
PRECISIONS = _names("enums.def", "PRECISION")
GPU_PRECISIONS = _names("enums.def", "GPU_PRECISION")
STATISTICS = _names("enums.def", "STATISTICS")
PLAN_FIELDS = _names("plan.def", "PLAN_FIELD")
PLAN_LIMITS = {name: int(value) for name, value in _values("plan.def", "PLAN_LIMIT").items()}
_EXPECTED = _values("errors.def", "EXPECT")


def complaint(op: str, argument: str, expected: str, got: object, *details: object) -> str:
    """The text of one error: ``<op>: <argument> must be <expected>, got <got>``.

    ``expected`` is a name of ``errors.def``; ``details`` fill its ``{0}``, ``{1}``.
    """
    return f"{op}: {argument} must be {_EXPECTED[expected].format(*details)}, got {got}"
