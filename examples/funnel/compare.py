"""Compare all methods on the shop's traffic, against its known probabilities::

    python -m examples.funnel.generate -o out/funnel
    python -m examples.funnel.compare --data out/funnel

Finished runs are kept in ``runs.jsonl`` of the results folder; after an interruption, the same command continues.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Optional

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console

from examples.experiments import charts, methods, report, tables
from examples.experiments.catalog import Requests, probabilities
from examples.experiments.grid import Experimenter, Outcome, cells, runs_of
from examples.experiments.methods import NAMES
from examples.experiments.multitask import loss_of, mean_auc
from examples.experiments.store import Run, Store
from examples.experiments.tables import Column
from examples.experiments.training import Budget, trained
from resflow_kernels import chain
from resflow_kernels.core.machine import usable_cores

from . import data
from .truth import excess_log_loss, expected_auc, relative_error
from .world import TASKS

RESULTS = Path(__file__).parent / "results"
HIDDEN = (64, 32)
GRID = cells(learning_rate=(5e-3, 1e-2), dropout=(0.0, 0.1))
BATCH = 4096
TOP = 100

console = Console()


def compare(
    folder: Annotated[Path, typer.Option("--data", help="Made by examples.funnel.generate.")] = Path("out/funnel"),
    output: Annotated[Path, typer.Option("--output", "-o", help="Where runs, tables and charts go.")] = RESULTS,
    method: Annotated[Optional[list[str]], typer.Option(help=f"Of {', '.join(NAMES)}; repeatable.")] = None,  # noqa: UP045
    seeds: Annotated[int, typer.Option(min=1, help="Final runs of each method.")] = 5,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training part, at most.")] = 2,
    users: Annotated[int, typer.Option(min=1, help="Users who rank all items.")] = 256,
    rows: Annotated[int, typer.Option(min=0, help="Only the first exposures; 0: all.")] = 0,
    cells: Annotated[int, typer.Option(min=0, help="Only the first cells of the tuning grid; 0: all.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="0: as many as cores.")] = 0,
) -> None:
    """Train all methods on drawn labels, and measure them against the true probabilities."""
    torch.set_num_threads(threads or usable_cores())
    chosen = methods.chosen(method)
    traffic = data.load(folder, rows)
    budget = Budget(epochs, batch=BATCH, seeds=seeds, cells=cells)
    world = asdict(traffic.world.settings)
    conditions = budget.conditions(rows=rows, users=users, world={**world, "rates": list(world["rates"])})
    store = Store(output / "runs.jsonl", conditions)
    experimenter, requests, grid = Experimenter(store, console), traffic.requests(users), budget.grid(GRID)
    experimenter.plan(runs_of(len(chosen), len(grid), seeds))

    def trial(run: Run) -> Outcome:
        return _trial(run, traffic, requests, budget)

    experimenter.tuned("funnel", chosen, grid, budget.final_seeds, trial)
    console.print(f"wrote {write_report(output, store, traffic, requests)}")


def _trial(run: Run, traffic: data.Traffic, requests: Requests, budget: Budget) -> Outcome:
    split, parents = traffic.split, chain(len(TASKS))
    model, valid, details = trained(
        lambda: methods.make(run.method, split.features, TASKS, HIDDEN, run.setting["dropout"], parents),
        split.train,
        loss_of(run.method, parents),
        lambda model: mean_auc(model, split.valid),
        run.setting,
        run.seed,
        budget,
    )
    if run.stage != "final":
        return Outcome(valid, {}, details)
    probs = methods.probabilities(model, split.test.scored_at_once()).numpy()
    ranking = requests.recall(probabilities(model, requests)[:, :, -1], TOP)
    return Outcome(valid, {**against_truth(probs, traffic.truth), "wr100_order": ranking}, details)


def against_truth(probs: NDArray[np.floating], truth: NDArray[np.floating]) -> dict[str, float]:
    """The tables' metrics of predicted ``[n, K]`` against true ``[n, K]`` probabilities."""
    found = {}
    for at, task in enumerate(TASKS):
        own, known = probs[:, at], truth[:, at]
        found[f"auc_{task}"] = expected_auc(own, known)
        found[f"excess_{task}"] = 1e3 * excess_log_loss(own, known)
        found[f"error_{task}"] = relative_error(own, known)
    return found


def write_report(folder: Path, store: Store, traffic: data.Traffic, requests: Requests) -> Path:
    """Write ``comparison.md`` and its charts from the finished runs.

    Returns:
        The path of the report.
    """
    rows = tables.ordered(store.rows("funnel"), NAMES)
    tried = tables.ordered(store.rows("funnel", "tune"), NAMES)
    best = against_truth(traffic.truth, traffic.truth) | {"wr100_order": requests.recall(requests.feedback, TOP)}
    panels = {
        f"expected AUC, {task}": {
            NAMES[name]: tables.summary([row for row in rows if row["method"] == name], f"auc_{task}")
            for name in tables.methods_of(rows)
        }
        for task in TASKS
    }
    sizes = [len(part) for part in (traffic.split.train, traffic.split.valid, traffic.split.test)]
    shared: dict[str, Any] = {
        "exposures": "{:,} to train on, {:,} to choose settings and epochs by, {:,} reported".format(*sizes),
        "towers": "-".join(map(str, HIDDEN)) + ", PReLU, BatchNorm",
        "embedding width": data.WIDTH,
        **store.conditions,
    }
    path = folder / "comparison.md"
    report.write(
        path,
        report.head("Click → cart → order with known probabilities", store, [*tried, *rows], shared),
        report.section(
            "Ranking",
            f"Mean ± standard deviation over {len({row['seed'] for row in rows})} seeds. AUC is expected over all "
            f"labels that the true probabilities can give; WR@{TOP} is the share of expected orders among the "
            f"{TOP} items of highest predicted p of order, of {traffic.world.settings.items:,}.",
            tables.results(
                rows,
                [Column(f"auc_{task}", f"AUC, {task}") for task in TASKS] + [Column("wr100_order", f"WR@{TOP}")],
                NAMES,
            ),
            "The true probabilities themselves have AUCs of "
            + ", ".join(f"{best[f'auc_{task}']:.4f} ({task})" for task in TASKS)
            + f" and a WR@{TOP} of {best['wr100_order']:.4f}: no ranking has more.",
            report.chart("Expected AUC", charts.points(folder / "auc.png", panels, "AUC")),
        ),
        report.section(
            "Error of the probabilities",
            "Excess: expected log loss beyond that of the true probabilities, in thousandths of a nat a candidate. "
            "Error: mean distance from the true probability, as a share of its mean.",
            tables.results(rows, [Column(f"excess_{task}", f"excess, {task}", 3, "low") for task in TASKS], NAMES),
            tables.results(rows, [Column(f"error_{task}", f"error, {task}", 3, "low") for task in TASKS], NAMES),
        ),
        report.section(
            "Tuning", "Mean validation AUC of the tasks, on drawn labels, one seed.", tables.tuning(tried, NAMES)
        )
        if tried
        else "",
    )
    return path


if __name__ == "__main__":
    typer.run(compare)
