"""Writes a run's JSON as a Markdown report with charts: ``python -m bench.report RESULTS.json``."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from bench.charts import draw
from bench.rows import Results, Row, best_baseline, by_case, cpu_name, load, ours, size
from bench.targets import Evaluation, evaluate, show

AXES = {"candidates": "candidates N of one request", "tasks": "tasks K", "features": "input width D"}


def write(path: Path) -> Path:
    """Write the report of a results file next to it; returns the Markdown file."""
    results = load(path)
    charts, note = {}, None
    if find_spec("matplotlib") is None:
        note = "No charts: matplotlib is not installed (`pip install .[bench]`)."
    else:
        charts = draw(results, path.parent)
    report = path.with_suffix(".md")
    report.write_text(markdown(results, charts, note), encoding="utf-8")
    return report


def markdown(results: Results, charts: dict[str, Path] | None = None, note: str | None = None) -> str:
    """The report's text."""
    disturbed = f"**{results.disturbance}**" if results.disturbance else ""
    quick = _QUICK_NOTE if results.machine["resflow"]["quick"] else ""
    parts = [_head(results), disturbed, quick, _problems(results), "## Targets", target_table(evaluate(results))]
    parts += ["## Charts", note] if note else []
    parts += [part for title, path in (charts or {}).items() for part in (f"## {title}", f"![{title}]({path.name})")]
    parts += ["## Dense form", *_matrices(results, "dense")]
    parts += ["## Request form", _REQUEST_NOTE, *_matrices(results, "request")]
    parts += ["## Catalog form", _CATALOG_NOTE, *_matrices(results, "catalog")]
    parts += ["## Feature form", _FEATURES_NOTE, *_medians(results, "features")]
    parts += ["## Twin tower form", _TWIN_NOTE, *_medians(results, "twin tower")]
    parts += ["## Small batches", *_matrices(results, "small batches"), *_overhead(results)]
    parts += ["## Training step", _TRAINING_NOTE, *_medians(results, "training")]
    parts += ["## How cost grows", *_growth(results), "## How it was measured", _METHOD]
    return "\n\n".join(part for part in parts if part) + "\n"


def target_table(evaluations: Sequence[Evaluation]) -> str:
    """A table of targets, each with pass or fail."""
    rows = [
        [v.target.name, v.measured.of, v.target.bound, show(v.measured.value, v.target.unit), v.measured.beside, v.text]
        if v.measured
        else [v.target.name, "", v.target.bound, "", "", v.text]
        for v in evaluations
    ]
    return _table(["target", "case", "bound", "measured", "relative to", ""], rows)


def slope(points: Sequence[tuple[float, float]]) -> float:
    """The exponent of the power law fitted through ``(size, seconds)``, least squares on logarithms.

    >>> round(slope([(1, 3), (10, 30), (100, 300)]), 6)
    1.0
    """
    xs, ys = [math.log(x) for x, _ in points], [math.log(y) for _, y in points]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - mean_x) ** 2 for x in xs)
    return sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread if spread else math.nan


def _head(results: Results) -> str:
    own = results.machine["resflow"]
    versions = ", ".join(f"{name} {value}" for name, value in own["versions"].items())
    dirty = " with uncommitted changes" if results.commit.get("dirty") else ""
    lines = [
        f"# {'Quick benchmark' if own['quick'] else 'Benchmark'}: {cpu_name(results.machine)}, {own['cores']} cores",
        "",
        *_table(
            ["", ""],
            [
                ["processor", f"{cpu_name(results.machine)}, {own['cores']} usable cores"],
                ["instruction set of our kernels", own["isa"]],
                ["system", f"{results.machine['system']} {results.machine['release']}"],
                ["python", results.machine["python_version"]],
                ["resflow-kernels", f"{own['version']}, commit {results.commit.get('id', 'unknown')[:12]}{dirty}"],
                ["libraries", versions],
                ["memory read by all cores", f"{own['read_gbytes_per_second']:.1f} GB/s"],
                ["date", results.date[:19].replace("T", " ")],
            ],
        ).splitlines(),
    ]
    return "\n".join(lines)


def _problems(results: Results) -> str:
    """A list of the baselines that could not be timed, with the reasons."""
    baselines = results.machine["resflow"]["baselines"]
    missing = [f"- **{name}: {state}**" for name, state in baselines.items() if state.startswith("missing")]
    others: dict[tuple[str, str], int] = {}
    for row in results.problems:
        if not row["problem"].endswith(baselines[row["implementation"]].removeprefix("missing: ")):
            key = (f"{row['implementation']}, {row['way']}", row["problem"])
            others[key] = others.get(key, 0) + 1
    lines = missing + [f"- **{name}: {problem}** ({count} cases)" for (name, problem), count in others.items()]
    if not lines:
        return "All baselines were measured and gave the right scores."
    return "Not timed:\n\n" + "\n".join(lines)


def _matrices(results: Results, form: str) -> list[str]:
    """One table per workload, thread count and mode; a row per size, a column per implementation."""
    groups: dict[tuple[str, int, str], list[Row]] = {}
    for row in results.of(form=form):
        groups.setdefault((row["workload"], row["threads"], row["mode"]), []).append(row)
    parts = []
    for (workload, threads, mode), rows in groups.items():
        extra = "" if mode == "back to back" else f", {mode}"
        parts += [f"### {workload}, {threads} thread{'s' * (threads > 1)}{extra}", _matrix(rows, "candidates", size)]
    return parts or ["Not measured."]


