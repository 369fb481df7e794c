"""Writes a run's JSON as a Markdown report with a chart: ``python -m bench.models.report RESULTS.json``."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from bench.models.harness import ACCEPTED, NOTHING, SPEED_BATCHES, TOLERANCE, WHOLE
from bench.report import _microseconds, _table
from bench.rows import Results, Row, cpu_name

SLOWER = 0.95  # times as fast as eager, from which on a case does not count as slower
FAILURES = ("nothing inside", "crashed", "fails at the call", "wrong", "not built")


def load(path: Path) -> Results:
    """Read the file that ``python -m bench.models`` wrote; its rows are the models."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return Results(content["machine_info"], content["commit_info"], content["datetime"], content["models"])


def write(path: Path) -> Path:
    """Write the report of a results file next to it; returns the Markdown file."""
    results, report = load(path), path.with_suffix(".md")
    chart = draw(results, path.with_suffix(".png"))
    report.write_text(markdown(results, chart), encoding="utf-8")
    return report


def markdown(results: Results, chart: Path | None = None) -> str:
    """The report's text."""
    parts = [
        _head(results),
        "## Summary",
        *conclusions(results),
        f"![Times as fast as eager]({chart.name})" if chart else "",
        "## Models",
        _models(results.rows),
        *_messages(results.rows),
        "## How it was measured",
        _METHOD,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def conclusions(results: Results) -> list[str]:
    """What a reader wants first: outcomes, speed-ups, slower cases, and what was not measured."""
    timed = any(row.get("speed") for row in results.rows)
    disturbed = f"**{results.disturbance}**" if results.disturbance and timed else ""
    return [disturbed, _missing(results), summary(results), slower(results) if timed else "", _not_timed(results)]


def summary(results: Results) -> str:
    """One line per package and one for all: outcomes, and the median speed-up at each batch size."""
    failures = [status for status in FAILURES if any(row["status"] == status for row in results.rows)]
    header = ["package", "models", "fused whole", "partly", "refused", *failures, "multi-task", "inside", "fuse"]
    lines = [
        _summary_line(name, [row for row in results.rows if row["package"] == name], failures)
        for name in dict.fromkeys(row["package"] for row in results.rows)
    ]
    if len(lines) > 1:
        lines.append([f"**{cell}**" if cell else "" for cell in _summary_line("all", results.rows, failures)])
    return _table([*header, *(f"B = {batch:,}" for batch in SPEED_BATCHES)], lines) + "\n\n" + _SUMMARY_NOTE


def _summary_line(name: str, rows: Sequence[Row], failures: Sequence[str]) -> list[str]:
    counts = Counter(row["status"] for row in rows)
    fused = [row for row in rows if row["status"] in ACCEPTED]
    tasks = [row for row in rows if row["kind"] == "multi-task"]
    return [
        name,
        str(len(rows)),
        *(str(counts[status]) for status in (*ACCEPTED, "refused", *failures)),
        f"{sum(row in fused for row in tasks)} of {len(tasks)}" if tasks else "",
        f"{100 * median(row['share_inside'] for row in fused):.0f} %" if fused else "",
        f"{median(row['fuse_seconds'] for row in fused):.1f} s" if fused else "",
        *(_median_factor(fused, batch) for batch in SPEED_BATCHES),
    ]


def _median_factor(rows: Sequence[Row], batch: int) -> str:
    values = [factor for _, factor in factors(rows, batch)]
    return f"{median(values):.2f}x" if values else ""


def factors(rows: Sequence[Row], batch: int) -> list[tuple[Row, float]]:
    """The models that were timed at this batch size, with how many times as fast as eager they are."""
    return [
        (row, one["eager"] / one["fused"])
        for row in rows
        for one in row.get("speed", ())
        if one["batch"] == batch and "problem" not in one
    ]


def slower(results: Results) -> str:
    """The cases in which the fused model is slower than eager."""
    found = [
        f"- {row['package']} {row['name']}, B = {batch:,}: {factor:.2f}x"
        for batch in SPEED_BATCHES
        for row, factor in factors(results.rows, batch)
        if factor < SLOWER
    ]
    cases = sum(len(factors(results.rows, batch)) for batch in SPEED_BATCHES)
    if not found:
        return f"None of the {cases} cases is slower than eager (below {SLOWER}x)."
    return f"Slower than eager (below {SLOWER}x) in {len(found)} of {cases} cases:\n\n" + "\n".join(found)


def _missing(results: Results) -> str:
    absent = results.machine["resflow"]["missing"]
    return "Left out:\n\n" + "\n".join(f"- **{name}: {why}**" for name, why in absent.items()) if absent else ""


def _not_timed(results: Results) -> str:
    found = [
        f"- {row['package']} {row['name']}, B = {one['batch']:,}: {_line(one['problem'])}"
        for row in results.rows
        for one in row.get("speed", ())
        if "problem" in one
    ]
    return "Not timed:\n\n" + "\n".join(found) if found else ""


def failed(results: Results) -> list[str]:
    """The models that ``fuse`` should have handled or refused: it crashed, or made a model that is wrong."""
    return [
        f"{row['package']} {row['name']}"
        for row in results.rows
        if row["status"] in ("crashed", "fails at the call", "wrong")
        or any(one.get("problem", "").startswith("fused") for one in row.get("speed", ()))
    ]


def draw(results: Results, path: Path) -> Path | None:
    """Draw how many times as fast as eager each model is, and each package's median. Needs matplotlib."""
    timed = [row for row in results.rows if row.get("speed")]
    if not timed or find_spec("matplotlib") is None:
        return None
    from bench.charts import _figure

    figure, axes = _figure("", "times as fast as eager", "models of other packages, fused, one thread")
    packages = list(dict.fromkeys(row["package"] for row in timed))
    for index, batch in enumerate(SPEED_BATCHES):
        for place, package in enumerate(packages):
            values = [factor for _, factor in factors([r for r in timed if r["package"] == package], batch)]
            _column(axes, place + 0.27 * (index - 1), values, f"C{index}", f"B = {batch:,}" if place == 0 else None)
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set(yscale="log", xticks=range(len(packages)), xticklabels=packages, xlim=(-0.5, len(packages) - 0.5))
    axes.grid(False, axis="x")
    axes.yaxis.set_major_formatter("{x:g}x")
    axes.yaxis.set_minor_formatter("{x:g}x")
    axes.tick_params(axis="y", which="minor", labelsize=7)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    return path


def _column(axes: Any, at: float, values: Sequence[float], color: str, label: str | None) -> None:
    """A bar from 1 to the median, which stands at its foot, and a dot for each model."""
    if not values:
        return
    middle = median(values)
    axes.bar(at, middle - 1, 0.24, bottom=1, color=color, alpha=0.35, label=label)
    axes.plot([at] * len(values), values, "o", color=color, markersize=3)
    axes.annotate(f"{middle:.2f}", (at, 1), xytext=(0, 2), textcoords="offset points", ha="center", fontsize=7)


def _head(results: Results) -> str:
    own = results.machine["resflow"]
    dirty = " with uncommitted changes" if results.commit.get("dirty") else ""
    facts = [
        ["processor", f"{cpu_name(results.machine)}, one of {own['cores']} usable cores"],
        ["instruction set of our kernels", own["isa"]],
        ["system", f"{results.machine['system']} {results.machine['release']}"],
        ["python", results.machine["python_version"]],
        ["resflow-kernels", f"{own['version']}, commit {results.commit.get('id', 'unknown')[:12]}{dirty}"],
        ["libraries", ", ".join(f"{name} {version}" for name, version in own["versions"].items())],
        ["date", results.date[:19].replace("T", " ")],
    ]
    title = f"# {'Quick run: what' if own['quick'] else 'What'} `fuse` does to models of other packages"
    return "\n\n".join([title, _table(["", ""], facts)])


def _models(rows: Sequence[Row]) -> str:
    times = [f"B = {batch:,}: eager, fused, us" for batch in SPEED_BATCHES]
    header = ["package", "model", "kind", "outcome", "inside", "difference", "fuse, s", *times]
    return _table(header, [_model_line(row) for row in rows])


def _model_line(row: Row) -> list[str]:
    return [
        row["package"],
        row["name"],
        row["kind"],
        row["status"],
        f"{100 * row['share_inside']:.1f} %" if "share_inside" in row else "",
        f"{row['difference']:.0e}" if "difference" in row else "",
        f"{row['fuse_seconds']:.2f}" if "fuse_seconds" in row else "",
        *(_times(row, batch) for batch in SPEED_BATCHES),
    ]


def _times(row: Row, batch: int) -> str:
    timed = next((one for one in row.get("speed", ()) if one["batch"] == batch), None)
    if timed is None or "problem" in timed:
        return "not timed" if timed else ""
    factor = timed["eager"] / timed["fused"]
    return f"{_microseconds(timed['eager'])}, {_microseconds(timed['fused'])} ({factor:.2f}x)"


def _messages(rows: Sequence[Row]) -> list[str]:
    """What was said of the models that are not fused as a whole."""
    lines = [
        f"- {row['package']} {row['name']}, {row['status']}: {_line(row['message'])}" for row in rows if row["message"]
    ]
    return ["## Not fused as a whole", "\n".join(lines)] if lines else []


def _line(message: str, most: int = 300) -> str:
    text = " ".join(message.split())
    return text if len(text) <= most else text[: most - 3] + "..."


_SUMMARY_NOTE = """\
Multi-task: fused whole or partly. Inside, fuse: medians of the share of multiply-adds inside, and of the time that
`fuse` took. B: how many times as fast as eager on one thread, the median of the models fused whole or partly."""

_METHOD = f"""\
`python -m bench.models`. Every model is built in its package's own way, with drawn weights and BatchNorm statistics, in
eval mode, and fused by `fuse(model, example_inputs)`. Its outputs are compared with eager's at two batch sizes other
than the timed ones, and again at those: a difference above {TOLERANCE:g} of the largest output (of 1, if that is
larger) is wrong. Multiply-adds are those that PyTorch's `FlopCounterMode` counts: the matrix products, attention's
included, that PyTorch itself runs before and after; elementwise products and look-ups in tables do not count. Fused
whole: {WHOLE:.0%} or more inside; nothing inside: less than {NOTHING:.0%}. Times are medians of calls on one thread in
inference mode, interleaved in one process: in each round, whose order changes, both have untimed calls, then a burst of
timed ones. Inputs are the same in every call, so tables' rows come from cache, for both alike."""


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
