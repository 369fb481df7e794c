"""The report of a GPU run: ``bench/results/gpu-<name>.{json,md,png}``."""

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
    """The machine, and the rows, of what the contest wrote; its last line may be cut off."""
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
    """The three files; returns the Markdown one."""
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
        f"- {_about(row)}, {row['contest']} contest: {row['contestant']} {row['problem']}"
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
    """A line a contest: ours, the peer, and their ratio, called and as graphs, and our share of the floor."""
    lines = []
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if not row["problem"]:
            groups.setdefault((row["workload"], row["candidates"], row["precision"], row["contest"]), []).append(row)
    for (workload, candidates, precision, _), group in sorted(groups.items(), key=lambda item: item[0]):
        times = {(row["contestant"], row["graph"]): row["median"] for row in group}
        peer = next((name for name, _ in times if name != "resflow"), "")
        floor = max(group[0]["bytes"] / machine["bytes_per_second"], group[0]["flops"] / machine["flops_per_second"])
        ours = times.get(("resflow", True))
        cells = [workload, f"{candidates:,}", precision, peer]
        for graph in (False, True):
            cells += [_microseconds(times.get((who, graph))) for who in ("resflow", peer)]
            cells.append(_ratio(times.get((peer, graph)), times.get(("resflow", graph))))
        cells += [f"{floor * 1e6:.1f}", f"{100 * floor / ours:.0f} %" if ours else ""]
        lines.append(cells)
    header = ["workload", "B", "precision", "peer", "ours, us", "peer, us", "ratio"]
    header += ["ours, graph", "peer, graph", "ratio", "floor, us", "of ours"]
    return _table(header, lines)


def _microseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e6:.1f}"


def _ratio(peer: float | None, ours: float | None) -> str:
    return "" if peer is None or ours is None else f"{peer / ours:.2f}x"


def _about(row: Row) -> str:
    return f"{row['workload']}, {row['form']}, B = {row['candidates']:,}, {row['precision']}"


def draw(rows: Sequence[Row], path: Path) -> Path | None:
    """Microseconds a call against B: prerank3, dense, bfloat16. Needs matplotlib."""
    wanted = {"workload": "prerank3", "form": "dense", "precision": "bfloat16", "problem": None}
    own = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    if not own or find_spec("matplotlib") is None:
        return None
    from bench.charts import OURS_STYLE, _figure

    figure, axes = _figure("candidates B", "microseconds a call", "dense, prerank3, bfloat16")
    for contestant in dict.fromkeys(row["contestant"] for row in own):
        for graph in (False, True):
            # Ours is measured beside each peer; the last counts.
            line = {
                row["candidates"]: row["median"] * 1e6
                for row in own
                if (row["contestant"], row["graph"]) == (contestant, graph)
            }
            style = OURS_STYLE if contestant == "resflow" else {}
            label = contestant + (", graph" if graph else "")
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
    "request": "One request has all candidates; the peer computes the user's part of the first layer once as well.",
    "catalog": "Ids at random out of a million, a bfloat16 table. The peer has the items' own rows, in order, "
    "and multiplies them.",
}

_METHOD = """\
`make gpu`. A line is a contest of ours with one peer in one process, in turns: seven rounds of bursts of about 15 ms,
timed by device events; the median round. Every contestant's probabilities were compared with the float64 reference
before. Inputs rotate among sets of 256 MB in all where B is 8192 or more, so that they come from memory, and among 4
sets below. "Graph" replays each call as a CUDA graph, both alike; torch.compile is max-autotune, compiled for the
shape. The floor is the larger of the call's bytes at the rate of the copy and its arithmetic at the rate of the
bfloat16 product, whatever the precision."""