def _matrix(rows: list[Row], header: str, name: Callable[[Row], str]) -> str:
    implementations = list(dict.fromkeys(row["implementation"] for row in rows))
    ways = [way for way in ("joined rows", "split") if any(row["way"] == way for row in rows)]
    lines = []
    for case in by_case(rows):
        own = ours(case)
        cells = [_cell(case, implementation) for implementation in implementations]
        lines.append([name(case[0]), *cells, *_own_cells(own), *_ratios(own, case, ways)])
    ratio_names = [f"over best fp32 {way}" for way in ways] or ["over best fp32 baseline"]
    columns = [header, *(f"{implementation}, us" for implementation in implementations)]
    return _table([*columns, "GFLOP/s", "of fp32 peak", "P99 / median", *ratio_names, "over best of any"], lines)


def _cell(case: list[Row], implementation: str) -> str:
    """Median microseconds: of joined rows and of the split, where both were timed."""
    rows = [row for row in case if row["implementation"] == implementation]
    return " / ".join(_microseconds(row["median"]) for row in rows) or "-"


def _own_cells(own: Row | None) -> list[str]:
    if own is None:
        return ["-"] * 3
    tail = own["p99"] / own["median"]
    return [f"{own['gflops']:.1f}", f"{100 * own['share_of_peak']:.1f} %", f"{tail:.2f}"]


def _ratios(own: Row | None, case: list[Row], ways: list[str]) -> list[str]:
    fp32 = [best_baseline(case, precision="float32", way=way) for way in ways]
    baselines = [*(fp32 or [best_baseline(case, precision="float32")]), best_baseline(case)]
    return [
        "-" if own is None or row is None else f"{row['median'] / own['median']:.2f} ({row['implementation']})"
        for row in baselines
    ]


def _overhead(results: Results) -> list[str]:
    rows = results.of(form="overhead")
    if not rows:
        return []
    medians = rows[0]["medians"]
    lines = [[name, f"{value * 1e6:.2f}", f"{(value - medians['C++']) * 1e6:.2f}"] for name, value in medians.items()]
    return ["### One candidate, by caller", _table(["caller", "median, us", "over C++, us"], lines)]


def _medians(results: Results, form: str) -> list[str]:
    """The table of a form whose rows hold the medians of all implementations, one line per row."""
    rows = results.of(form=form)
    if not rows:
        return ["Not measured."]
    names = list(dict.fromkeys(name for row in rows for name in row["medians"]))
    lines = [
        [
            str(row["threads"]),
            size(row),
            row["precision"],
            *(_microseconds(row["medians"][name]) if name in row["medians"] else "-" for name in names),
        ]
        for row in rows
    ]
    return [_table(["threads", "candidates", "precision", *(f"{name}, us" for name in names)], lines)]


def _growth(results: Results) -> list[str]:
    parts = []
    for axis, about in AXES.items():
        rows = results.of(form="growth", axis=axis)
        if rows:
            parts += [
                f"### {about}",
                _matrix(rows, about, lambda row, axis=axis: f"{row[axis]:,}"),
                _slopes(rows, axis),
            ]
    return [*parts, _GROWTH_NOTE] if parts else ["Not measured."]


def _slopes(rows: list[Row], axis: str) -> str:
    series: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in rows:
        series.setdefault((row["implementation"], row["way"]), []).append((row[axis], row["median"]))
    lines = [[name, way, f"{slope(points):.2f}"] for (name, way), points in series.items()]
    return _table(["implementation", "form", f"time grows as {axis} to the power of"], lines)


def _microseconds(seconds: float) -> str:
    value = seconds * 1e6
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


_QUICK_NOTE = (
    "The quick run leaves out most workloads and sizes, and torch.compile at all sizes but one, because it compiles "
    "again for each."
)

_REQUEST_NOTE = (
    "A baseline's cell is its time on joined rows (the joining itself is not timed) / with the split by hand, which "
    "computes the user's part of the first layer once per request. GFLOP/s count the arithmetic that remains after the "
    "split."
)

_CATALOG_NOTE = (
    "One request of random ids, a new list per call. Our cells are times with a float32 / bfloat16 / int8 table; "
    "baselines score the same candidates' joined rows densely. GFLOP/s count the layers after the first."
)

_FEATURES_NOTE = (
    "Ids and lists of ids against nn.Embedding and nn.EmbeddingBag, a concatenation and our dense op (or PyTorch eager "
    "throughout); tables of a million rows, new ids per call. The precision is that of the towers."
)

_TWIN_NOTE = (
    "One request, the best 100 of a million items of three tasks of width 64, in one stream; eager: matrix products, "
    "sigmoid, fusion and topk, in bfloat16 where ours is int8."
)

_TRAINING_NOTE = (
    "Forward, loss and backward of ecomm2 with batch statistics in BatchNorm and gradients of the input; where named, "
    "Adam's step as well."
)

_GROWTH_NOTE = (
    "torch.compile is left out of these series: it compiles again for each size. A power below 1 shows a fixed cost "
    "that is amortised; above 1, caches that overflow."
)

_METHOD = """\
All implementations of a table row ran in one process, on the same inputs and number of threads, interleaved: in each
round, whose order changes, an implementation has a rest, untimed calls, then a burst of timed calls. Times are medians
over all rounds; a ratio is one of medians of the same run. Each implementation's probabilities and score were first
checked against the float64 reference (1e-4 for float32 baselines, 2e-2 for bfloat16, 2e-6 for our float32). Baselines
return probabilities and score, ours the logits too. PyTorch eager runs the first layers of all tasks as one matrix
product; the ONNX graph has one product per task, which is faster there. torch.compile: max-autotune and freezing,
compiled for each shape. OpenVINO: compiled for each shape, latency hint. The multiply-add peak was measured in the same
process from registers alone, in the instruction set of our kernels. Pauses are 1 ms of sleep before each call; the busy
neighbour is a spinning process that takes one core."""


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
