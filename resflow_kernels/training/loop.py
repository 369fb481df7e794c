"""The training loop: Adam, early stopping, the best epoch's weights, checkpoints that resume bitwise.

In a process group of several ranks (``torchrun``) :func:`fit` wraps the model in ``DistributedDataParallel``. Ranks may
have different numbers of batches: in each step the ranks sum their numbers of rows, a rank without further batches
takes part with its last batch at weight 0, and every row has the same weight on whichever rank it was read. A BatchNorm
normalises by its own rank's rows, and its running statistics are those of rank 0. Rank 0 evaluates and writes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from itertools import islice
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from . import ranks
from .checkpoint import Checkpoint, CheckpointError, State
from .settings import EpochResult, FitSettings, History, Progress


class Batch(NamedTuple):
    """Some candidates: the model's inputs, and the labels ``[B, K]``."""

    inputs: Any
    labels: Tensor


def fit(
    model: nn.Module,
    batches: Callable[[int], Iterable[Batch]],
    loss: Callable[[Tensor, Tensor], Tensor],
    evaluate: Callable[[nn.Module], Mapping[str, float]],
    settings: FitSettings,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    checkpoint: Checkpoint | None = None,
    stop: Callable[[], bool] | None = None,
) -> History:
    """Train a model; it ends with the weights of the epoch with the best monitored metric.

    Args:
        model: ``model(batch.inputs)`` gives logits ``[B, K]`` or :class:`~resflow_kernels.Scores`. On any device;
            batches are moved to it.
        batches: returns an epoch's batches, given its number from 1. To resume bitwise they must depend only on that
            number.
        loss: mean loss over a batch's rows of logits ``[B, K]`` (float32) and labels; a scalar.
        evaluate: metrics of the model (in eval mode) by name, including ``settings.monitor``.
        settings: optimizer, epochs, early stopping.
        on_progress: called after every step and every epoch.
        checkpoint: where the run is stored, and resumed from if there is one (bitwise on a CPU with the same number of
            threads; the epoch's earlier batches are drawn again and skipped).
        stop: called after every step; ``True`` ends the run, after a checkpoint.

    Returns:
        :class:`History`.

    Raises:
        ValueError: an epoch without batches, a loss or monitored metric that is not finite, a missing metric, a
            checkpoint of another model or of other settings.

    Example:
        >>> fit(model, batches, F.binary_cross_entropy_with_logits, evaluate, FitSettings())  # doctest: +SKIP
    """
    return _Run(model, batches, loss, evaluate, settings, on_progress, checkpoint, stop).run()


