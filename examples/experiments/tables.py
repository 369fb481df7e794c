"""Runs as Markdown: means and standard deviations over seeds, and the settings that tuning tried."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import NamedTuple

from .store import Row, methods_of


class Summary(NamedTuple):
    """A metric over seeds; for a single seed the deviation is NaN."""

    mean: float
    deviation: float
    seeds: int


class Column(NamedTuple):
    """A column of a results table.

    ``best`` is ``"high"`` or ``"low"``: the mean that is printed bold; ``""``: none.
    """

    metric: str
    title: str
    digits: int = 4
    best: str = "high"


def summary(rows: Sequence[Row], metric: str) -> Summary:
    """Mean and sample standard deviation of a metric over some rows.

    Raises:
        ValueError: no rows, or a row without the metric.
    """
    lacking = [row["seed"] for row in rows if metric not in row["metrics"]]
    if lacking or not rows:
        raise ValueError(f"rows must all have the metric {metric!r}, got {len(rows)} rows, {len(lacking)} without it")
    values = [float(row["metrics"][metric]) for row in rows]
    return Summary(fmean(values), stdev(values) if len(values) > 1 else math.nan, len(values))


def results(
    rows: Sequence[Row],
    columns: Sequence[Column],
    names: Mapping[str, str],
    group: Callable[[Row], str] | None = None,
    header: str = "method",
) -> str:
    """One line per method, or per value of ``group``; the best mean of a column is bold.

    Args:
        rows: finished runs.
        columns: the columns to show.
        names: display names of groups; others are shown as they are.
        group: a row's group; ``None``: its method.
        header: header of the first column.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["method"] if group is None else group(row), []).append(row)
    lines = [[names.get(name, name)] for name in groups]
    for column in columns:
        summaries = [summary(own, column.metric) for own in groups.values()]
        best = {"high": max, "low": min}[column.best](s.mean for s in summaries) if column.best else None
        for line, own in zip(lines, summaries, strict=True):
            line.append(_cell(own, column.digits, own.mean == best and len(summaries) > 1))
    return table([header, *(column.title for column in columns)], lines)


def tuning(rows: Sequence[Row], names: Mapping[str, str], digits: int = 4) -> str:
    """All settings that were tried, with their validation outcomes; each method's best is bold.

    Returns:
        One line per method, one column per setting; an empty string if nothing was tuned.
    """
    if not rows:
        return ""
    settings = list(dict.fromkeys(describe(row) for row in rows))
    lines = []
    for method in methods_of(rows):
        own = {describe(row): row["valid"] for row in rows if row["method"] == method}
        best = max(own.values())
        cells = [_bold(f"{own[s]:.{digits}f}", own[s] == best) if s in own else "" for s in settings]
        lines.append([names.get(method, method), *cells])
    return table(["method", *settings], lines)


def ordered(rows: Sequence[Row], names: Iterable[str]) -> list[Row]:
    """Rows in the order of their methods in ``names``."""
    order = list(names)
    return sorted(rows, key=lambda row: order.index(row["method"]))


def describe(row: Row) -> str:
    """A row's setting in words.

    >>> describe({"setting": {"learning_rate": 0.001, "dropout": 0.5}})
    'learning rate 0.001, dropout 0.5'
    """
    return ", ".join(
        f"{name.replace('_', ' ')} {value}" for name, value in sorted(row["setting"].items(), reverse=True)
    )


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first column to the left, numbers to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *lines))


def _cell(own: Summary, digits: int, best: bool) -> str:
    mean = _bold(f"{own.mean:.{digits}f}", best)
    return mean if math.isnan(own.deviation) else f"{mean} ± {own.deviation:.{digits}f}"


def _bold(text: str, best: bool) -> str:
    return f"**{text}**" if best else text
