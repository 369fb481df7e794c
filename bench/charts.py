"""The report's charts, as PNG."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bench.rows import Results, Row, best_baseline, by_case, ours
from resflow_kernels.testing import WORKLOADS

OURS_STYLE = {"color": "black", "linewidth": 2.5, "zorder": 3}
LINE_OF_PRECISION = {"float32": "-", "bfloat16": "--", "int8": ":"}


def draw(results: Results, folder: Path) -> dict[str, Path]:
    """Draw every chart that the results have rows for; returns paths by title. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")  # no display is needed
    made = {}
    for title, (name, chart) in _CHARTS.items():
        figure = chart(results)
        if figure is not None:
            made[title] = folder / f"{results.slug}-{name}.png"
            figure.savefig(made[title], dpi=120, bbox_inches="tight")
    return made


def _latency(results: Results) -> Any:
    rows = _dense_rows(results, "prerank3")
    figure, axes = _figure("candidates B", "microseconds per call", "dense, prerank3, all cores")
    for implementation, series in _by_implementation(rows):
        times = [row["median"] * 1e6 for row in series]
        axes.loglog([row["candidates"] for row in series], times, **_line(implementation, series))
    return _finished(figure, axes, rows)


def _roofline(results: Results) -> Any:
    """FLOP/s against FLOP per byte of memory traffic, which is inputs, weights and outputs once each."""
    machine, rows = results.machine["resflow"], _dense_rows(results, "prerank3")
    figure, axes = _figure("FLOP per byte of inputs, weights and outputs", "GFLOP/s", "dense, prerank3, all cores")
    for implementation, series in _by_implementation(rows):
        rates = [row["gflops"] for row in series]
        axes.loglog([_intensity(row) for row in series], rates, **_line(implementation, series))
    if rows:
        peak, bandwidth = rows[0]["peak_gflops"], machine["read_gbytes_per_second"]
        ends = [min(map(_intensity, rows)) / 2, max(peak / bandwidth, *map(_intensity, rows)) * 2]
        xs = [ends[0], peak / bandwidth, ends[1]] if ends[0] < peak / bandwidth else ends
        roof = [min(peak, bandwidth * x) for x in xs]
        axes.loglog(xs, roof, "k:", label=f"fp32 multiply-add peak {peak:.0f} GFLOP/s, memory {bandwidth:.0f} GB/s")
    return _finished(figure, axes, rows)


def _speed_up(results: Results) -> Any:
    rows = results.of(form="dense", threads=results.machine["resflow"]["cores"])
    figure, axes = _figure("candidates B", "times as fast as the best baseline", "dense, all cores")
    for workload in dict.fromkeys(row["workload"] for row in rows):
        cases = by_case(row for row in rows if row["workload"] == workload)
        for precision, line in LINE_OF_PRECISION.items():
            # float32 is compared with float32 baselines, rounded precisions with baselines of any precision.
            wanted = {"precision": "float32"} if precision == "float32" else {}
            pairs = [(ours(case, precision), best_baseline(case, **wanted)) for case in cases]
            points = [(own["candidates"], best["median"] / own["median"]) for own, best in pairs if own and best]
            if points:
                about = f"{workload}, {precision} over the best {'float32' if wanted else 'of any precision'}"
                axes.semilogx(*zip(*points, strict=True), marker="o", linestyle=line, label=about)
    axes.axhline(1, color="grey", linewidth=0.8)
    return _finished(figure, axes, rows)


def _catalog(results: Results) -> Any:
    rows = results.of(form="growth", axis="candidates")
    figure, axes = _figure("candidates of one request", "milliseconds per call", "request form, split, prerank3")
    for implementation, series in _by_implementation(rows):
        times = [row["median"] * 1e3 for row in series]
        axes.loglog([row["candidates"] for row in series], times, **_line(implementation, series))
    return _finished(figure, axes, rows)


_CHARTS: dict[str, tuple[str, Callable[[Results], Any]]] = {
    "Latency against B": ("latency", _latency),
    "Roofline": ("roofline", _roofline),
    "Speed-up over the best baseline": ("speed-up", _speed_up),
    "Cost against catalog size": ("catalog", _catalog),
}


def _dense_rows(results: Results, workload: str) -> list[Row]:
    return results.of(form="dense", workload=workload, threads=results.machine["resflow"]["cores"])


def _intensity(row: Row) -> float:
    plan = WORKLOADS[row["workload"]].plan
    width = plan.in_features + 2 * plan.tasks + 1
    return plan.flops_per_candidate * row["candidates"] / (4 * width * row["candidates"] + plan.packed_bytes)


def _by_implementation(rows: Iterable[Row]) -> list[tuple[str, list[Row]]]:
    groups: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["candidates"]):
        groups.setdefault(row["implementation"], []).append(row)
    return sorted(groups.items(), key=lambda group: not group[1][0]["ours"])


def _line(implementation: str, rows: list[Row]) -> Row:
    style = OURS_STYLE if rows[0]["ours"] else {}
    return {"marker": "o", "label": implementation, "linestyle": LINE_OF_PRECISION[rows[0]["precision"]], **style}


def _figure(x: str, y: str, title: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5))
    axes = figure.add_subplot()
    axes.set(xlabel=x, ylabel=y, title=title)
    axes.grid(True, which="major", alpha=0.3)
    return figure, axes


def _finished(figure: Any, axes: Any, rows: list[Row]) -> Any:
    if not rows:
        return None
    axes.legend(fontsize=8)
    return figure
