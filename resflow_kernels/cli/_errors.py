"""Bad input ends a command with one line on stderr and exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
import typer


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn exceptions about bad files and arguments into ``resflow: <message>`` and exit code 2."""
    try:
        yield
    except (ValueError, OSError, ImportError, MemoryError, pa.ArrowException) as error:
        text = " ".join(_text(error).split()) or type(error).__name__
        print(f"resflow: {text}", file=sys.stderr)
        raise typer.Exit(2) from None


def _text(error: Exception) -> str:
    """The message, with an ``OSError``'s file first instead of ``[Errno 2] No such file or directory: 'name'``."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}"
    return str(error)
