"""Compare ResFlow with other methods on the KuaiRand slice::

    python -m examples.kuairand.compare

Finished runs are kept in ``runs.jsonl`` of the results folder; after an interruption, the same command continues.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import torch
import typer
from rich.console import Console

from examples.experiments.grid import Experimenter
from examples.experiments.methods import NAMES, chosen
from examples.experiments.store import Store
from examples.experiments.training import Budget
from resflow_kernels.core.machine import usable_cores

from . import prepare
from .comparison import EXPERIMENTS, Comparison
from .tables import write_report

RESULTS = Path(__file__).parent / "results"

console = Console()


def compare(
    output: Annotated[Path, typer.Option("--output", "-o", help="Where runs, tables and charts go.")] = RESULTS,
    only: Annotated[Optional[list[str]], typer.Option(help=f"Of {', '.join(EXPERIMENTS)}; repeatable.")] = None,  # noqa: UP045
    method: Annotated[Optional[list[str]], typer.Option(help=f"Of {', '.join(NAMES)}; repeatable.")] = None,  # noqa: UP045
    seeds: Annotated[int, typer.Option(min=1, help="Final runs of each method.")] = 5,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training days, at most.")] = 6,
    users: Annotated[int, typer.Option(min=1, help="Users who rank the catalog, at most.")] = 512,
    rows: Annotated[int, typer.Option(min=0, help="Only the first rows of each part of the data; 0: all.")] = 0,
    cells: Annotated[int, typer.Option(min=0, help="Only the first cells of each tuning grid; 0: all.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="0: as many as cores.")] = 0,
) -> None:
    """Train and compare all methods, and write the tables after each experiment."""
    torch.set_num_threads(threads or usable_cores())
    unknown = sorted(set(only or ()) - set(EXPERIMENTS))
    if unknown:
        raise ValueError(f"only must be of {', '.join(EXPERIMENTS)}, got {', '.join(unknown)}")
    experiments = [name for name in EXPERIMENTS if not only or name in only]
    budget = Budget(epochs, batch=2048, seeds=seeds, cells=cells)
    store = Store(output / "runs.jsonl", budget.conditions(rows=rows, users=users))
    experimenter = Experimenter(store, console)
    data = _cut(prepare.load(), rows)
    comparison = Comparison(data, budget, experimenter, users, chosen(method))
    experimenter.plan(sum(comparison.planned(experiment) for experiment in experiments))
    for experiment in experiments:
        comparison.run(experiment)
        console.print(f"wrote {write_report(output, store, comparison)}")


def _cut(data: prepare.Slice, rows: int) -> prepare.Slice:
    if not rows:
        return data
    train, valid, test = (days.part(0, rows) for days in (data.train, data.valid, data.test))
    return prepare.Slice(train, valid, test, data.videos)


if __name__ == "__main__":
    typer.run(compare)
