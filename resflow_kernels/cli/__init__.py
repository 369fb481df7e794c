"""The ``resflow`` command: train a model, score files with it, inspect it, time it, report on one's own model."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer

_NEEDED = ("typer", "rich", "pyarrow")


def build_app() -> typer.Typer:
    """The ``typer`` application with all commands."""
    import typer

    from . import _options, bench, fuse_report, info, inspect, quantize, score, train

    app = typer.Typer(
        help="Fast inference of ResFlow residual multi-task rankers, and their training.",
        add_completion=False,
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
    )
    app.callback()(_options.options)
    app.command("score")(score.score)
    app.command("train")(train.train)
    app.command("quantize")(quantize.quantize)
    app.command("inspect")(inspect.inspect)
    app.command("info")(info.info)
    app.command("bench")(bench.bench)
    app.command("fuse-report")(fuse_report.fuse_report)
    return app


def main() -> None:
    """Entry point of the console script ``resflow``."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        print(f"resflow: needs {', '.join(missing)}: pip install {' '.join(missing)}", file=sys.stderr)
        raise SystemExit(2)
    build_app()(prog_name="resflow")
