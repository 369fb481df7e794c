"""``resflow train``: train a model from Parquet or CSV files, as configured by a TOML file."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress as Bars
from rich.table import Table

from ._errors import one_line_errors

if TYPE_CHECKING:
    from ..training.config import Config
    from ..training.pipeline import Sources, Trained
    from ..training.settings import EpochResult, Progress

INTERRUPTED = 130  # exit code that shells report for a command ended by Ctrl-C


def train(
    config: Annotated[Path, typer.Argument(help="What to train, on what, and how (TOML).", show_default=False)],
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run of the checkpoint.")] = False,
) -> None:
    """Train a ranker and write the bundle that `resflow score` reads.

    On several processes: torchrun --nproc-per-node N -m resflow_kernels.cli train CONFIG
    """
    with one_line_errors():
        for module in ("torch", "torchmetrics"):
            if not find_spec(module):
                raise ValueError(f"train needs {module}, which is not installed: pip install {module}")
        from ..training import config as configs
        from ..training import pipeline

        settings = configs.read(config)
        pipeline.check(settings)
        pipeline.prepare_folders(settings)
        with _ranks(settings) as first:
            console = Console(quiet=not first)
            _check_run(settings, resume)
            with console.status("reading the training rows for vocabularies"):
                sources = pipeline.open_sources(settings)
            _print_sources(console, settings, sources)
            done = _train(console, settings, sources)
    if done.history.interrupted:
        kept = "nothing of it is kept" if settings.output.checkpoint is None else "go on with --resume"
        console.print(f"stopped after {len(done.history.epochs)} whole epochs: {kept}")
        raise typer.Exit(INTERRUPTED)
    _print_result(console, settings, done)


def _train(console: Console, settings: Config, sources: Sources) -> Trained:
    from ..training import pipeline, ranks

    training = settings.training
    steps = -(-len(sources.train.records) // (training.batch * training.accumulate * ranks.count()))
    with Bars(console=console, disable=not console.is_terminal, transient=True) as bars, _stopping() as stop:
        bar = bars.add_task("training", total=training.epochs * steps)

        def report(progress: Progress) -> None:
            bars.update(bar, completed=(progress.epoch - 1) * steps + progress.step)
            if progress.result is not None and progress.result.metrics.keys() > {"auc"}:
                console.print(_line(progress.result, settings.tasks.names), highlight=False)

        return pipeline.train(settings, sources, on_progress=report, stop=stop)


def _check_run(settings: Config, resume: bool) -> None:
    """Refuse to overwrite an unfinished run; a run without a checkpoint cannot be resumed, and begins."""
    from ..training import pipeline, ranks

    checkpoint = pipeline.checkpoint_of(settings)
    if checkpoint is None:
        if resume:
            raise ValueError("--resume needs [output] checkpoint, which the configuration does not name")
        return
    if resume and not checkpoint.exists() and ranks.rank() == 0:
        print(f"resflow: {checkpoint.path}: there is no checkpoint yet, the run begins afresh", file=sys.stderr)
    if not resume and checkpoint.exists():
        if not checkpoint.finished():
            raise ValueError(f"{checkpoint.path}: holds a run that did not finish: use --resume, or delete it")
        ranks.barrier()
        if ranks.rank() == 0:
            Path(checkpoint.path).unlink()
    ranks.barrier()


@contextmanager
def _ranks(settings: Config) -> Iterator[bool]:
    """Join the process group of ``torchrun`` if that started this process; yields whether this is the first rank."""
    import torch

    from ..training import pipeline, ranks

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield True
        return
    on_gpu = settings.training.device == "cuda"
    if on_gpu:
        torch.cuda.set_device(pipeline.device_of(settings))
    ranks.join("nccl" if on_gpu else "gloo")
    yield ranks.rank() == 0
    ranks.leave()  # not after an error: torchrun ends the others


@contextmanager
def _stopping() -> Iterator[Any]:
    """Let Ctrl-C and SIGTERM end training after the current step; a second one, not from ``torchrun``, at once."""
    asked: list[int] = []

    def handle(number: int, _: Any) -> None:
        asked.append(number)
        if len(asked) > 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
            raise KeyboardInterrupt
        print("resflow: stopping after this step", file=sys.stderr)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print_sources(console: Console, settings: Config, sources: Sources) -> None:
    parts = (("to train on", sources.train), ("to validate", sources.valid), ("to test", sources.test))
    counts = ", ".join(f"{len(source.records):,} {purpose}" for purpose, source in parts if source is not None)
    features = sources.features
    console.print(
        f"{counts} rows; {len(features.all)} features, {features.user_width} + {features.item_width} wide, "
        f"{sum(feature.rows for feature in features.all):,} vectors; {settings.towers.method}",
        highlight=False,
    )
    for part, labels in sources.labels.items():
        missing = [
            f"{count:,} of {task}" for task, count in zip(settings.tasks.names, labels.unobserved, strict=True) if count
        ]
        if missing:
            console.print(f"labels not observed ({part}): {', '.join(missing)}", highlight=False)
        one_kind = [task for at, task in enumerate(settings.tasks.names) if not labels.has_both(at)]
        if one_kind and part != "train":
            console.print(f"no AUC ({part}): all labels of {', '.join(one_kind)} are alike", highlight=False)
    for source in (source for _, source in parts if source is not None):
        if source.records.files.repeated:
            console.print(f"{source.records.files.repeated} files were named twice, and are read once", highlight=False)


def _line(result: EpochResult, tasks: tuple[str, ...]) -> str:
    aucs = ", ".join(f"{task} {result.metrics[f'auc.{task}']:.4f}" for task in tasks)
    loss = result.metrics["log_loss"]
    return f"epoch {result.epoch}: training loss {result.loss:.4f}, validation log loss {loss:.4f}, AUC {aucs}"


def _print_result(console: Console, settings: Config, done: Trained) -> None:
    history = done.history
    best = next(result for result in history.epochs if result.epoch == history.best_epoch)
    if done.written:
        table = Table("task", title=f"epoch {history.best_epoch} is kept")
        parts = [(part, own) for part, own in (("validation", best.metrics), ("test", done.test)) if own is not None]
        for part, _ in parts:
            for label in ("AUC", "log loss"):
                table.add_column(f"{part}\n{label}", justify="right")
        for task in settings.tasks.names:
            cells = (f"{own[f'{name}.{task}']:.4f}" for _, own in parts for name in ("auc", "log_loss"))
            table.add_row(task, *cells)
        console.print(table)
        console.print(f"wrote {', '.join(done.written)}", highlight=False)
