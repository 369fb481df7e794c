"""Compare plain regression with regression as progressive tasks::

    python -m examples.regression.compare kuairand
    RESFLOW_ML1M=<folder> python -m examples.regression.compare movielens

Finished runs are kept in the results folder; after an interruption, the same command continues.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from torch import Tensor, nn

from examples.experiments import methods, report, tables
from examples.experiments.data import Encoded
from examples.experiments.grid import Experimenter, Outcome, cells, runs_of
from examples.experiments.store import Row, Run, Store
from examples.experiments.tables import Column
from examples.experiments.training import Budget, trained
from resflow_kernels import ExpectedValue, reference
from resflow_kernels.core.machine import usable_cores
from resflow_kernels.nn.losses import bucket_values, multitask_bce, progressive_labels

from . import movielens, watch
from .problem import Problem

RESULTS = Path(__file__).parent / "results"
HIDDEN = (64, 32)

# The ranker of each method, by the method's name in the tables.
METHODS = {
    "plain": ("plain regression", "nse"),
    "nse": ("progressive, NSE", "nse"),
    "resflow_lr": ("progressive, ResFlow, LR", "resflow_lr"),
    "resflow": ("progressive, ResFlow, FR + LR", "resflow"),
}
NAMES = {name: title for name, (title, _) in METHODS.items()}

console = Console()


class Data(str, Enum):
    """The quantities to predict."""

    kuairand = "kuairand"
    movielens = "movielens"


GRIDS = {
    Data.kuairand: cells(learning_rate=(2e-3, 4e-3), dropout=(0.3, 0.5)),
    Data.movielens: cells(learning_rate=(2e-3, 5e-3), dropout=(0.1, 0.3)),
}
BATCHES = {Data.kuairand: 2048, Data.movielens: 4096}
TITLES = {
    Data.kuairand: "KuaiRand: percent of a video watched",
    Data.movielens: "MovieLens-1M: stars",
}


def compare(
    data: Annotated[Data, typer.Argument(help="What to predict.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where runs and tables go.")] = RESULTS,
    method: Annotated[Optional[list[str]], typer.Option(help=f"Of {', '.join(METHODS)}; repeatable.")] = None,  # noqa: UP045
    seeds: Annotated[int, typer.Option(min=1, help="Final runs of each method.")] = 5,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training part, at most.")] = 8,
    rows: Annotated[int, typer.Option(min=0, help="Only the first rows of the data; 0: all.")] = 0,
    cells: Annotated[int, typer.Option(min=0, help="Only the first cells of the tuning grid; 0: all.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="0: as many as cores.")] = 0,
) -> None:
    """Train all methods and write the table of their squared and absolute errors."""
    torch.set_num_threads(threads or usable_cores())
    unknown = sorted(set(method or ()) - set(METHODS))
    if unknown:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {', '.join(unknown)}")
    chosen = [name for name in METHODS if not method or name in method]
    problem = _load(data, rows)
    budget = Budget(epochs, batch=BATCHES[data], seeds=seeds, cells=cells)
    store = Store(output / f"{data.value}.jsonl", budget.conditions(rows=rows))
    experimenter, grid = Experimenter(store, console), budget.grid(GRIDS[data])
    experimenter.plan(runs_of(len(chosen), len(grid), seeds))

    def trial(run: Run) -> Outcome:
        return _trial(run, problem, budget)

    experimenter.tuned(data.value, chosen, grid, budget.final_seeds, trial)
    console.print(f"wrote {write_report(output / f'{data.value}.md', store, data, problem)}")


def _load(data: Data, rows: int) -> Problem:
    if data is Data.kuairand:
        return watch.load(rows)
    source = movielens.folder()
    if source is None:
        raise ValueError(f"{movielens.VARIABLE} must name the folder of MovieLens-1M, got nothing")
    return movielens.load(source, rows)


def _trial(run: Run, problem: Problem, budget: Budget) -> Outcome:
    split, plain = problem.split, run.method == "plain"
    scale = Scale.of(split.train.labels)
    tasks = ("value",) if plain else tuple(f"above_{cut:g}" for cut in problem.thresholds)

    def predict(model: nn.Module, part: Encoded, values: tuple[float, ...] = problem.values) -> Tensor:
        model.eval()
        with torch.inference_mode():
            logits = torch.cat([methods.logits_of(model, rows) for rows in part.scored_at_once()])
            return scale.value(logits[:, 0]) if plain else expected_value(logits, values)

    def loss(logits: Tensor, values: Tensor) -> Tensor:
        if plain:
            return F.mse_loss(logits, scale.standard(values))
        return multitask_bce(logits, progressive_labels(values[:, 0], problem.thresholds))

    model, valid, details = trained(
        lambda: methods.make(METHODS[run.method][1], split.features, tasks, HIDDEN, run.setting["dropout"]),
        split.train,
        loss,
        lambda model: -errors(predict(model, split.valid), split.valid)["mse"],
        run.setting,
        run.seed,
        budget,
    )
    metrics = errors(predict(model, split.test), split.test)
    if not plain:
        other = errors(predict(model, split.test, middles(problem)), split.test)
        metrics |= {f"{name}_middles": value for name, value in other.items()}
    return Outcome(valid, metrics, details)


class Scale:
    """Plain regression learns standardised numbers and, like a ladder, predicts within their range."""

    def __init__(self, mean: float, deviation: float, lowest: float, highest: float) -> None:
        self.mean, self.deviation, self.lowest, self.highest = mean, deviation, lowest, highest

    @classmethod
    def of(cls, values: Tensor) -> Scale:
        """The scale of the given numbers."""
        return cls(float(values.mean()), float(values.std()), float(values.min()), float(values.max()))

    def standard(self, values: Tensor) -> Tensor:
        """Numbers of mean 0 and deviation 1."""
        return (values - self.mean) / self.deviation

    def value(self, standard: Tensor) -> Tensor:
        """The inverse, clamped to the range."""
        return (standard * self.deviation + self.mean).clamp(self.lowest, self.highest)


def expected_value(logits: Tensor, values: tuple[float, ...]) -> Tensor:
    """Predictions ``[n]`` from a ladder's logits ``[n, K]`` and bucket values."""
    form = ExpectedValue(values)
    return reference.fuse(logits, logits.new_tensor(form.weights_for(logits.shape[1])), form.kind)


