"""The configuration of ``resflow train`` in TOML: data, features, tasks, towers, fusion, training, output.

Paths are relative to the folder in which the command runs. Imports neither torch nor pyarrow.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from ..core.fusion import FORMS, Fusion, by_name
from ..core.plan import topology
from ..data.features import KINDS, Feature, FeatureSet
from ._sections import TOP, build, one_of
from .settings import FitSettings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class DataConfig:
    """Files (names or globs) and the columns that are not features."""

    train: tuple[str, ...]
    valid: tuple[str, ...]
    request_id: str
    item_id: str
    test: tuple[str, ...] = ()
    format: str | None = None  # parquet or csv; None: by the files' suffix
    separator: str | None = None  # of CSV files; None: a tab in .tsv files, else a comma
    column_names: tuple[str, ...] | None = None  # of CSV files without a line of names
    types: dict[str, str] | None = None  # of CSV columns: text, integer, number, boolean; others: by all their values
    list_separator: str = "|"  # between the ids of a list in CSV files, where lists are strings
    buffer: int = 1 << 18  # rows from which a batch is drawn


@dataclass(frozen=True)
class FeatureConfig:
    """A feature; omitted settings are those of the section."""

    name: str
    kind: str = "id"
    dim: int | None = None
    min_count: int | None = None
    buckets: int | None = None
    pooling: str = "sum"  # of lists; or "mean"


@dataclass(frozen=True)
class FeaturesConfig:
    """The features of both sides; a bare name is a feature of kind ``id``."""

    user: tuple[FeatureConfig, ...]
    item: tuple[FeatureConfig, ...]
    dim: int = 16
    min_count: int = 1
    buckets: int = 16


@dataclass(frozen=True)
class TasksConfig:
    """The label columns, parents first."""

    names: tuple[str, ...]
    topology: str | dict[str, str] = "chain"  # chain, star, independent, or each child's parent by name
    weights: tuple[float, ...] | None = None  # of the tasks in the loss; each 1 by default
    positive_weights: tuple[float, ...] | None = None  # of a task's positive rows; each 1 by default
    nested: bool = False  # a label counts only if its parent's does
    calibrator: float = 0.0  # weight of AITM's calibrator in the loss (its authors: 0.6)


@dataclass(frozen=True)
class TowersConfig:
    """The method and its settings; omitted ones are the method's defaults."""

    method: str = "resflow"
    hidden: tuple[int, ...] = (128, 64)
    activation: str = "prelu"
    norm: str = "batch"  # or none
    norm_after_activation: bool = True
    norm_eps: float = 1e-3
    input_norm: bool = False
    feature_residual: bool | None = None
    logit_residual: bool | None = None
    non_increasing: bool = False
    experts: int | None = None
    tower_layers: int | None = None


@dataclass(frozen=True)
class FusionConfig:
    """How probabilities become a score."""

    kind: str = "additive"
    weights: tuple[float, ...] | None = None


@dataclass(frozen=True)
class TrainingConfig:
    """Batches, dropout, device, and the settings of :class:`FitSettings`."""

    batch: int = 2048
    dropout: float = 0.0  # of the input row
    device: str = "cpu"  # or cuda; under torchrun each rank takes its own
    epochs: int = 10
    patience: int = 2
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    embedding_learning_rate: float | None = None
    embedding_weight_decay: float | None = None
    monitor: str = "auc"  # the mean over tasks; auc.<task>; log_loss
    seed: int = 0
    accumulate: int = 1
    autocast: bool = False
    clip: float | None = None

    def fit_settings(self) -> FitSettings:
        """Settings of :func:`~resflow_kernels.training.loop.fit`, which maximises: a log loss is negated."""
        monitor = "-log_loss" if self.monitor == "log_loss" else self.monitor
        others = {name: value for name, value in asdict(self).items() if name not in ("batch", "dropout", "device")}
        return FitSettings(**{**others, "monitor": monitor})


@dataclass(frozen=True)
class OutputConfig:
    """The files to write."""

    bundle: str | None = None  # for `resflow score`
    weights: str | None = None  # the model's state dict, safetensors; any method
    checkpoint: str | None = None  # a folder
    checkpoint_every: int = 0  # in steps; 0: only after each epoch


