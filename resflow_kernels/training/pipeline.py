"""Trains a model from a configuration: vocabularies, batches, losses, metrics, and the files that are written."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_auroc

from ..data import columns, embedding
from ..data.features import FeatureSet
from ..data.files import CsvSettings, Files
from ..nn.fused import FusedRanker
from ..nn.losses import calibrator_loss, multitask_bce
from ..nn.methods import METHODS, make_ranker
from ..nn.ranker import RankerBase
from ..ops import FeatureIds
from ..serving.bundle import METADATA_KEY, atomic_path, save_model
from . import ranks
from ._sections import one_of
from .checkpoint import Checkpoint, separate
from .config import Config
from .loop import Batch, fit
from .ranker import FeatureModel, feature_embeddings
from .settings import History, Progress
from .stream import Records, in_batches

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class Source:
    """Rows of some files as batches of encoded features and labels."""

    records: Records
    features: FeatureSet  # fitted
    config: Config

    def shuffled(self, epoch: int) -> Iterator[Batch]:
        """This rank's batches of an epoch, shuffled."""
        training = self.config.training
        tables = self.records.shuffled(
            training.batch, training.seed, epoch, ranks.rank(), ranks.count(), self.config.data.buffer
        )
        return self._batches(tables, training.batch)

    def in_order(self) -> Iterator[Batch]:
        """All rows, in the order of the files."""
        return self._batches(self.records.tables(), 8192)

    def _batches(self, tables: Iterable[pa.Table], size: int) -> Iterator[Batch]:
        every = self.features.all
        names, lists = [f.name for f in every], {f.name for f in every if f.kind == "ids"}
        for table in tables:
            encoded = {feature.name: feature.encode(table) for feature in every}
            labels = torch.from_numpy(labels_of(self.config, table))
            for start, stop in in_batches(table.num_rows, size):
                ids = embedding.looked_up(embedding.rows_of(encoded, start, stop), names, lists)
                yield Batch(FeatureIds(*map(torch.from_numpy, ids)), labels[start:stop])


class LabelCounts:
    """How many labels of each task are 0, are 1, and are not observed."""

    def __init__(self, config: Config) -> None:
        self.counts = np.zeros((len(config.tasks.names), 3), np.int64)
        self._config = config

    def tables(self, files: Files) -> Iterator[pa.Table]:
        """The tables of files, counted as they pass.

        Raises:
            ValueError: a label is none; the message names its file.
        """
        for piece in files.pieces:
            for table in files.read(piece):
                try:
                    labels = labels_of(self._config, table)
                except ValueError as error:
                    raise ValueError(f"{piece.file}: {error}") from None
                kinds = np.where(np.isnan(labels), 2, labels).astype(np.int64)
                self.counts += np.stack([(kinds == kind).sum(0) for kind in range(3)], axis=1)
                yield table

    def count(self, records: Records) -> None:
        """Count the labels of files, reading no other column."""
        for _ in self.tables(Files(records.paths, self._config.tasks.names, records.format, records.csv)):
            pass

    @property
    def unobserved(self) -> list[int]:
        """Labels of each task that are null or NaN."""
        counts: list[int] = self.counts[:, 2].tolist()
        return counts

    def has_both(self, task: int) -> bool:
        """Whether a task has labels of both kinds, without which it has no AUC."""
        return bool(self.counts[task, :2].min() > 0)


def labels_of(config: Config, table: pa.Table) -> NDArray[np.float32]:
    """Labels ``[n, K]``, NaN where not observed; nested ones are 0 below a parent's 0."""
    tasks = config.tasks
    labels = columns.binary_labels(table, tasks.names)
    if tasks.nested:
        for task, parent in enumerate(config.parents):
            if parent >= 0:
                labels[:, task] = np.where(labels[:, parent] == 0, 0, labels[:, task] * labels[:, parent])
    return labels


@dataclass(frozen=True)
class Sources:
    """The rows for training, for validation and, if there are any, for testing; their features are fitted."""

    features: FeatureSet
    train: Source
    valid: Source
    test: Source | None
    labels: dict[str, LabelCounts]  # of each part: "train", "valid", "test"


