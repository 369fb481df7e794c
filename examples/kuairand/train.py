"""Train the ranker on the KuaiRand slice and write the files for ``resflow score``::

    python -m examples.kuairand.train -o out/kuairand.safetensors

Besides the bundle it writes ``requests.parquet`` (users to rank for), ``videos.parquet`` (the catalog that they all
rank), ``labels.parquet`` (the videos that those users finished on the test days) and ``test.parquet`` (the test days'
impressions with their labels, for ``resflow quantize --check``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, cast

import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.progress import Progress as Bars
from rich.table import Table
from torchmetrics.functional.classification import binary_auroc

from resflow_kernels import Additive, ResFlow
from resflow_kernels.serving.bundle import save_model
from resflow_kernels.training.loop import fit
from resflow_kernels.training.ranker import FeatureModel
from resflow_kernels.training.settings import FitSettings, Progress

from . import prepare
from .ranker import Encoded, encode, probabilities, ranker

WIDTH = 16
DROPOUT = 0.5  # of the input row: user and video ids occur a few times each and would be memorised
BATCH = 2048
LEARNING_RATE = 2e-3
MOST_EPOCHS = 8
PATIENCE = 2  # epochs without a better validation AUC before training ends
# Ranks the catalog for what validation users finished: Weighted Recall@100 is 0.099 there, with (1, 1, 1) 0.082.
FUSION = Additive((1, 5, 20))

console = Console()


def train(
    output: Annotated[Path, typer.Option("--output", "-o", help="The bundle to write.")] = Path(
        "out/kuairand.safetensors"
    ),
    users: Annotated[int, typer.Option(min=1, help="Test users to rank the catalog for, at most.")] = 512,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training days, at most.")] = MOST_EPOCHS,
    seed: Annotated[int, typer.Option(help="Of the initial weights, the shuffling and the draw of users.")] = 0,
) -> None:
    """Train click -> long_view -> finish, print the test AUCs, write the bundle and the requests."""
    torch.manual_seed(seed)
    data = prepare.load()
    features = prepare.feature_set(WIDTH).fit(data.train.table, min_count=prepare.MIN_COUNT)
    train_days, valid_days, test_days = (encode(features, days) for days in (data.train, data.valid, data.test))
    console.print(
        f"{len(train_days):,} impressions to train on, {len(valid_days):,} to validate, {len(test_days):,} to test; "
        f"{len(features.all)} features, {features.user_width} + {features.item_width} wide"
    )
    model = ranker(features, DROPOUT, FUSION)
    train_model(model, train_days, valid_days, epochs, seed)
    _print_aucs(model, {"validation": valid_days, "test": test_days})

    output.parent.mkdir(parents=True, exist_ok=True)
    save_model(output, cast(ResFlow, model.towers), features, model.tables())
    requests, labels = prepare.requests(data.test, users, seed)
    tables = {"requests": requests, "videos": data.videos, "labels": labels, "test": prepare.labelled(data.test)}
    for name, table in tables.items():
        pq.write_table(table, output.parent / f"{name}.parquet")
    console.print(f"wrote {output}, and requests, videos, labels and test (Parquet) beside it")


def train_model(model: FeatureModel, train_days: Encoded, valid_days: Encoded, epochs: int, seed: int) -> None:
    """Adam on the mean of the tasks' log losses; ends with the weights of the best validation epoch."""
    generator = torch.Generator().manual_seed(seed)
    # Dropout's generator continues from where the initial weights left it.
    settings = FitSettings(epochs, PATIENCE, LEARNING_RATE, monitor="mean AUC", seed=None)
    with Bars(console=console) as bars:
        bar = bars.add_task("training", total=epochs * -(-len(train_days) // BATCH))

        def report(progress: Progress) -> None:
            if progress.result is None:
                bars.advance(bar)
            else:
                scores = [progress.result.metrics[task] for task in prepare.TASKS]
                text = ", ".join(f"{score:.4f}" for score in scores)
                console.print(f"epoch {progress.epoch}: validation AUC {text}")

        history = fit(
            model,
            lambda epoch: train_days.shuffled(BATCH, generator),
            F.binary_cross_entropy_with_logits,
            lambda trained: metrics(model, valid_days),
            settings,
            on_progress=report,
        )
        bars.update(bar, total=bars.tasks[bar].completed)
    console.print(f"kept epoch {history.best_epoch}")


def metrics(model: FeatureModel, days: Encoded) -> dict[str, float]:
    """AUC of each task, and their mean."""
    scores = aucs(model, days)
    return {**dict(zip(prepare.TASKS, scores, strict=True)), "mean AUC": sum(scores) / len(scores)}


def aucs(model: FeatureModel, days: Encoded) -> Sequence[float]:
    """AUC of each task."""
    probs, labels = probabilities(model, days), days.labels.long()
    return [float(binary_auroc(probs[:, task], labels[:, task])) for task in range(labels.shape[1])]


def _print_aucs(model: FeatureModel, days: dict[str, Encoded]) -> None:
    table = Table("AUC", *prepare.TASKS)
    for name, encoded in days.items():
        table.add_row(name, *(f"{score:.4f}" for score in aucs(model, encoded)))
    console.print(table)


if __name__ == "__main__":
    typer.run(train)