@dataclass(frozen=True)
class Config:
    """A whole file; see the classes of the sections."""

    data: DataConfig
    features: FeaturesConfig
    tasks: TasksConfig
    output: OutputConfig
    towers: TowersConfig = field(default_factory=TowersConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        with _about("[features]"):
            self.feature_set()
        with _about("[tasks] topology"):
            parents = self.parents
        for name in ("weights", "positive_weights"):
            given = getattr(self.tasks, name)
            if given is not None and (len(given) != len(parents) or min(given) <= 0):
                raise ValueError(f"[tasks] {name} must be {len(parents)} numbers above 0, got {list(given)}")
        if not self.tasks.calibrator >= 0:
            raise ValueError(f"[tasks] calibrator must be 0 or more, got {self.tasks.calibrator}")
        with _about("[fusion]"):
            self.score_fusion().weights_for(len(parents))
        self._check_training()
        if self.output.bundle is None and self.output.weights is None:
            raise ValueError("[output] must name a bundle or weights, got neither")
        if self.output.checkpoint_every < 0:
            raise ValueError(f"[output] checkpoint_every must be 0 or more, got {self.output.checkpoint_every}")

    @property
    def parents(self) -> tuple[int, ...]:
        """The parent of each task, -1 for a root."""
        return topology(self.tasks.topology, self.tasks.names)

    def feature_set(self) -> FeatureSet:
        """The features, still unfitted."""

        def side(name: str) -> tuple[Feature, ...]:
            for entry in getattr(self.features, name):
                one_of(f"{name}: {entry.name}: kind", entry.kind, KINDS)
            dim = self.features.dim
            entries: tuple[FeatureConfig, ...] = getattr(self.features, name)
            return tuple(
                Feature(e.name, dim if e.dim is None else e.dim, e.kind, pooling=e.pooling)  # type: ignore[arg-type]
                for e in entries
            )

        return FeatureSet(side("user"), side("item"), self.data.request_id, self.data.item_id)

    def fit_arguments(self) -> dict[str, dict[str, int]]:
        """``min_count`` and ``buckets`` of each feature, as arguments of :meth:`FeatureSet.fit`."""
        arguments: dict[str, dict[str, int]] = {}
        for name in ("min_count", "buckets"):
            default = getattr(self.features, name)
            own = {entry.name: getattr(entry, name) for entry in (*self.features.user, *self.features.item)}
            arguments[name] = {feature: default if value is None else value for feature, value in own.items()}
        return arguments

    def score_fusion(self) -> Fusion:
        """The fusion with its weights."""
        one_of("kind", self.fusion.kind, FORMS)
        return by_name(self.fusion.kind, self.fusion.weights)

    def identity(self) -> dict[str, Any]:
        """The settings that must be the same when a run is resumed, in addition to :class:`FitSettings`."""
        parts = {name: asdict(getattr(self, name)) for name in ("data", "features", "tasks", "towers", "fusion")}
        return {**parts, "batch": self.training.batch, "dropout": self.training.dropout}

    def to_json(self) -> dict[str, Any]:
        """The whole configuration as JSON data."""
        return asdict(self)

    def _check_training(self) -> None:
        training = self.training
        for section, name, least in (("training", "batch", 2), ("data", "buffer", 1)):
            value = getattr(getattr(self, section), name)
            if value < least:
                raise ValueError(f"[{section}] {name} must be at least {least}, got {value}")
        if not 0 <= training.dropout < 1:
            raise ValueError(f"[training] dropout must be from 0 to below 1, got {training.dropout}")
        one_of("[training] device", training.device, ("cpu", "cuda"))
        one_of("[training] monitor", training.monitor, ("auc", *(f"auc.{t}" for t in self.tasks.names), "log_loss"))
        with _about("[training]"):
            training.fit_settings()


def read(path: str | os.PathLike[str]) -> Config:
    """Read a configuration.

    Raises:
        ValueError: the file is not TOML, or a key or value is wrong; the message names file, section and key.
        OSError: the file cannot be read.

    Example:
        >>> read("examples/kuairand/train.toml").tasks.names  # doctest: +SKIP
        ('click', 'long_view', 'finish')
    """
    with open(path, "rb") as file:
        try:
            return parse(tomllib.load(file))
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{os.fspath(path)}: must be TOML, got {error}") from None
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from None


def parse(content: dict[str, Any]) -> Config:
    """A configuration from the output of a TOML parser; raises like :func:`read`."""
    return build(Config, content, TOP)


@contextmanager
def _about(section: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{section}: {error}") from None