def middles(problem: Problem) -> tuple[float, ...]:
    """Bucket values as in the paper: the middles of buckets, the outer ones' towards the ends of the range."""
    labels, cuts = problem.split.train.labels, problem.thresholds
    first, last = (float(labels.min()) + cuts[0]) / 2, (float(labels.max()) + cuts[-1]) / 2
    return bucket_values(cuts, first, last)


def errors(predicted: Tensor, part: Encoded) -> dict[str, float]:
    """Mean squared and mean absolute error."""
    distance = (predicted - part.labels[:, 0]).double()
    return {"mse": float(distance.square().mean()), "mae": float(distance.abs().mean())}


def write_report(path: Path, store: Store, data: Data, problem: Problem) -> Path:
    """Write the tables of the finished runs; returns the path."""
    rows, tried = (tables.ordered(store.rows(data.value, stage), NAMES) for stage in ("final", "tune"))
    sizes = [len(part) for part in (problem.split.train, problem.split.valid, problem.split.test)]
    shared = {
        "data": "{:,} to train on, {:,} to choose settings and epochs by, {:,} reported".format(*sizes),
        "towers": "-".join(map(str, HIDDEN)) + ", PReLU, BatchNorm",
        "thresholds": ", ".join(f"{cut:.4g}" for cut in problem.thresholds),
        "bucket values": ", ".join(f"{value:.4g}" for value in problem.values),
        **store.conditions,
    }
    columns, naive = [Column("mse", "MSE", best="low"), Column("mae", "MAE", best="low")], _of_the_mean(problem)
    report.write(
        path,
        report.head(TITLES[data], store, [*tried, *rows], shared),
        report.section(
            "Errors",
            f"Mean ± standard deviation over {len({row['seed'] for row in rows})} seeds.",
            tables.results(rows, columns, NAMES),
            f"Always the training mean: MSE {naive['mse']:.4f}, MAE {naive['mae']:.4f}.",
        ),
        _with_middles(rows) if data is Data.kuairand else "",
        report.section("Tuning", "Negative validation MSE, one seed.", tables.tuning(tried, NAMES)) if tried else "",
    )
    return path


def _of_the_mean(problem: Problem) -> dict[str, float]:
    train, test = problem.split.train, problem.split.test
    return errors(train.labels.mean().expand(len(test)), test)


def _with_middles(rows: list[Row]) -> str:
    own = [row for row in rows if row["method"] != "plain"]
    if not own:
        return ""
    columns = [Column("mse_middles", "MSE", best="low"), Column("mae_middles", "MAE", best="low")]
    about = "The same models, buckets worth the middle between their thresholds, as the paper's authors have it."
    return report.section("Bucket middles instead of means", about, tables.results(own, columns, NAMES))


if __name__ == "__main__":
    typer.run(compare)
