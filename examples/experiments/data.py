"""Candidates as tensors: rows of the embedding tables, and labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from resflow_kernels.data.features import FeatureSet
from resflow_kernels.training.loop import Batch
from resflow_kernels.training.ranker import encode_rows

# Candidates scored at once: a batch then fits a processor's caches and a few hundred megabytes of memory.
SCORED_AT_ONCE = 8192


@dataclass(frozen=True)
class Encoded:
    """Candidates to train on or to score.

    Args:
        rows: by feature int64 ``[n]``, or ``[n, longest]`` for lists of ids.
        labels: ``[n, K]`` float32.
    """

    rows: dict[str, Tensor]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, chosen: Tensor | slice) -> Batch:
        """Some of the candidates, as a batch."""
        return Batch({name: rows[chosen] for name, rows in self.rows.items()}, self.labels[chosen])

    def with_labels(self, labels: ArrayLike) -> Encoded:
        """The same candidates with other labels ``[n, K]``."""
        return Encoded(self.rows, torch.as_tensor(np.asarray(labels, np.float32)))

    def shuffled(self, size: int, generator: torch.Generator) -> Iterator[Batch]:
        """The batches of an epoch."""
        for part in torch.randperm(len(self), generator=generator).split(size):
            yield self.batch(part)

    def scored_at_once(self, size: int = SCORED_AT_ONCE) -> Iterator[dict[str, Tensor]]:
        """The candidates' rows in order, ``size`` at a time."""
        for start in range(0, len(self), size):
            yield self.batch(slice(start, start + size)).inputs


@dataclass(frozen=True)
class Split:
    """Fitted features, and candidates to train on, to choose settings by, and to report on."""

    features: FeatureSet
    train: Encoded
    valid: Encoded
    test: Encoded


def encode(features: FeatureSet, table: pa.Table, labels: ArrayLike) -> Encoded:
    """A table's candidates with their labels ``[n, K]``."""
    return Encoded(encode_rows(features.all, table), torch.as_tensor(np.asarray(labels, np.float32)))


def epochs_of(data: Encoded, size: int, seed: int) -> Callable[[int], Iterable[Batch]]:
    """Batches of an epoch by its number, in an order that depends only on the seed and that number."""

    def batches(epoch: int) -> Iterator[Batch]:
        shuffled = data.shuffled(size, torch.Generator().manual_seed(seed * 1_000 + epoch))
        return (batch for batch in shuffled if len(batch.labels) > 1)  # BatchNorm cannot train on one row

    return batches
