"""``resflow fuse-report``: what ``fuse`` does to a model of one's own."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer

from ._errors import one_line_errors


def fuse_report(
    maker: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:FUNCTION",
            help="A function without arguments that returns a model and the arguments of a call of it, as a tuple.",
            show_default=False,
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show which parts of a model run in one pass, which stay PyTorch's, and why."""
    with one_line_errors():
        model, inputs = _made(maker)
        from ..convert.fuse import explain

        report = explain(model, inputs)
    if as_json:
        print(json.dumps({**asdict(report), "share_inside": report.share_inside}, indent=2))
    else:
        print(report)


def _made(maker: str) -> tuple[Any, Any]:
    """The function's model and inputs; modules are found in the working directory as well."""
    name, _, function = maker.partition(":")
    if not name or not function:
        raise ValueError(f"MODULE:FUNCTION must name both, such as my_models:ranker, got {maker!r}")
    if "" not in sys.path:
        sys.path.insert(0, "")
    module = importlib.import_module(name)
    if not callable(getattr(module, function, None)):
        raise ValueError(f"{maker}: must be a function, got none of this name in {module.__file__}")
    made = getattr(module, function)()
    if not isinstance(made, tuple) or len(made) != 2 or not hasattr(made[0], "forward"):
        raise ValueError(f"{maker}: must return a model and its inputs, got {type(made).__name__}")
    return made