class _Run:
    """One call of :func:`fit`."""

    def __init__(
        self,
        model: nn.Module,
        batches: Callable[[int], Iterable[Batch]],
        loss: Callable[[Tensor, Tensor], Tensor],
        evaluate: Callable[[nn.Module], Mapping[str, float]],
        settings: FitSettings,
        on_progress: Callable[[Progress], None] | None,
        checkpoint: Checkpoint | None,
        stop: Callable[[], bool] | None,
    ) -> None:
        self.model, self.batches, self.loss, self.evaluate = model, batches, loss, evaluate
        self.settings, self.on_progress, self.stop = settings, on_progress, stop
        self.checkpoint = None if checkpoint is None else _of_this_run(checkpoint, settings)
        self.device = next(model.parameters()).device
        self.trained = model  # the module whose forward a step calls
        self.optimizer = torch.optim.Adam(_parameter_groups(model, settings))
        self.history = History()
        self.best_weights = _copied(model)
        self.epoch, self.steps, self.rows = 1, 0, 0  # steps and all ranks' rows of this epoch
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)  # over this rank's rows

    def run(self) -> History:
        if self.settings.seed is not None:
            torch.manual_seed(self.settings.seed + ranks.rank())
        random = self._resume()
        if ranks.count() > 1:
            devices = [self.device] if self.device.type == "cuda" else None
            self.trained = DistributedDataParallel(self.model, device_ids=devices)
        try:
            while not self._finished():
                self._train_epoch(random)
                if self.history.interrupted:
                    self._save()
                    return self.history
                random = None
                self._end_epoch()
        finally:
            self.trained = self.model
        self.model.load_state_dict(self.best_weights)
        return self.history

    def _finished(self) -> bool:
        done = len(self.history.epochs)
        return done >= self.settings.epochs or done - self.history.best_epoch >= self.settings.patience

    def _train_epoch(self, random: dict[str, Tensor] | None) -> None:
        """Train an epoch from step ``self.steps`` on; ``random``: the generators' states there if resumed."""
        self.model.train()
        if random is not None and self.steps == 0:
            ranks.set_random_states(self.device, random)
        batches = iter(self.batches(self.epoch))
        spare = list(islice(batches, self.steps * self.settings.accumulate))[-1:]
        groups = _grouped(batches, self.settings.accumulate)
        group = next(groups, [])
        if random is not None and self.steps > 0:
            ranks.set_random_states(self.device, random)
        while True:
            own = sum(len(batch.labels) for batch in group)
            stop, lacking = self.stop is not None and self.stop(), not group and not spare
            total, stopping, without = ranks.added(self.device, own, int(stop), int(lacking))
            if stopping:
                self.history.interrupted = True
                return
            if total == 0:
                break
            if without:
                raise ValueError(f"fit: batches({self.epoch}) must give every rank a batch, got none on {without}")
            spare = group[-1:] or spare
            self._step(group or spare, own, total)
            group = next(groups, [])
            if self.checkpoint is not None and self.checkpoint.every and self.steps % self.checkpoint.every == 0:
                self._save()
        if self.rows == 0:
            raise ValueError(f"fit: batches({self.epoch}) must give at least one row, got none")

    def _step(self, group: list[Batch], own: int, total: int) -> None:
        """One step of Adam. ``own`` of ``total`` rows are this rank's; 0 if it has no batches left."""
        self.optimizer.zero_grad()
        losses = torch.zeros((), device=self.device)
        for at, batch in enumerate(group):
            inputs, labels = moved(batch.inputs, self.device), batch.labels.to(self.device, non_blocking=True)
            rows = len(labels) if own else 0
            with self._exchanging(last=at + 1 == len(group)):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.autocast):
                    given = self.trained(inputs)
                logits = given if isinstance(given, Tensor) else given.logits
                value = self.loss(logits.float(), labels)
                # DistributedDataParallel takes the mean over the ranks, so this multiplies by their number.
                (value * (rows * ranks.count() / total)).backward()
            losses += value.detach() * rows
        if self.settings.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.optimizer.step()
        self.loss_sum += losses
        self.rows += total
        self.steps += 1
        self._tell(Progress(self.epoch, self.steps, total, losses / max(own, 1)))

    def _exchanging(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients are exchanged between ranks once per step, with its last batch."""
        if last or not isinstance(self.trained, DistributedDataParallel):
            return nullcontext()
        return cast(AbstractContextManager[Any], self.trained.no_sync())

    def _end_epoch(self) -> None:
        mean = float(ranks.summed(self.loss_sum)) / self.rows
        if not math.isfinite(mean):
            raise ValueError(f"fit: the training loss must be finite, got {mean} in epoch {self.epoch}")
        metrics = self._evaluated()
        result = EpochResult(self.epoch, mean, metrics)
        self.history.epochs.append(result)
        if metrics[self.settings.monitor] > self.history.best:
            self.history.best, self.history.best_epoch = metrics[self.settings.monitor], self.epoch
            self.best_weights = _copied(self.model)
        self._tell(Progress(self.epoch, self.steps, self.rows, torch.tensor(mean), result))
        self.epoch, self.steps, self.rows = self.epoch + 1, 0, 0
        self.loss_sum.zero_()
        self._save()

    def _evaluated(self) -> Mapping[str, float]:
        """Rank 0's metrics; the other ranks receive only the monitored one."""
        monitor, value = self.settings.monitor, math.nan
        metrics: dict[str, float] = {}
        if ranks.rank() == 0:
            self.model.eval()
            with torch.no_grad():
                metrics = {name: float(metric) for name, metric in self.evaluate(self.model).items()}
            if monitor not in metrics:
                raise ValueError(f"fit: monitor must be one of {', '.join(metrics)}, got {monitor!r}")
            value = metrics[monitor]
        value = ranks.from_first(self.device, value)
        if not math.isfinite(value):
            raise ValueError(f"fit: the monitored {monitor!r} must be finite, got {value} in epoch {self.epoch}")
        return {**metrics, monitor: value}

    def _tell(self, progress: Progress) -> None:
        if self.on_progress is not None:
            self.on_progress(progress)

    def _save(self) -> None:
        if self.checkpoint is None:
            return
        random, loss_sum = ranks.random_states(self.device), float(ranks.summed(self.loss_sum))
        if ranks.rank() != 0:
            return
        progress = {
            "epoch": self.epoch,
            "steps": self.steps,
            "rows": self.rows,
            "loss_sum": loss_sum,
            "best": self.history.best if self.history.epochs else None,
            "best_epoch": self.history.best_epoch,
            "history": [[result.epoch, result.loss, dict(result.metrics)] for result in self.history.epochs],
            "finished": self._finished(),
        }
        optimizer = self.optimizer.state_dict()
        self.checkpoint.save(State(self.model.state_dict(), self.best_weights, optimizer, random, progress))

    def _resume(self) -> dict[str, Tensor] | None:
        """Resume the checkpoint's run, if there is one; the caller sets the returned states of the generators."""
        if self.checkpoint is None or not self.checkpoint.exists():
            return None
        state = self.checkpoint.load()
        progress = state.progress
        try:
            self.model.load_state_dict(state.model)
            self.optimizer.load_state_dict(dict(state.optimizer))
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"{self.checkpoint.path}: must be of this model, got {error}") from None
        self.best_weights = dict(state.best)
        results = [EpochResult(epoch, loss, metrics) for epoch, loss, metrics in progress["history"]]
        best = -math.inf if progress["best"] is None else progress["best"]
        self.history = History(results, progress["best_epoch"], best)
        self.epoch, self.steps, self.rows = progress["epoch"], progress["steps"], progress["rows"]
        self.loss_sum.fill_(progress["loss_sum"] if ranks.rank() == 0 else 0.0)
        return dict(state.random)


