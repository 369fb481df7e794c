"""``resflow bench``: how fast a model's dense form is here, beside PyTorch, ONNX Runtime and OpenVINO."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ..core.machine import usable_cores
from ..serving.bundle import Bundle, load
from ._errors import one_line_errors

if TYPE_CHECKING:
    from ..benchmark.contest import Entry
    from ..benchmark.peers import Contestant

BATCHES = "1,16,128,1024,8192"


def bench(
    model: Annotated[Path, typer.Argument(help="A model bundle (safetensors).", show_default=False)],
    batches: Annotated[str, typer.Option(help="Candidates a call.")] = BATCHES,
    peers: Annotated[
        str | None, typer.Option(help="Peers by name: eager, torch.compile, onnxruntime, openvino.", show_default="all")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of all of them.", show_default="all cores")] = None,
    rounds: Annotated[int, typer.Option(help="Turns each of them has.")] = 9,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Time a model's dense form beside other runtimes: same inputs and threads, in turns, medians."""
    with one_line_errors():
        if not find_spec("torch"):
            raise ValueError("bench needs torch, which is not installed")
        bundle, sizes = load(model), _numbers(batches)
        wanted = None if peers is None else [name.strip() for name in peers.split(",")]
        for option, value in (("--threads", threads), ("--rounds", rounds)):
            if value is not None and value < 1:
                raise ValueError(f"{option} must be at least 1, got {value}")
        used = usable_cores() if threads is None else threads
        contests = _contests(bundle, sizes, wanted, used, rounds, Console(stderr=True))
    if as_json:
        print(json.dumps([_facts(batch, entry) for batch, entries in contests.items() for entry in entries], indent=2))
        return
    console = Console()
    console.print(_table(contests, f"{model.name}, {used} thread{'s' * (used > 1)}, medians in microseconds"))
    for line in _problems(contests):
        console.print(line, highlight=False)


def _contests(
    bundle: Bundle, batches: list[int], wanted: list[str] | None, threads: int, rounds: int, progress: Console
) -> dict[int, list[Entry]]:
    """What each batch's contest gave."""
    from ..benchmark.contest import Inputs, hold
    from ..benchmark.peers import OURS, Model
    from ..benchmark.turns import Schedule

    model = Model(bundle.plan, bundle.weights, bundle.fusion)
    contestants = (*OURS, *_chosen(wanted))
    contests = {}
    for batch in batches:
        with progress.status(f"{batch} candidates (torch.compile takes a while)"):
            inputs = Inputs.dense(model, batch)
            contests[batch] = hold(model, inputs, threads, Schedule(rounds=rounds), contestants)
    return contests


def _chosen(wanted: list[str] | None) -> list[type[Contestant]]:
    from ..benchmark.peers import PEERS

    names = dict.fromkeys(peer.name for peer in PEERS)
    for name in wanted or []:
        if name not in names:
            raise ValueError(f"--peers must be of {', '.join(names)}, got {name!r}")
    return [peer for peer in PEERS if wanted is None or peer.name in wanted]


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--batches must be whole numbers with commas between, got {text!r}") from None
    if min(numbers) < 1:
        raise ValueError(f"--batches must be at least 1, got {text!r}")
    return list(dict.fromkeys(numbers))


def _table(contests: dict[int, list[Entry]], title: str) -> Table:
    """Contestants down, batches across; a peer's cell says how many times as long as ours it took."""
    table = Table("", title=title)
    for batch in contests:
        table.add_column(f"{batch:,}", justify="right")
    columns = list(contests.values())
    for at, first in enumerate(columns[0]):
        cells = [_cell(entries[at], entries[0]) for entries in columns]
        if any(cells):
            table.add_row(first.name, *(cell or "-" for cell in cells))
    return table


def _cell(entry: Entry, ours: Entry) -> str:
    if not entry.timing.turns:
        return ""
    median = entry.timing.median
    ratio = f" ({median / ours.timing.median:.2f}x)" if ours.timing.turns and entry is not ours else ""
    return f"{median * 1e6:,.1f}{ratio}"


def _problems(contests: dict[int, list[Entry]]) -> list[str]:
    """Who was not timed, and why."""
    problems: dict[str, list[str]] = {}
    for batch, entries in contests.items():
        for entry in entries:
            if entry.problem is not None:
                problems.setdefault(f"{entry.name}: not timed: {entry.problem}", []).append(f"{batch:,}")
    everywhere = len(contests)
    return [
        text if len(batches) == everywhere else f"{text} (at {', '.join(batches)})"
        for text, batches in problems.items()
    ]


def _facts(batch: int, entry: Entry) -> dict[str, Any]:
    timed = bool(entry.timing.turns)
    return {
        "batch": batch,
        "contestant": entry.contestant.name,
        "precision": entry.contestant.precision,
        "problem": entry.problem,
        "median_us": entry.timing.median * 1e6 if timed else None,
        "p99_us": entry.timing.quantile(0.99) * 1e6 if timed else None,
        "calls": len(entry.timing.samples),
    }