@dataclass(frozen=True)
class Trained:
    """The result of :func:`train`; ``test`` are the test files' metrics, ``written`` the files."""

    history: History
    test: dict[str, float] | None
    written: tuple[str, ...]


def check(config: Config) -> None:
    """Refuse, before any data is read, settings that would fail afterwards.

    Raises:
        ValueError: towers that cannot be built, no GPU.
    """
    features = config.feature_set()
    with torch.device("meta"):
        build_towers(config, features.user_width + features.item_width)
    if config.training.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("[training] device must be one that PyTorch finds here, got 'cuda' without a GPU")


def open_sources(config: Config) -> Sources:
    """Open the files and fit the features, in one pass over the training rows.

    Raises:
        ValueError: files or columns that are missing or of the wrong type.
    """
    features = config.feature_set()
    columns = list(dict.fromkeys([*(feature.name for feature in features.all), *config.tasks.names]))
    lists = [feature.name for feature in features.all if feature.kind == "ids"]

    def records(part: str) -> Records:
        data = config.data
        csv = CsvSettings(data.separator, data.column_names, data.types or {}, lists, data.list_separator)
        try:
            return Records(getattr(data, part), columns, data.format, csv)
        except ValueError as error:
            raise ValueError(f"[data] {part}: {error}") from None

    opened = {part: records(part) for part in ("train", "valid", "test") if getattr(config.data, part)}
    opened["train"].shares(0, 1, ranks.count())
    labels = {part: LabelCounts(config) for part in opened}
    for part in opened.keys() - {"train"}:
        labels[part].count(opened[part])
    _check_monitor(config, labels["valid"])
    fitted = features.fit(labels["train"].tables(opened["train"].files), **config.fit_arguments())
    sources = {part: Source(rows, fitted, config) for part, rows in opened.items()}
    return Sources(fitted, sources["train"], sources["valid"], sources.get("test"), labels)


def _check_monitor(config: Config, labels: LabelCounts) -> None:
    """Refuse a monitor that the validation rows do not have."""
    names, monitor = config.tasks.names, config.training.monitor
    having = [name for at, name in enumerate(names) if labels.has_both(at)]
    if monitor == "log_loss":
        missing = None if labels.counts[:, :2].sum() else "rows without an observed label"
    elif monitor == "auc":
        missing = None if having else "rows in which no task has labels 0 and 1"
    else:
        task = monitor.removeprefix("auc.")
        missing = None if task in having else f"rows in which task {task!r} has one of labels 0 and 1 alone, or none"
    if missing:
        raise ValueError(f"[training] monitor must be a metric of the validation rows, got {monitor!r} of {missing}")


def build_towers(config: Config, width: int) -> RankerBase:
    """The towers of a configuration.

    Raises:
        ValueError: settings that the method lacks.
    """
    towers, tasks = config.towers, config.tasks
    one_of("[towers] method", towers.method, METHODS)
    one_of("[towers] norm", towers.norm, ("batch", "none"))
    optional = {
        name: getattr(towers, name) for name in ("feature_residual", "logit_residual", "experts", "tower_layers")
    }
    given = {name: value for name, value in optional.items() if value is not None}
    for name in ("feature_residual", "logit_residual"):
        if name in given and towers.method != "resflow":
            raise ValueError(f"[towers] {name} must be left out for any method but 'resflow', got {towers.method!r}")
    same = ("activation", "norm_after_activation", "norm_eps", "input_norm")
    try:
        return make_ranker(
            towers.method,
            width,
            towers.hidden,
            tasks.names,
            config.parents,
            norm=None if towers.norm == "none" else towers.norm,
            non_increasing=towers.non_increasing,
            fusion=config.score_fusion(),
            **{name: getattr(towers, name) for name in same},
            **given,
        )
    except ValueError as error:
        raise ValueError(f"[towers]: {error}") from None


def build_model(config: Config, features: FeatureSet) -> FeatureModel:
    """A new model whose initial weights are drawn with the configuration's seed."""
    torch.manual_seed(config.training.seed)
    embeddings = feature_embeddings(features)
    towers = build_towers(config, features.user_width + features.item_width)
    return FeatureModel(features, towers, config.training.dropout, embeddings).to(device_of(config))


