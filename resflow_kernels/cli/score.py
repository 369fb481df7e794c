"""``resflow score``: rank the candidates of a Parquet file with a model bundle."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from rich.console import Console
from rich.progress import Progress, TaskID

from ..contract import PRECISIONS
from ..core import fusion as fusions
from ..core.fusion import Fusion
from ..core.machine import usable_cores
from ..core.program import Program
from ..data.features import FeatureSet
from ..serving.bundle import Bundle, atomic_path, load
from ..serving.scorer import Scorer
from . import _report
from ._errors import one_line_errors
from ._feedback import Feedback
from ._ranker import Ranker
from ._requests import Requests, embedded_requests, read_catalog_requests, read_requests
from ._types import Ranked, Timing

_WRITE_ROWS = 1 << 16  # rows of output buffered before they are written


def score(
    model: Annotated[Path, typer.Argument(help="A model bundle with features.", show_default=False)],
    candidates: Annotated[
        Path,
        typer.Argument(
            help="Parquet: request id, user and item feature columns, one row per candidate; with --catalog "
            "request id and user columns, one row per request. The file is read whole.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The Parquet file to write.", show_default=False)],
    top_k: Annotated[int, typer.Option("--top-k", help="How many candidates to keep a request.")] = 10,
    threads: Annotated[int | None, typer.Option(help="Threads; by default all usable cores.")] = None,
    fusion: Annotated[str | None, typer.Option(help=f"Instead of the model's: {', '.join(fusions.FORMS)}.")] = None,
    weights: Annotated[str | None, typer.Option(help="Fusion weights instead of the model's, as 1,20,20.")] = None,
    precision: Annotated[str | None, typer.Option(help=f"Instead of the model's: {', '.join(PRECISIONS)}.")] = None,
    catalog: Annotated[Path | None, typer.Option(help="Parquet of items: every request ranks them all.")] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Parquet of request id, item id, weight: print Weighted Recall@K.")
    ] = None,
    compare_eager: Annotated[bool, typer.Option("--compare-eager", help="Time PyTorch eager beside it.")] = False,
    compare_requests: Annotated[int, typer.Option(help="Requests to compare on, at most.")] = 64,
) -> None:
    """Rank each request's candidates and write the best to a Parquet file."""
    with one_line_errors():
        _at_least_one("--top-k", top_k)
        _at_least_one("--compare-requests", compare_requests)
        if compare_eager and not find_spec("torch"):
            raise ValueError("--compare-eager must find PyTorch installed, got none")
        bundle = load(model)
        if compare_eager and isinstance(bundle.plan, Program):
            raise ValueError(f"--compare-eager must be left out for a tile program ({model}), it compares towers")
        scorer = Scorer.from_bundle(bundle, threads, _chosen_fusion(bundle, fusion, weights), precision)
        requests = _read(bundle, model, candidates, catalog)
        feedback = Feedback(labels, _features(bundle, model), requests) if labels else None
        _refuse_overwriting(output, [model, candidates, catalog, labels])
        console, timing = Console(), Timing()
        ranker = Ranker(scorer, requests.is_catalog)
        if requests.varying:
            print(
                f"resflow: {', '.join(requests.varying)} differ within requests: each candidate is scored with its own",
                file=sys.stderr,
            )
        first = _write_ranking(output, requests, ranker, top_k, timing, feedback)
        _report.ranking(console, requests, first, scorer)
        _report.throughput(console, requests, timing)
        if feedback is not None:
            _report.recall(console, top_k, feedback)
        if compare_eager:
            _compare(console, requests, ranker, bundle, top_k, compare_requests)


def _read(bundle: Bundle, model: Path, candidates: Path, catalog: Path | None) -> Requests:
    features = _features(bundle, model)
    if catalog is None:
        return read_requests(candidates, features)
    return read_catalog_requests(candidates, catalog, features)


def _features(bundle: Bundle, model: Path) -> FeatureSet:
    if bundle.features is None:
        raise ValueError(f"{model}: must be a model with features to score a table, got one without")
    return bundle.features


def _chosen_fusion(bundle: Bundle, kind: str | None, weights: str | None) -> Fusion:
    """The bundle's fusion, overridden by the command line."""
    if kind is None and weights is None:
        return bundle.fusion
    same = kind is None or kind == bundle.fusion.kind
    given = bundle.fusion.weights if weights is None and same else _numbers(weights)
    fusion = fusions.by_name(bundle.fusion.kind if kind is None else kind, given)
    fusion.weights_for(bundle.plan.tasks)  # raises, with the required number, if there are too few or too many
    return fusion


