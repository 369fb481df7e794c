"""A training run in one safetensors file that allows to resume bitwise; it is written completely or not at all.

The file's ``__metadata__["resflow"]`` is a JSON text::

    {"format": "resflow-checkpoint", "version": 1, "identity": {...}, "optimizer": [...], "progress": {...}}

and its tensors are ``model.<name>``, ``best.<name>`` (the best epoch's weights), ``optimizer.<parameter>.<name>`` and
``random.<generator>`` (one row per rank). Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..serving.bundle import METADATA_KEY, atomic_path

FORMAT = "resflow-checkpoint"
VERSION = 1

Tensors = Mapping[str, Tensor]


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or resumed: names the file, what was expected and what was got."""


@dataclass(frozen=True, eq=False)
class State:
    """The state of a run: state dicts of model, best weights and optimizer, generators by name, and plain numbers."""

    model: Tensors
    best: Tensors
    optimizer: Mapping[str, Any]
    random: Tensors
    progress: Mapping[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """The file in which :func:`~resflow_kernels.training.loop.fit` stores a run, and from which it resumes.

    Args:
        path: the file; its folder must exist.
        every: number of steps after which to write, in addition to the end of each epoch; 0: only after epochs.
        identity: JSON data that must be the same when the run is resumed (the data, the model's settings).

    Example:
        >>> checkpoint = Checkpoint("run/checkpoint.safetensors", every=1000, identity={"data": "2024-05"})
    """

    path: str | os.PathLike[str]
    every: int = 0
    identity: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.every, int) or isinstance(self.every, bool) or self.every < 0:
            raise ValueError(f"Checkpoint: every must be an integer of 0 or more, got {self.every!r}")

    def exists(self) -> bool:
        """Whether there is a run to resume."""
        return Path(self.path).is_file()

    def save(self, state: State) -> None:
        """Write a run's state; the file appears complete or not at all."""
        groups = state.optimizer["param_groups"]
        content = {
            "format": FORMAT,
            "version": VERSION,
            "identity": self.identity,
            "optimizer": groups,
            "progress": state.progress,
        }
        tensors = {f"model.{name}": tensor for name, tensor in state.model.items()}
        tensors |= {f"best.{name}": tensor for name, tensor in state.best.items()}
        tensors |= {f"random.{name}": tensor for name, tensor in state.random.items()}
        for parameter, entries in state.optimizer["state"].items():
            tensors |= {f"optimizer.{parameter}.{name}": tensor for name, tensor in entries.items()}
        with atomic_path(self.path) as temporary:
            save_file(separate(tensors), temporary, metadata={METADATA_KEY: json.dumps(content)})

    def load(self) -> State:
        """Read a run's state.

        Raises:
            CheckpointError: the file is missing, damaged, foreign, or of a run of another identity.
        """
        content = self._content()
        self._check_identity(content["identity"])
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "random": {}, "optimizer": {}}
        with self._opened() as file:
            for name in file.keys():  # noqa: SIM118
                part, _, rest = name.partition(".")
                if part not in parts:
                    raise CheckpointError(f"{self.path}: tensors must be of {', '.join(parts)}, got {name}")
                parts[part][rest] = file.get_tensor(name)
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in parts["optimizer"].items():
            parameter, _, entry = name.partition(".")
            moments.setdefault(int(parameter), {})[entry] = tensor
        optimizer = {"state": moments, "param_groups": content["optimizer"]}
        return State(parts["model"], parts["best"], optimizer, parts["random"], content["progress"])

    def finished(self) -> bool:
        """Whether there is a run that has ended."""
        return self.exists() and bool(self._content()["progress"]["finished"])

    def _content(self) -> dict[str, Any]:
        with self._opened() as file:
            text = (file.metadata() or {}).get(METADATA_KEY, "null")
        try:
            content = json.loads(text)
        except ValueError as error:
            raise CheckpointError(f"{self.path}: its metadata must be JSON, got {error}") from None
        form = (content.get("format"), content.get("version")) if isinstance(content, dict) else None
        if form != (FORMAT, VERSION):
            raise CheckpointError(f"{self.path}: must be a {FORMAT} of version {VERSION}, got another file")
        return cast(dict[str, Any], content)

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        if not self.exists():
            raise CheckpointError(f"{self.path}: must be a checkpoint file, got no file")
        try:
            with safe_open(os.fspath(self.path), framework="pt") as file:
                yield file
        except SafetensorError as error:
            raise CheckpointError(f"{self.path}: must be a whole safetensors file, got {error}") from None

    def _check_identity(self, saved: Mapping[str, Any]) -> None:
        current = json.loads(json.dumps(self.identity))
        for key in sorted({*saved, *current}):
            was, now = saved.get(key), current.get(key)
            if was != now:
                raise CheckpointError(f"{self.path}: {key} must be that of the run to resume, {was!r}, got {now!r}")


def separate(tensors: Tensors) -> dict[str, Tensor]:
    """Tensors as safetensors requires them: on the CPU, contiguous, none sharing memory with another."""
    seen: set[int] = set()
    out = {}
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        own = own.clone() if own.untyped_storage().data_ptr() in seen or own.is_inference() else own
        seen.add(own.untyped_storage().data_ptr())
        out[name] = own
    return out