def device_of(config: Config) -> torch.device:
    """The device of this rank."""
    if config.training.device == "cpu":
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def checkpoint_of(config: Config) -> Checkpoint | None:
    """The checkpoint of the run, if the configuration has one."""
    output = config.output
    if output.checkpoint is None:
        return None
    return Checkpoint(Path(output.checkpoint, CHECKPOINT), output.checkpoint_every, config.identity())


def train(
    config: Config,
    sources: Sources,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Trained:
    """Train, test, and write the model; resumes the run of the checkpoint if there is one.

    Raises:
        ValueError: as :func:`~resflow_kernels.training.loop.fit`, or labels that are not 0 or 1.
        OSError: a file cannot be written.
    """
    model = build_model(config, sources.features)
    history = fit(
        model,
        sources.train.shuffled,
        loss_of(config, any(sources.labels["train"].unobserved)),
        lambda trained: metrics(trained, sources.valid),
        config.training.fit_settings(),
        on_progress=on_progress,
        checkpoint=checkpoint_of(config),
        stop=stop,
    )
    if history.interrupted or ranks.rank() != 0:
        return Trained(history, None, ())
    model.eval()
    with torch.no_grad():
        tested = None if sources.test is None else metrics(model, sources.test)
    return Trained(history, tested, write(config, model))


def loss_of(config: Config, is_masked: bool = False) -> Callable[[Tensor, Tensor], Tensor]:
    """The weighted sum of the tasks' losses, plus AITM's calibrator if configured.

    With ``is_masked`` labels may be NaN; a task's loss is then the mean over its observed labels.
    """
    tasks, parents = config.tasks, config.parents

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        mask = ~labels.isnan() if is_masked else None
        total = multitask_bce(logits, labels, tasks.positive_weights, tasks.weights, mask)
        return total + tasks.calibrator * calibrator_loss(logits, parents) if tasks.calibrator else total

    return loss


def metrics(model: nn.Module, source: Source) -> dict[str, float]:
    """AUC and log loss of each task on its observed labels, and their means, of a model in eval mode.

    NaN where there is none: an AUC needs labels of both kinds, a log loss one label. Means are of the tasks that have.
    """
    device = next(model.parameters()).device
    logits, labels = [], []
    for batch in source.in_order():
        ids = FeatureIds(*(tensor.to(device) for tensor in batch.inputs))
        logits.append(model(ids).logits.float().cpu())
        labels.append(batch.labels)
    names = source.config.tasks.names
    values = torch.cat(logits) if logits else torch.zeros(0, len(names))
    truth = torch.cat(labels) if labels else values
    found: dict[str, float] = {}
    for at, name in enumerate(names):
        seen = ~truth[:, at].isnan()
        own, right = values[seen, at], truth[seen, at]
        both = right.unique().numel() == 2
        found[f"auc.{name}"] = float(binary_auroc(own.sigmoid(), right.long())) if both else math.nan
        losses = F.binary_cross_entropy_with_logits(own.double(), right.double(), reduction="none")
        found[f"log_loss.{name}"] = float(losses.mean()) if len(losses) else math.nan
    auc, log_loss = (_mean(found[f"{kind}.{name}"] for name in names) for kind in ("auc", "log_loss"))
    return {**found, "auc": auc, "log_loss": log_loss, "-log_loss": -log_loss}


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def write(config: Config, model: FeatureModel) -> tuple[str, ...]:
    """Write the files that ``[output]`` names."""
    output = config.output
    if output.bundle is not None:
        assert isinstance(model.towers, FusedRanker)
        save_model(_in_folder(output.bundle), model.towers, model.features, model.tables())
    if output.weights is not None:
        with atomic_path(_in_folder(output.weights)) as temporary:
            content = {"format": "resflow-state-dict", "version": 1, "config": config.to_json()}
            save_file(separate(model.state_dict()), temporary, metadata={METADATA_KEY: json.dumps(content)})
    return tuple(path for path in (output.bundle, output.weights) if path is not None)


def prepare_folders(config: Config) -> None:
    """Create the folders of the output files."""
    for path in (config.output.bundle, config.output.weights):
        if path is not None:
            _in_folder(path)
    if config.output.checkpoint is not None:
        Path(config.output.checkpoint).mkdir(parents=True, exist_ok=True)


def _in_folder(path: str) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return path
