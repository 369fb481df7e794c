"""Train the ranker on the KuaiRand slice and write what ``resflow score`` needs::

    python -m examples.kuairand.train -o out/kuairand.safetensors

Beside the bundle it writes ``requests.parquet`` (users to rank for), ``videos.parquet`` (the catalogue they all
rank), ``labels.parquet`` (what those users finished on the test days) and ``test.parquet`` (the test days'
impressions with their labels, for ``resflow quantize --check``).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torchmetrics.functional.classification import binary_auroc

from resflow_kernels import Additive
from resflow_kernels.bundle import save_model

from . import prepare
from .ranker import Encoded, Ranker, encode, shuffled

WIDTH = 16
DROPOUT = 0.5  # of the input row: user and video ids are seen a few times each and would be learnt by heart
BATCH = 2048
LEARNING_RATE = 2e-3
MOST_EPOCHS = 8
PATIENCE = 2  # epochs without a better validation AUC before training ends
# Ranks the catalogue for what validation users finished: Weighted Recall@100 of 0.099 there, (1, 1, 1) 0.082.
FUSION = Additive((1, 5, 20))

console = Console()


def train(
    output: Annotated[Path, typer.Option("--output", "-o", help="The bundle to write.")] = Path(
        "out/kuairand.safetensors"
    ),
    users: Annotated[int, typer.Option(min=1, help="Test users to rank the catalogue for, at most.")] = 512,
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
    ranker = Ranker(features, DROPOUT, FUSION)
    fit(ranker, train_days, valid_days, epochs, seed)
    _print_aucs(ranker, {"validation": valid_days, "test": test_days})

    output.parent.mkdir(parents=True, exist_ok=True)
    save_model(output, ranker.towers, features, ranker.tables())
    requests, labels = prepare.requests(data.test, users, seed)
    shown = data.test.table
    for task, column in zip(prepare.TASKS, data.test.labels.T, strict=True):
        shown = shown.append_column(task, pa.array(column.astype("int8")))
    tables = {"requests": requests, "videos": data.videos, "labels": labels, "test": shown}
    for name, table in tables.items():
        pq.write_table(table, output.parent / f"{name}.parquet")
    console.print(f"wrote {output}, and requests, videos, labels and test (Parquet) beside it")


def fit(ranker: Ranker, train_days: Encoded, valid_days: Encoded, epochs: int, seed: int) -> None:
    """Adam on the sum of the tasks' log losses; ends with the weights of the best validation epoch."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(ranker.parameters(), lr=LEARNING_RATE)
    best, best_epoch, best_state = 0.0, 0, copy.deepcopy(ranker.state_dict())
    batches = -(-len(train_days) // BATCH)
    with Progress(console=console) as progress:
        bar = progress.add_task("training", total=epochs * batches)
        for epoch in range(1, epochs + 1):
            ranker.train()
            for rows, labels in shuffled(train_days, BATCH, generator):
                loss = F.binary_cross_entropy_with_logits(ranker(rows), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                progress.advance(bar)
            scores = aucs(ranker, valid_days)
            console.print(f"epoch {epoch}: validation AUC {', '.join(f'{score:.4f}' for score in scores)}")
            if sum(scores) > best:
                best, best_epoch, best_state = sum(scores), epoch, copy.deepcopy(ranker.state_dict())
            elif epoch - best_epoch >= PATIENCE:
                progress.update(bar, total=epoch * batches)
                break
    ranker.load_state_dict(best_state)
    console.print(f"kept epoch {best_epoch}")


def aucs(ranker: Ranker, days: Encoded) -> Sequence[float]:
    """AUC of each task."""
    probs, labels = ranker.probabilities(days), days.labels.long()
    return [float(binary_auroc(probs[:, task], labels[:, task])) for task in range(labels.shape[1])]


def _print_aucs(ranker: Ranker, days: dict[str, Encoded]) -> None:
    table = Table("AUC", *prepare.TASKS)
    for name, encoded in days.items():
        table.add_row(name, *(f"{score:.4f}" for score in aucs(ranker, encoded)))
    console.print(table)


if __name__ == "__main__":
    typer.run(train)
