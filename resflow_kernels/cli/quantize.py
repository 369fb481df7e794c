"""``resflow quantize``: write a bundle that scores in a lower precision, and report the errors that this causes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from ..contract import GPU_PRECISIONS, PRECISIONS
from ..data.columns import binary_labels
from ..data.files import Files
from ..serving.bundle import Bundle, load, save
from ..serving.quantize import PrecisionErrors, measure_errors
from ..serving.quantize import quantize as quantized
from ..serving.scorer import Scorer
from ._errors import one_line_errors
from ._requests import csv_settings, grouped_requests, read_table


def quantize(
    model: Annotated[Path, typer.Argument(help="A model bundle.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The bundle to write.", show_default=False)],
    precision: Annotated[
        str, typer.Option(help=f"One of {', '.join(PRECISIONS)}; for GPUs alone {', '.join(GPU_PRECISIONS)}.")
    ] = "int8",
    check: Annotated[
        Path | None,
        typer.Option(
            help="Parquet of candidates, as `resflow score` takes them: report the errors on them. With columns named "
            "after all tasks (0 or 1), also each task's AUC."
        ),
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="Of the overlap of rankings.")] = 100,
) -> None:
    """Write a bundle that scores in a lower precision, and report what that costs."""
    with one_line_errors():
        bundle = load(model)
        lower = quantized(bundle, precision)
        errors = None if check is None else _errors(bundle, precision, model, check, top_k)
        save(output, lower.plan, lower.tasks, lower.weights, lower.fusion, lower.features, lower.tables)
    console = Console()
    if errors is not None:
        _print(console, errors)
    console.print(f"wrote {output}: scores in {precision}")


def _errors(bundle: Bundle, precision: str, model: Path, path: Path, k: int) -> PrecisionErrors:
    if bundle.features is None:
        raise ValueError(f"{model}: must be a model with features to check on a table, got one without")
    features = bundle.features
    columns = [features.request_id, features.item_id, *(feature.name for feature in features.all)]
    labelled = _has_columns(path, bundle.tasks)
    table = read_table(path, [*columns, *(bundle.tasks if labelled else ())], csv_settings(features))
    requests = grouped_requests(path, table, features)
    scorer = Scorer.from_bundle(bundle)
    labels = binary_labels(requests.items, bundle.tasks) if labelled else None
    # Each candidate keeps its own user columns: the context of a log (hour, place) changes from row to row.
    x = np.concatenate((scorer.embed_users(requests.items), scorer.embed_items(requests.items)), axis=1)
    return measure_errors(bundle, precision, x, requests.offsets, labels, k)


def _has_columns(path: Path, columns: Sequence[str]) -> bool:
    try:
        Files([str(path)], columns)
    except ValueError:
        return False
    return True


def _print(console: Console, errors: PrecisionErrors) -> None:
    table = Table("task", title=f"{errors.precision} beside float32")
    for name in ("largest error", "mean error", "AUC", "AUC, float32", "difference"):
        table.add_column(name, justify="right")
    for at, task in enumerate(errors.tasks):
        row = [f"{errors.largest[at]:.5f}", f"{errors.mean[at]:.6f}"]
        if errors.auc is not None and errors.auc_float32 is not None:
            after, before = errors.auc[at], errors.auc_float32[at]
            row += [f"{after:.5f}", f"{before:.5f}", f"{after - before:+.5f}"]
        table.add_row(task, *row)
    console.print(table)
    kept = "no request has more candidates" if np.isnan(errors.overlap) else f"{100 * errors.overlap:.2f} %"
    console.print(f"top {errors.k} of a request kept: {kept}")
