"""Results as rows of pytest-benchmark's JSON, one per implementation of a case."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.noise import MAX_OTHERS_SHARE

Row = dict[str, Any]

_CASE = ("form", "workload", "candidates", "requests", "catalog", "tasks", "features", "threads", "mode", "axis")


@dataclass(frozen=True)
class Results:
    """The results of one run.

    Args:
        machine: pytest-benchmark's ``machine_info``; ours is under ``"resflow"``.
        commit: pytest-benchmark's ``commit_info``.
        date: date of the run, in ISO format.
        rows: ``extra_info`` of each result, and ``median``, ``q1``, ``q3`` in seconds.
    """

    machine: Row
    commit: Row
    date: str
    rows: list[Row]

    def of(self, **wanted: Any) -> list[Row]:
        """The timed rows with these values."""
        return [row for row in self.rows if not row.get("problem") and matches(row, wanted)]

    @property
    def problems(self) -> list[Row]:
        """Rows of implementations that could not be timed."""
        return [row for row in self.rows if row.get("problem")]

    @property
    def disturbance(self) -> str | None:
        """The report's remark on a run during which other processes used the machine; None for a quiet run."""
        taken = self.machine["resflow"]["others_share"]
        if taken is None:
            return "It is not known here whether other processes used the machine meanwhile."
        if taken <= MAX_OTHERS_SHARE:
            return None
        return (
            f"Disturbed run: other processes took {100 * taken:.0f} % of the machine meanwhile (at most "
            f"{100 * MAX_OTHERS_SHARE:.0f} % is quiet). None of its figures, passed targets included, is to be quoted."
        )

    @property
    def slug(self) -> str:
        """The machine's name in file names."""
        own = self.machine["resflow"]
        cpu = re.sub(r"\([^)]*\)|@.*", "", cpu_name(self.machine)).lower()
        words = [*re.findall(r"[a-z0-9]+", cpu), f"{own['cores']}-cores", own["isa"], *(["quick"] * own["quick"])]
        return "-".join(words)


def load(path: Path) -> Results:
    """Read pytest-benchmark's JSON."""
    content = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        {**entry["extra_info"], **{name: entry["stats"][name] for name in ("median", "q1", "q3")}}
        for entry in content["benchmarks"]
    ]
    return Results(content["machine_info"], content["commit_info"], content["datetime"], rows)


def cpu_name(machine: Row) -> str:
    """The processor's model."""
    return str(machine.get("cpu", {}).get("brand_raw") or machine.get("processor") or "unknown")


def matches(row: Row, wanted: Row) -> bool:
    """Whether the row has these values; a callable is a condition on the value."""
    return all(
        value(row.get(name)) if isinstance(value, Callable) else row.get(name) == value  # type: ignore[arg-type]
        for name, value in wanted.items()
    )


def by_case(rows: Iterable[Row]) -> list[list[Row]]:
    """Rows grouped by case, in the order they were measured."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(name) for name in _CASE), []).append(row)
    return list(groups.values())


def best_baseline(case: Sequence[Row], **wanted: Any) -> Row | None:
    """The fastest baseline of a case with these values."""
    baselines = [row for row in case if not row["ours"] and matches(row, wanted)]
    return min(baselines, key=lambda row: row["median"], default=None)


def ours(case: Sequence[Row], precision: str = "float32") -> Row | None:
    """Our row of a case."""
    return next((row for row in case if row["ours"] and row["precision"] == precision), None)


def size(row: Row) -> str:
    """The size as text: candidates, requests times candidates, or ids out of a catalog."""
    if row.get("catalog"):
        return f"{row['candidates']:,} ids of {row['catalog']:,}"
    return f"{row['requests']} x {row['candidates']:,}" if row.get("requests") else f"{row['candidates']:,}"
