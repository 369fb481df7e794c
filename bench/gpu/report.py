"""Writes the report of a GPU run: ``bench/results/gpu-<name>.{json,md,png}``."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.gpu.budget import Outcome
from bench.report import _table

Row = dict[str, Any]


def read(path: Path) -> tuple[Row, list[Row]]:
    """Read the machine and the rows that the suite wrote; its last line may be cut off."""
    machine: Row = {}
    rows: list[Row] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        machine = row.get("machine", machine)
        if "machine" not in row:
            rows.append(row)
    return machine, rows


def write(outcomes: Sequence[Outcome], machine: Row, rows: Sequence[Row], folder: Path) -> Path:
    """Write the three files; returns the Markdown file."""
    name = "-".join(re.findall(r"[a-z0-9]+", str(machine.get("gpu", "none")).lower()))
    path = folder / f"gpu-{name}.md"
    content = {"machine": machine, "steps": [asdict(outcome) for outcome in outcomes], "rows": list(rows)}
    path.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    chart = draw(rows, path.with_suffix(".png"))
    path.write_text(markdown(outcomes, machine, rows, chart), encoding="utf-8")
    return path


def markdown(outcomes: Sequence[Outcome], machine: Row, rows: Sequence[Row], chart: Path | None = None) -> str:
    """The report's text."""
    steps = [[one.name, one.result, f"{one.seconds:.0f}", one.about] for one in outcomes]
    parts = ["# GPU kernels", _head(machine), "## Steps", _table(["step", "", "s", ""], steps)]
    for form in dict.fromkeys(row["form"] for row in rows):
        parts += [
            f"## {form.capitalize()} form",
            _NOTES.get(form, ""),
            _cases([r for r in rows if r["form"] == form], machine),
        ]
    parts += [f"![Microseconds against B]({chart.name})"] if chart else []
    unmeasured = [
        f"- {_about(row)}, {row['suite']} suite: {row['implementation']} {row['problem']}"
        for row in rows
        if row["problem"]
    ]
    parts += ["## Not measured", "\n".join(unmeasured)] if unmeasured else []
    return "\n\n".join(part for part in [*parts, "## How it was measured", _METHOD] if part) + "\n"


def _head(machine: Row) -> str:
    if not machine:
        return "No GPU was measured."
    rates = [
        f"copy {machine['bytes_per_second'] / 1e12:.2f} TB/s",
        f"bfloat16 product {machine['flops_per_second'] / 1e12:.0f} TFLOP/s",
        f"a graph of one empty kernel {machine['empty_graph_seconds'] * 1e6:.1f} us",
    ]
    about = [f"{name} {value}" for name, value in machine.items() if not name.endswith(("_second", "_seconds"))]
    return ", ".join(about) + ". Measured on it: " + ", ".join(rates) + "."


def _cases(rows: Sequence[Row], machine: Row) -> str:
    """One line per case and baseline: both times and their ratio, called and as graphs, and our share of the floor."""
    lines = []
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if not row["problem"]:
            groups.setdefault((row["workload"], row["candidates"], row["precision"], row["suite"]), []).append(row)
    for (workload, candidates, precision, _), group in sorted(groups.items(), key=lambda item: item[0]):
        times = {(row["implementation"], row["graph"]): row["median"] for row in group}
        baseline = next((name for name, _ in times if name != "resflow"), "")
        floor = max(group[0]["bytes"] / machine["bytes_per_second"], group[0]["flops"] / machine["flops_per_second"])
        ours = times.get(("resflow", True))
        cells = [workload, f"{candidates:,}", precision, baseline]
        for graph in (False, True):
            cells += [_microseconds(times.get((name, graph))) for name in ("resflow", baseline)]
            cells.append(_ratio(times.get((baseline, graph)), times.get(("resflow", graph))))
        cells += [f"{floor * 1e6:.1f}", f"{100 * floor / ours:.0f} %" if ours else ""]
        lines.append(cells)
    header = ["workload", "B", "precision", "baseline", "ours, us", "baseline, us", "ratio"]
    header += ["ours, graph", "baseline, graph", "ratio", "floor, us", "of ours"]
    return _table(header, lines)


def _microseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e6:.1f}"


def _ratio(baseline: float | None, ours: float | None) -> str:
    return "" if baseline is None or ours is None else f"{baseline / ours:.2f}x"


def _about(row: Row) -> str:
    return f"{row['workload']}, {row['form']}, B = {row['candidates']:,}, {row['precision']}"


def draw(rows: Sequence[Row], path: Path) -> Path | None:
    """Draw microseconds per call against B: prerank3, dense, bfloat16. Needs matplotlib."""
    wanted = {"workload": "prerank3", "form": "dense", "precision": "bfloat16", "problem": None}
    drawn = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    if not drawn or find_spec("matplotlib") is None:
        return None
    from bench.charts import OURS_STYLE, _figure

    figure, axes = _figure("candidates B", "microseconds per call", "dense, prerank3, bfloat16")
    for implementation in dict.fromkeys(row["implementation"] for row in drawn):
        for graph in (False, True):
            # Ours is measured once per baseline; the last measurement is drawn.
            line = {
                row["candidates"]: row["median"] * 1e6
                for row in drawn
                if (row["implementation"], row["graph"]) == (implementation, graph)
            }
            style = OURS_STYLE if implementation == "resflow" else {}
            label = implementation + (", graph" if graph else "")
            axes.loglog(
                *zip(*sorted(line.items()), strict=True),
                marker="o",
                label=label,
                linestyle="-" if graph else ":",
                **style,
            )
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    return path


_NOTES = {
    "request": "One request has all candidates; the baseline computes the user's part of the first layer once as well.",
    "catalog": "Random ids out of a million, a bfloat16 table. The baseline multiplies the items' rows, which it is "
    "given in order.",
}

_METHOD = """\
`make gpu`. Each line compares ours with one baseline in one process, interleaved: seven rounds of bursts of about
15 ms, timed by device events; the median round. Every implementation's probabilities were first compared with the
float64 reference. Inputs rotate among sets of 256 MB in all where B is 8192 or more, so that they come from memory, and
among 4 sets below. "Graph" replays each call as a CUDA graph, for both alike; torch.compile is max-autotune, compiled
for the shape. The floor is the larger of the call's bytes at the rate of the copy and its arithmetic at the rate of the
bfloat16 product, whatever the precision."""
