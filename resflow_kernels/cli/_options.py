"""The options of ``resflow`` without a command."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import __version__


def _show_version(asked: bool) -> None:
    if asked:
        print(f"resflow-kernels {__version__}")
        raise typer.Exit


def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    # The help belongs to the application; the callbacks of the options do all the work.
    pass
