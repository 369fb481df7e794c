"""Finished runs, one JSON object per line: a run that is stored is never trained again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Setting = Mapping[str, Any]
Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One model to train.

    Args:
        experiment: the comparison it belongs to.
        method: the compared method.
        setting: its hyper-parameters, JSON values by name.
        seed: seed of initial weights and shuffling.
        stage: ``"tune"``, or ``"final"`` for a run that the tables report.
    """

    experiment: str
    method: str
    setting: Setting
    seed: int
    stage: str

    @property
    def key(self) -> str:
        """Equal for equal runs, whatever the order of their settings."""
        return json.dumps([self.experiment, self.method, self.setting, self.seed, self.stage], sort_keys=True)


class Store:
    """A file of finished runs.

    A row counts as written once its line is complete: a line that an interruption cut off is removed when the file is
    opened again, and its run is trained anew.

    Args:
        path: path of the file; the first row creates it and its folder.
        conditions: JSON values that all runs share and that are not hyper-parameters, such as the number of epochs.

    Raises:
        ValueError: the file has runs under other conditions.

    Example:
        >>> store = Store(Path("results/runs.jsonl"), {"epochs": 5})                # doctest: +SKIP
        >>> store.add(Run("chain", "nse", {"lr": 1e-3}, 1, "final"), {"valid": 0.7})  # doctest: +SKIP
    """

    def __init__(self, path: Path, conditions: Mapping[str, Any]) -> None:
        self.path, self.conditions = path, dict(conditions)
        self._rows: dict[str, Row] = {}
        if path.exists():
            content = path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            if len(whole) < len(content):
                path.write_bytes(whole)
            for line in whole.splitlines():
                row = json.loads(line)
                if row["conditions"] != self.conditions:
                    raise ValueError(
                        f"{path} must hold runs under {self.conditions}, got {row['conditions']}: name another folder"
                    )
                self._rows[_run(row).key] = row

    def __len__(self) -> int:
        return len(self._rows)

    def find(self, run: Run) -> Row | None:
        """The row of a finished run, else ``None``."""
        return self._rows.get(run.key)

    def rows(self, experiment: str, stage: str = "final") -> list[Row]:
        """The rows of an experiment's stage, in the order they were finished."""
        return [row for row in self._rows.values() if row["experiment"] == experiment and row["stage"] == stage]

    def add(self, run: Run, outcome: Mapping[str, Any]) -> Row:
        """Write a finished run with its outcome; it is on disk when this returns."""
        row = {**vars(run), "setting": dict(run.setting), "conditions": self.conditions, **outcome}
        line = json.dumps(row, sort_keys=True, allow_nan=True) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._rows[run.key] = row
        return row


def methods_of(rows: Iterable[Row]) -> list[str]:
    """The methods of some rows, in the order of their first occurrence."""
    return list(dict.fromkeys(row["method"] for row in rows))


def _run(row: Row) -> Run:
    return Run(row["experiment"], row["method"], row["setting"], row["seed"], row["stage"])
