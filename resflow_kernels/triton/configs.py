"""Chooses the kernel for a plan, and its tile sizes: from the shipped ones, from earlier tuning here, or by rule.

The choice depends on the plan's shape and the device, never on the number of candidates: two tilings sum in different
orders, and a candidate's result must be bitwise the same in every batch.

Tuned configurations are stored in ``$RESFLOW_CACHE`` (``$XDG_CACHE_HOME/resflow`` or ``~/.cache/resflow``), one JSON
file per device, capability and version of Triton; :func:`resflow_kernels.triton.tune` writes it. Needs no GPU, and
Triton only for its version.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import warnings
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..core.plan import Plan, padded

DEFAULTS = Path(__file__).parent / "defaults.json"
KINDS = ("scores", "project")

# Limits of the chain kernel: a program holds the outputs of all layers and one whole later matrix at a time.
CHAIN_LAYERS = 3
CHAIN_WIDTH = {"tensorfloat32": 128, "bfloat16": 256, "float16": 256}


class Config(NamedTuple):
    """Tile sizes of a kernel."""

    block_m: int  # candidates
    block_k: int  # inputs
    block_n: int  # columns, in the forest and project kernels
    warps: int
    stages: int  # loads that are issued ahead of products

    @property
    def options(self) -> dict[str, int]:
        return {"num_warps": self.warps, "num_stages": self.stages}


def is_chain(plan: Plan) -> bool:
    """Whether the chain kernel supports the plan."""
    in_order = all(parent in (-1, task - 1) for task, parent in enumerate(plan.parents))
    related = plan.feature_residual or plan.join != "own"
    narrow = padded(max(plan.hidden)) <= CHAIN_WIDTH.get(plan.precision, 0)
    return (in_order or not related) and narrow and plan.layers <= CHAIN_LAYERS


def program_config(precision: str) -> Config:
    """The configuration of tile programs: no other has been tuned."""
    return Config(16, 32 if precision in ("float32", "tensorfloat32") else 64, 64, 4, 3)


def signature(plan: Plan, kind: str) -> str:
    """The properties of a plan that determine its configuration."""
    hidden = "x".join(str(width) for width in plan.hidden)
    residual = "+residual" if plan.feature_residual else ""
    return f"{kind} {plan.precision} {plan.in_features}-{hidden} {plan.tasks} tasks{residual}"


def config_of(plan: Plan, kind: str, device: torch.device) -> Config:
    """The configuration of a plan's kernel on a device."""
    return _chosen(plan, kind, (device.index or 0) if device.type == "cuda" else None)


def refresh() -> None:
    """Forget cached choices, so that newly tuned configurations are found."""
    _chosen.cache_clear()
    cached.cache_clear()


@lru_cache(maxsize=1024)
def _chosen(plan: Plan, kind: str, device: int | None) -> Config:
    key = signature(plan, kind)
    tuned = {}
    if device is not None and device < torch.cuda.device_count():  # otherwise traced for a GPU that is not present
        tuned = cached(cache_file(device_key(device)))
    return tuned.get(key) or shipped().get(key) or by_rule(plan, kind)


def by_rule(plan: Plan, kind: str) -> Config:
    """The configuration of plans with other shapes than the shipped ones, whose largest tiles it uses."""
    four_bytes = plan.precision in ("float32", "tensorfloat32")
    if kind == "project":
        return Config(16, 32, 64, 4, 3) if four_bytes else Config(16, 64, 64, 4, 3)
    widest = padded(max(plan.hidden))
    if plan.precision == "float32":
        return Config(16, 32, 64, 4, 3)
    if plan.precision == "tensorfloat32":
        return Config(64, 32, 64, 8, 3)
    return Config(64 if widest <= 128 else 32, 64, 64, 8, 3)


@cache
def shipped() -> dict[str, Config]:
    """The configurations of the workloads of ``resflow_kernels.testing``.

    Each is the largest tile that compiles for sm_80, sm_90 and sm_100 in all forms with at most 16 bytes of spilled
    registers per thread: chosen by the compiler's figures, not by time.
    """
    return _parse(json.loads(DEFAULTS.read_text(encoding="utf-8")))


def device_key(device: int) -> str:
    """Device, capability and Triton's version, as a file name."""
    import triton

    properties = torch.cuda.get_device_properties(device)
    text = f"{properties.name} {properties.major}.{properties.minor} triton {triton.__version__}"
    return re.sub(r"[^\w.]+", "-", text)


def cache_file(key: str) -> Path:
    """The file that stores the configurations tuned on a device."""
    named = os.environ.get("RESFLOW_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return (Path(named) if named else Path(home) / "resflow") / f"triton-{key}.json"


@cache
def cached(file: Path) -> dict[str, Config]:
    """The contents of a cache file; a damaged file counts as empty, with a warning."""
    if not file.exists():
        return {}
    try:
        return _parse(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        warnings.warn(f"{file} is damaged and not used; tuning writes it anew: {error}", stacklevel=2)
        return {}


def store(file: Path, tuned: dict[str, Config]) -> None:
    """Add to a cache file; another process sees either the new file or the one before."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cached.cache_clear()
        entries = {key: config._asdict() for key, config in (cached(file) | tuned).items()}
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=file.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            json.dump(entries, out, indent=1, sort_keys=True)
        os.replace(name, file)
    except BaseException:
        os.unlink(name)
        raise
    refresh()


def _parse(entries: Any) -> dict[str, Config]:
    if not isinstance(entries, dict):
        raise ValueError(f"an object of configurations was expected, got {type(entries).__name__}")
    parsed = {key: Config(**values) for key, values in entries.items()}
    for key, config in parsed.items():
        if not all(isinstance(value, int) and 0 < value <= 1024 for value in config):
            raise ValueError(f"{key}: numbers of 1 to 1024 were expected, got {config}")
    return parsed