def _numbers(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--weights must be numbers with commas between, got {text!r}") from None
    if not np.isfinite(numbers).all():
        raise ValueError(f"--weights must be finite, got {text!r}")
    return numbers


def _write_ranking(
    output: Path, requests: Requests, ranker: Ranker, k: int, timing: Timing, feedback: Feedback | None
) -> Ranked | None:
    """Rank every request into ``output``, complete or not at all; returns the first request's ranking."""
    scorer = ranker.scorer
    schema = _schema(requests, scorer)
    first: Ranked | None = None
    with atomic_path(output) as temporary, pq.ParquetWriter(temporary, schema) as writer, _progress(requests) as bar:
        waiting: list[Ranked] = []
        rows = 0
        for ranked in _rank(requests, ranker, k, timing):
            first = ranked if first is None else first
            if feedback is not None:
                feedback.add(ranked.request, ranked.positions)
            waiting.append(ranked)
            rows += len(ranked.positions)
            if rows >= _WRITE_ROWS:
                writer.write_table(_rows(waiting, requests, scorer, schema))
                waiting, rows = [], 0
            bar[0].advance(bar[1])
        if waiting:
            writer.write_table(_rows(waiting, requests, scorer, schema))
    return first


def _rank(requests: Requests, ranker: Ranker, k: int, timing: Timing) -> Iterator[Ranked]:
    for embedded in embedded_requests(requests, ranker.scorer):
        ranker.prepare(embedded)
        began = time.perf_counter()
        best = ranker.best(embedded, max(1, min(k, len(embedded.item))))
        seconds = time.perf_counter() - began
        timing.scoring.append(seconds)
        timing.total.append(seconds + embedded.seconds)
        positions = best.positions[0][best.positions[0] >= 0]
        probs = ranker.probabilities(embedded, positions)
        yield Ranked(embedded.request, positions, best.scores[0][: len(positions)], probs)


def _schema(requests: Requests, scorer: Scorer) -> pa.Schema:
    features = scorer.features
    assert features is not None
    fields = [
        (features.request_id, requests.ids.type),
        ("rank", pa.int32()),
        (features.item_id, requests.items.schema.field(features.item_id).type),
        ("position", pa.int64()),
        ("score", pa.float32()),
        *((f"p_{task}", pa.float32()) for task in scorer.tasks),
    ]
    names = [name for name, _ in fields]
    if len(set(names)) != len(names):
        raise ValueError(f"the output's columns must have different names, got {', '.join(names)}")
    return pa.schema(fields)


def _rows(ranked: list[Ranked], requests: Requests, scorer: Scorer, schema: pa.Schema) -> pa.Table:
    """The output's rows of some requests."""
    assert scorer.features is not None
    counts = [len(entry.positions) for entry in ranked]
    owners = np.repeat([entry.request for entry in ranked], counts)
    places = np.concatenate([entry.positions + requests.span(entry.request)[0] for entry in ranked])
    probs = np.concatenate([entry.probs for entry in ranked])
    columns = [
        requests.ids.take(pa.array(owners.astype(np.int64))),
        np.concatenate([np.arange(1, count + 1, dtype=np.int32) for count in counts]),
        requests.items.column(scorer.features.item_id).take(pa.array(places)),
        np.concatenate([entry.positions for entry in ranked]),
        np.concatenate([entry.scores for entry in ranked]),
        *(np.ascontiguousarray(probs[:, task]) for task in range(len(scorer.tasks))),
    ]
    return pa.table(columns, schema=schema)


def _compare(console: Console, requests: Requests, ranker: Ranker, bundle: Bundle, k: int, most: int) -> None:
    from ._eager import compare

    threads = ranker.scorer.threads or usable_cores()
    result = compare(ranker, bundle, islice(embedded_requests(requests, ranker.scorer), most), k, threads)
    _report.comparison(console, result, threads)


@contextmanager
def _progress(requests: Requests) -> Iterator[tuple[Progress, TaskID]]:
    """A progress bar on stderr, shown only on a terminal."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not sys.stderr.isatty(), transient=True) as progress:
        yield progress, progress.add_task("scoring", total=len(requests))


def _refuse_overwriting(output: Path, inputs: list[Path | None]) -> None:
    for path in inputs:
        if path is not None and output.exists() and path.exists() and output.samefile(path):
            raise ValueError(f"--output must be another file than the inputs, got {output}")


def _at_least_one(option: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{option} must be at least 1, got {value}")
