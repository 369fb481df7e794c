"""The comparison's report: tables and charts from finished runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from examples.experiments import charts, report, tables
from examples.experiments.methods import NAMES
from examples.experiments.store import Row, Store, methods_of
from examples.experiments.tables import Column

from .comparison import BASE, CHAIN, FACTORS, HIDDEN, TOPOLOGIES, TOPOLOGY_NAMES, WIDTH, Comparison
from .fusions import FORMS, SETTINGS, TUNED_METHODS
from .residuals import EDGES, GROUPS

TASK_NAMES = {"click": "click", "long_view": "long view", "finish": "finish", "like": "like"}


def write_report(folder: Path, store: Store, comparison: Comparison) -> Path:
    """Write ``comparison.md`` and its charts from the runs finished so far.

    Returns:
        The path of the report.
    """
    everything = [row for name in _SECTIONS for stage in ("tune", "final") for row in store.rows(name, stage)]
    settings = {
        "data": f"{len(comparison.data.train):,} impressions to train on, {len(comparison.data.valid):,} to choose "
        f"settings and epochs by, {len(comparison.data.test):,} reported",
        "towers": "-".join(map(str, HIDDEN)) + ", PReLU, BatchNorm",
        "embedding width": WIDTH,
        "ranking the catalog": "at most that many users of the validation days, and as many of the test days",
        **store.conditions,
    }
    parts = [report.head("KuaiRand: comparison", store, everything, settings)]
    for name, section in _SECTIONS.items():
        if store.rows(name):
            parts.append(section(folder, store))
    path = folder / "comparison.md"
    report.write(path, *parts)
    return path


def _methods(title: str, name: str, tasks: tuple[str, ...], folder: Path, store: Store) -> str:
    rows = tables.ordered(store.rows(name), NAMES)
    quality = [Column(f"{metric}_{task}", f"{label}, {TASK_NAMES[task]}") for task in tasks for metric, label in _AUCS]
    loss = [Column(f"log_loss_{task}", f"log loss, {TASK_NAMES[task]}", best="low") for task in tasks]
    error = [Column(f"calibration_error_{task}", f"ECE, {TASK_NAMES[task]}", best="low") for task in tasks]
    panels = {
        f"test AUC, {TASK_NAMES[task]}": {
            NAMES[method]: tables.summary([row for row in rows if row["method"] == method], f"auc_{task}")
            for method in methods_of(rows)
        }
        for task in tasks
    }
    chart = charts.points(folder / f"{name}.png", panels, "AUC")
    recall = [Column("wr100_last", "WR@100, p of finish"), Column("wr100_sum", "WR@100, sum of all p")]
    return report.section(
        title,
        f"Mean ± standard deviation over {len({row['seed'] for row in rows})} seeds, test days. "
        "GAUC: AUC within each user, weighted by impressions.",
        tables.results(rows, quality, NAMES),
        tables.results(rows, loss + error, NAMES),
        tables.results(rows, recall, NAMES) if name == "chain" else "",
        report.chart(title, chart),
        *_tuned(store, name, NAMES),
    )


def _chain(folder: Path, store: Store) -> str:
    return "\n\n".join(
        [
            _methods("Click → long view → finish", "chain", CHAIN.tasks, folder, store),
            _fusion(store.rows("chain")),
            _residuals(folder, store.rows("chain")),
        ]
    )


def _fusion(rows: list[Row]) -> str:
    chosen = []
    for row in tables.ordered(rows, NAMES):
        for form in FORMS:
            if row["method"] in TUNED_METHODS:
                own = row["details"]["fusions"][form]
                metrics = {"test": row["metrics"][f"wr100_{form}"], "valid": own["valid"]}
                chosen.append({**row, "metrics": metrics, "group": f"{NAMES[row['method']]}, {form}", **own})
    if not chosen:
        return ""
    columns = [Column("valid", "WR@100, validation"), Column("test", "WR@100, test")]
    weights = [
        [
            group,
            "; ".join(
                " : ".join(f"{weight:.3g}" for weight in row["weights"]) for row in chosen if row["group"] == group
            ),
        ]
        for group in dict.fromkeys(row["group"] for row in chosen)
    ]
    return report.section(
        "Additive against multiplicative fusion",
        f"Users rank the whole catalog; recalled is what they finished. Each model's weights (up to {SETTINGS} were "
        "tried, `resflow_kernels.tune_fusion`) were chosen on the validation days' users and are reported on the "
        "test days' users.",
        tables.results(chosen, columns, {}, lambda row: row["group"], "method, fusion"),
        tables.table(["method, fusion", "weights click : long view : finish, a seed each"], weights),
    )


def _residuals(folder: Path, rows: list[Row]) -> str:
    found = [row["details"]["residuals"] for row in rows if "residuals" in row["details"]]
    if not found:
        return ""
    counts = np.sum([one["counts"] for one in found], axis=0)
    means, deviations = (np.mean([one[name] for one in found], axis=0) for name in ("means", "deviations"))
    panels: dict[str, Mapping[str, list[float]]] = {
        f"residual logit r, {TASK_NAMES[task]}": dict(zip(GROUPS, counts[at].tolist(), strict=True))
        for at, task in enumerate(CHAIN.tasks)
    }
    lines = [
        [TASK_NAMES[task], *(f"{mean:.2f} ± {deviation:.2f}" for mean, deviation in zip(*pair, strict=True))]
        for task, *pair in zip(CHAIN.tasks, means, deviations, strict=True)
    ]
    chart = charts.histograms(folder / "residuals.png", panels, EDGES.tolist())
    return report.section(
        "What the residuals learn",
        "A task's own logit (r = z - z of its parent) of ResFlow, FR + LR, on the test days' impressions by how far "
        f"the user went: mean ± standard deviation over impressions, {len(found)} seeds together.",
        tables.table(["r of", *GROUPS], lines),
        report.chart("Residual logits", chart),
    )


def _topology(folder: Path, store: Store) -> str:
    rows = tables.ordered(store.rows("topology"), TOPOLOGIES)
    columns = [
        Column(f"{metric}_{task}", f"{label}, {TASK_NAMES[task]}")
        for metric, label in _AUCS
        for task in TOPOLOGIES["tree"].tasks
    ]
    return report.section(
        "Topologies",
        "ResFlow, FR + LR, on four tasks; independent is NSE.",
        tables.results(rows, columns, TOPOLOGY_NAMES, header="topology"),
        *_tuned(store, "topology", TOPOLOGY_NAMES),
    )


def _sensitivity(folder: Path, store: Store) -> str:
    rows, parts = store.rows("sensitivity"), []
    panels: dict[str, dict[str, list[tuple[float, tables.Summary]]]] = {}
    for factor, values in FACTORS.items():
        panel: dict[str, list[tuple[float, tables.Summary]]] = {}
        for value in values:
            for method in methods_of(rows):
                own = [row for row in rows if row["method"] == method and row["setting"] == {**BASE, factor: value}]
                if own:
                    panel.setdefault(NAMES[method], []).append((value, tables.summary(own, "auc_like")))
        if not panel:
            continue
        panels[factor.replace("_", " ")] = panel
        lines = [
            [method, *(f"{summary.mean:.4f} ± {summary.deviation:.4f}" for _, summary in points)]
            for method, points in panel.items()
        ]
        heads = [f"{value:g}" for value, _ in next(iter(panel.values()))]
        parts.append(tables.table([factor.replace("_", " "), *heads], lines))
    chart = charts.lines(folder / "sensitivity.png", panels, "test AUC, like")
    base = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in BASE.items())
    return report.section(
        "Sensitivity",
        f"Click → like: test AUC of like, one hyper-parameter changed from {base}; the positive weight is like's.",
        *parts,
        report.chart("Sensitivity", chart),
    )


def _tuned(store: Store, name: str, names: Mapping[str, str]) -> tuple[str, ...]:
    tried = tables.tuning(tables.ordered(store.rows(name, "tune"), names), names)
    return ("Tuning: mean validation AUC of the tasks, one seed.", tried) if tried else ()


_AUCS = (("auc", "AUC"), ("gauc", "GAUC"))

_SECTIONS: dict[str, Callable[[Path, Store], str]] = {
    "chain": _chain,
    "branch": partial(_methods, "Click → like", "branch", ("click", "like")),
    "topology": _topology,
    "sensitivity": _sensitivity,
}
