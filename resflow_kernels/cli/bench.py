"""``resflow bench``: the speed of a model's dense form here, compared with PyTorch, ONNX Runtime and OpenVINO."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ..core.machine import usable_cores
from ..core.program import Program
from ..serving.bundle import Bundle, load
from ._errors import one_line_errors

if TYPE_CHECKING:
    from ..benchmark.baselines import Implementation
    from ..benchmark.suite import Entry

BATCHES = "1,16,128,1024,8192"


def bench(
    model: Annotated[Path, typer.Argument(help="A model bundle (safetensors).", show_default=False)],
    batches: Annotated[str, typer.Option(help="Candidates per call.")] = BATCHES,
    peers: Annotated[
        str | None,
        typer.Option(help="Baselines by name: eager, torch.compile, onnxruntime, openvino.", show_default="all"),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Thread count of all implementations.", show_default="all cores")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Rounds of interleaved calls.")] = 9,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Time a model's dense form against other runtimes: same inputs and threads, interleaved, medians."""
    with one_line_errors():
        if not find_spec("torch"):
            raise ValueError("bench needs torch, which is not installed")
        bundle, sizes = load(model), _numbers(batches)
        wanted = None if peers is None else [name.strip() for name in peers.split(",")]
        for option, value in (("--threads", threads), ("--rounds", rounds)):
            if value is not None and value < 1:
                raise ValueError(f"{option} must be at least 1, got {value}")
        used = usable_cores() if threads is None else threads
        results = _results(bundle, sizes, wanted, used, rounds, Console(stderr=True))
    if as_json:
        print(json.dumps([_facts(batch, entry) for batch, entries in results.items() for entry in entries], indent=2))
        return
    console = Console()
    console.print(_table(results, f"{model.name}, {used} thread{'s' * (used > 1)}, medians in microseconds"))
    for line in _problems(results):
        console.print(line, highlight=False)


def _results(
    bundle: Bundle, batches: list[int], wanted: list[str] | None, threads: int, rounds: int, progress: Console
) -> dict[int, list[Entry]]:
    """The entries of every batch size, timed."""
    from ..benchmark.baselines import OURS, Model
    from ..benchmark.interleave import Schedule
    from ..benchmark.suite import Inputs, run

    if isinstance(bundle.plan, Program):
        raise ValueError("bench must be given a forest of towers, got a tile program, which no peer computes")
    model = Model(bundle.plan, bundle.weights, bundle.fusion)
    implementations = (*OURS, *_chosen(wanted))
    results = {}
    for batch in batches:
        with progress.status(f"{batch} candidates (torch.compile takes a while)"):
            inputs = Inputs.dense(model, batch)
            results[batch] = run(model, inputs, threads, Schedule(rounds=rounds), implementations)
    return results


def _chosen(wanted: list[str] | None) -> list[type[Implementation]]:
    from ..benchmark.baselines import BASELINES

    names = dict.fromkeys(baseline.name for baseline in BASELINES)
    for name in wanted or []:
        if name not in names:
            raise ValueError(f"--peers must be of {', '.join(names)}, got {name!r}")
    return [baseline for baseline in BASELINES if wanted is None or baseline.name in wanted]


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--batches must be whole numbers with commas between, got {text!r}") from None
    if min(numbers) < 1:
        raise ValueError(f"--batches must be at least 1, got {text!r}")
    return list(dict.fromkeys(numbers))


def _table(results: dict[int, list[Entry]], title: str) -> Table:
    """One row per implementation, one column per batch size; a baseline's cell has its time relative to ours."""
    table = Table("", title=title)
    for batch in results:
        table.add_column(f"{batch:,}", justify="right")
    columns = list(results.values())
    for i, first in enumerate(columns[0]):
        cells = [_cell(entries[i], entries[0]) for entries in columns]
        if any(cells):
            table.add_row(first.name, *(cell or "-" for cell in cells))
    return table


def _cell(entry: Entry, ours: Entry) -> str:
    if not entry.timing.rounds:
        return ""
    median = entry.timing.median
    ratio = f" ({median / ours.timing.median:.2f}x)" if ours.timing.rounds and entry is not ours else ""
    return f"{median * 1e6:,.1f}{ratio}"


def _problems(results: dict[int, list[Entry]]) -> list[str]:
    """A line per implementation that was not timed, and why."""
    problems: dict[str, list[str]] = {}
    for batch, entries in results.items():
        for entry in entries:
            if entry.problem is not None:
                problems.setdefault(f"{entry.name}: not timed: {entry.problem}", []).append(f"{batch:,}")
    return [
        text if len(batches) == len(results) else f"{text} (at {', '.join(batches)})"
        for text, batches in problems.items()
    ]


def _facts(batch: int, entry: Entry) -> dict[str, Any]:
    timed = bool(entry.timing.rounds)
    return {
        "batch": batch,
        "contestant": entry.implementation.name,
        "precision": entry.implementation.precision,
        "problem": entry.problem,
        "median_us": entry.timing.median * 1e6 if timed else None,
        "p99_us": entry.timing.quantile(0.99) * 1e6 if timed else None,
        "calls": len(entry.timing.samples),
    }
