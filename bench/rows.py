"""Results as rows: what pytest-benchmark's JSON holds, one a contestant of a case."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.quiet import MOST_BY_OTHERS

Row = dict[str, Any]

_CASE = ("form", "workload", "candidates", "requests", "catalog", "tasks", "features", "threads", "mode", "axis")


@dataclass(frozen=True)
class Results:
    """A run.

    Args:
        machine: pytest-benchmark's ``machine_info``; ours is under ``"resflow"``.
        commit: its ``commit_info``.
        date: ISO, of the run.
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
        """Rows of contestants that could not be timed."""
        return [row for row in self.rows if row.get("problem")]

    @property
    def disturbance(self) -> str | None:
        """What to say of a run beside which others used the machine; None of a quiet one."""
        taken = self.machine["resflow"]["taken_by_others"]
        if taken is None:
            return "Whether other processes used the machine meanwhile is not known here."
        if taken <= MOST_BY_OTHERS:
            return None
        return (
            f"Disturbed run: other processes took {100 * taken:.0f} % of the machine meanwhile (at most "
            f"{100 * MOST_BY_OTHERS:.0f} % is quiet). None of its figures, passed bars included, is to be quoted."
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
    """Whether the row has these values; a callable is asked."""
    return all(
        value(row.get(name)) if isinstance(value, Callable) else row.get(name) == value  # type: ignore[arg-type]
        for name, value in wanted.items()
    )


def by_case(rows: Iterable[Row]) -> list[list[Row]]:
    """Rows of the same contest together, in the order they were measured."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(name) for name in _CASE), []).append(row)
    return list(groups.values())


def best_peer(case: Sequence[Row], **wanted: Any) -> Row | None:
    """The fastest peer of a contest with these values."""
    peers = [row for row in case if not row["ours"] and matches(row, wanted)]
    return min(peers, key=lambda row: row["median"], default=None)


def ours(case: Sequence[Row], precision: str = "float32") -> Row | None:
    """Our row of a contest."""
    return next((row for row in case if row["ours"] and row["precision"] == precision), None)


def size(row: Row) -> str:
    """Candidates, requests times candidates, or ids of a catalog."""
    if row.get("catalog"):
        return f"{row['candidates']:,} ids of {row['catalog']:,}"
    return f"{row['requests']} x {row['candidates']:,}" if row.get("requests") else f"{row['candidates']:,}"