def moved(value: Any, device: torch.device) -> Any:
    """A batch's inputs moved to a device: tensors, and dicts, lists, tuples and named tuples of them."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {name: moved(entry, device) for name, entry in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(moved(entry, device) for entry in value))
    if isinstance(value, (list, tuple)):
        return type(value)(moved(entry, device) for entry in value)
    return value


def _grouped(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    while group := list(islice(batches, size)):
        yield group


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def _parameter_groups(model: nn.Module, settings: FitSettings) -> list[dict[str, Any]]:
    """Embedding tables, then all other parameters, each with its own settings."""
    embeddings = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag))
        for parameter in module.parameters()
    }
    rate, decay = settings.embedding_learning_rate, settings.embedding_weight_decay
    tables = {
        "params": [p for p in model.parameters() if id(p) in embeddings and p.requires_grad],
        "lr": settings.learning_rate if rate is None else rate,
        "weight_decay": settings.weight_decay if decay is None else decay,
    }
    others = {
        "params": [p for p in model.parameters() if id(p) not in embeddings and p.requires_grad],
        "lr": settings.learning_rate,
        "weight_decay": settings.weight_decay,
    }
    return [group for group in (tables, others) if group["params"]]


def _of_this_run(checkpoint: Checkpoint, settings: FitSettings) -> Checkpoint:
    """The checkpoint with the settings in its identity; epochs and patience may differ when a run is resumed."""
    fixed = {f.name: getattr(settings, f.name) for f in fields(settings) if f.name not in ("epochs", "patience")}
    return replace(checkpoint, identity={**checkpoint.identity, "settings": fixed})
