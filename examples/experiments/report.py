"""A comparison's results as one Markdown file, with the conditions of the measurement."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import machine, tables
from .store import Row, Store


def command() -> str:
    """The running command, in a form that can be typed again."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    arguments = " ".join(sys.argv[1:])
    return f"python -m {module.name} {arguments}".strip() if module else " ".join(sys.argv)


def head(title: str, store: Store, rows: Sequence[Row], settings: Mapping[str, object]) -> str:
    """Title, machine, commits, dates, seconds, the settings all methods share, and the command."""
    facts = machine.describe()
    dates = sorted(row["date"] for row in rows)
    commits = ", ".join(dict.fromkeys(row["commit"] for row in rows))
    lines = [
        ["machine", facts["machine"]],
        ["libraries", facts["libraries"]],
        ["threads", facts["threads"]],
        ["commit", commits],
        ["date", f"{dates[0]} to {dates[-1]} UTC" if dates else ""],
        ["training", f"{len(rows)} runs, {sum(row['seconds'] for row in rows) / 60:.1f} minutes"],
        *([name, str(value)] for name, value in settings.items()),
        ["command", f"`{command()}`"],
        ["runs", f"[{store.path.name}]({store.path.name})"],
    ]
    return f"# {title}\n\n" + tables.table(["", ""], lines)


def section(title: str, *parts: str) -> str:
    """A heading and its content; empty parts are left out."""
    return "\n\n".join([f"## {title}", *(part for part in parts if part)])


def chart(title: str, path: Path) -> str:
    """A chart next to the report."""
    return f"![{title}]({path.name})"


def write(path: Path, *parts: str) -> None:
    """Write a report completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text("\n\n".join(part for part in parts if part) + "\n")
    part.replace(path)
