"""One trained model in every form, instruction set and precision, and the effect of each on the AUCs.

    python -m examples.kuairand.backends out/kuairand.safetensors out/test.parquet -o out/backends.md

Each instruction set scores in a separate process, because a process chooses its kernels once. The last form is
``torch.ops.resflow``, all others are those of the NumPy runtime; all are compared with the float64 reference.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from torchmetrics.functional.classification import binary_auroc

from resflow_kernels import Scorer, ops, reference
from resflow_kernels.contract import PRECISIONS
from resflow_kernels.serving import bundle as bundles
from resflow_kernels.serving.scorer import compiled

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Row:
    """A form and precision: AUC per task, and the largest difference of a probability from the reference."""

    isa: str
    form: str
    precision: str
    auc: list[float]
    error: float


@dataclass(frozen=True)
class Impressions:
    """A table as inputs of the forms; each row is a separate request, because user columns change from row to row."""

    table: pa.Table
    user: Floats
    item: Floats
    labels: NDArray[np.int64]

    @classmethod
    def read(cls, scorer: Scorer, tasks: tuple[str, ...], path: Path) -> Impressions:
        table = pq.read_table(path)
        labels = np.stack([table[task].to_numpy() for task in tasks], axis=1).astype(np.int64)
        return cls(table, scorer.embed_users(table), scorer.embed_items(table), labels)

    @property
    def rows(self) -> Floats:
        return np.concatenate((self.user, self.item), axis=1)

    @property
    def offsets(self) -> NDArray[np.int64]:
        return np.arange(len(self.labels) + 1)


def score(bundle: bundles.Bundle, days: Impressions, form: str, precision: str) -> Floats:
    """Probabilities ``[N, K]`` by one form."""
    scorer = Scorer.from_bundle(bundle, precision=precision)
    match form:
        case "dense":
            return scorer.dense_scores(days.rows).probs
        case "request":
            return scorer.request_scores(days.user, days.item, days.offsets).probs
        case "catalog":
            catalog = scorer.catalog_rows(days.item, precision)
            return scorer.catalog_scores(days.user, np.arange(len(days.labels)), days.offsets, catalog).probs
        case "features":
            features = scorer.features
            assert features is not None
            encoded = features.encode_user(days.table) | features.encode_item(days.table)
            return scorer.feature_scores(encoded).probs
        case "dense, torch op":
            plan = replace(bundle.plan, precision=precision)
            packed = ops.pack_towers([torch.from_numpy(weight) for weight in bundle.weights], plan)
            return ops.dense_scores(torch.from_numpy(days.rows), packed, plan, torch.ones(plan.tasks)).probs.numpy()
    raise AssertionError(form)


FORMS = ("dense", "request", "catalog", "features", "dense, torch op")


def exact(bundle: bundles.Bundle, days: Impressions) -> NDArray[np.float64]:
    """The float64 reference's probabilities."""
    weights = [torch.from_numpy(weight).double() for weight in bundle.weights]
    plan = replace(bundle.plan, precision="float32")
    alpha = torch.ones(plan.tasks, dtype=torch.float64)
    parts = torch.from_numpy(days.rows).double().split(8192)
    return torch.cat(
        [reference.dense_scores(part, weights, plan, alpha, "additive", "call").probs for part in parts]
    ).numpy()


def aucs(probs: NDArray[np.floating], labels: NDArray[np.int64]) -> list[float]:
    """AUC of each task."""
    scores, wanted = torch.from_numpy(np.ascontiguousarray(probs)), torch.from_numpy(labels)
    return [float(binary_auroc(scores[:, task], wanted[:, task])) for task in range(wanted.shape[1])]


def measured_here(model: Path, impressions: Path) -> list[Row]:
    """All forms and precisions on this process's instruction set."""
    bundle = bundles.load(model)
    days = Impressions.read(Scorer.from_bundle(bundle), bundle.tasks, impressions)
    wanted = exact(bundle, days)
    rows = []
    for precision in PRECISIONS:
        for form in FORMS:
            probs = score(bundle, days, form, precision)
            error = float(np.abs(probs - wanted).max())
            rows.append(Row(compiled().isa(), form, precision, aucs(probs, days.labels), error))
    return rows


def main(
    model: Annotated[Path, typer.Argument(help="The trained bundle.")],
    impressions: Annotated[Path, typer.Argument(help="Parquet of impressions with a column a task.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Markdown to write.")] = Path("out/backends.md"),
    here: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Score the impressions in all ways that this machine supports, and write the table."""
    if here:
        print(json.dumps([vars(row) for row in measured_here(model, impressions)]))
        return
    rows: list[Row] = []
    for isa in compiled().supported_isas():
        command = [sys.executable, "-m", "examples.kuairand.backends", str(model), str(impressions), "--here"]
        done = subprocess.run(
            command, env=os.environ | {"RESFLOW_ISA": isa}, check=True, capture_output=True, text=True
        )
        rows += [Row(**row) for row in json.loads(done.stdout.splitlines()[-1])]
    bundle = bundles.load(model)
    days = Impressions.read(Scorer.from_bundle(bundle), bundle.tasks, impressions)
    text = markdown(rows, aucs(exact(bundle, days), days.labels), bundle.tasks, len(days.labels))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")
    Console().print(f"wrote {output}")


def markdown(rows: list[Row], wanted: list[float], tasks: tuple[str, ...], count: int) -> str:
    """The table, its AUCs as differences from the float64 reference's."""
    header = ["instruction set", "form", "precision", *(f"AUC {task}" for task in tasks), "largest error of p"]
    lines = [header, ["---"] * len(header), ["reference", "dense", "float64", *(f"{auc:.5f}" for auc in wanted), ""]]
    for row in rows:
        differences = [f"{own - auc:+.6f}" for own, auc in zip(row.auc, wanted, strict=True)]
        lines.append([row.isa, row.form, row.precision, *differences, f"{row.error:.1e}"])
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    largest = max(abs(own - auc) for row in rows for own, auc in zip(row.auc, wanted, strict=True))
    return (
        f"# One model, every backend and precision\n\n{count:,} impressions of the test days. AUCs are differences\n"
        f"from the float64 reference's; the largest is {largest:.6f}. The catalog form's table is in the precision\n"
        f"of the row, embedding tables are in float32.\n\n{table}\n"
    )


if __name__ == "__main__":
    typer.run(main)
