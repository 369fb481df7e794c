"""Batch scoring with Ray Data: many files and processes; each loads a bundle once. Needs the ``ray`` extra.

>>> import ray                                                                         # doctest: +SKIP
>>> from resflow_kernels.integrations.ray import score_dataset                         # doctest: +SKIP
>>> scored = score_dataset("ranker.safetensors", ray.data.read_parquet("log/"))        # doctest: +SKIP
>>> scored.write_parquet("scores/")                                                    # doctest: +SKIP
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from ..serving.scorer import Scorer

if TYPE_CHECKING:
    import pyarrow as pa
    import ray.data


class BatchScorer:
    """Scores tables of candidates. Each of Ray's actors runs one; it can also be used without Ray.

    Args:
        bundle: path of a bundle with features.
        keep: columns of the input to keep; ``None``: all.
        precision, threads: as in :meth:`Scorer.load`.

    Raises:
        ValueError: the bundle cannot be read or has no features.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        keep: Sequence[str] | None = None,
        precision: str | None = None,
        threads: int | None = 1,
    ) -> None:
        self.scorer = Scorer.load(bundle, threads, precision)
        if self.scorer.features is None:
            raise ValueError(f"{os.fspath(bundle)}: must be a bundle with features, got one without")
        self.features = self.scorer.features
        self.keep = None if keep is None else list(keep)

    @property
    def new_columns(self) -> tuple[str, ...]:
        """``score``, then ``p_<task>`` for each task."""
        return ("score", *(f"p_{task}" for task in self.scorer.tasks))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a table must have: those of the features and those to keep."""
        return tuple(dict.fromkeys([*(feature.name for feature in self.features.all), *(self.keep or ())]))

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return a table with score and probabilities (float32) appended to its columns.

        Raises:
            ValueError: a column is missing, has the wrong type, or has the name of a new one.
        """
        import pyarrow as pa

        kept = table if self.keep is None else table.select(self.keep)
        self.check(table.column_names)
        encoded = self.features.encode_user(table) | self.features.encode_item(table)
        _, probs, score = self.scorer.feature_scores(encoded)
        values = (score, *np.ascontiguousarray(probs.T))
        for name, column in zip(self.new_columns, values, strict=True):
            kept = kept.append_column(name, pa.array(column))
        return kept

    def check(self, names: Sequence[str]) -> None:
        """Refuse a table with these columns if it cannot be scored."""
        missing = [name for name in self.columns if name not in names]
        if missing:
            raise ValueError(f"dataset must have the column {missing[0]!r}, got {', '.join(names)}")
        twice = [name for name in self.new_columns if name in (names if self.keep is None else self.keep)]
        if twice:
            raise ValueError(f"dataset must not have a column {twice[0]!r} already: leave it out of `keep`")


def score_dataset(
    bundle: str | os.PathLike[str],
    dataset: ray.data.Dataset,
    *,
    keep: Sequence[str] | None = None,
    batch_size: int = 8192,
    concurrency: int | tuple[int, int] = 1,
    precision: str | None = None,
    threads: int = 1,
) -> ray.data.Dataset:
    """Score candidates, one per row, with the fused kernels; each actor loads the bundle once.

    Args:
        bundle: path of a bundle with features, readable where the actors run.
        dataset: a dataset with one column per feature.
        keep: columns of the dataset to keep; ``None``: all.
        batch_size: number of candidates scored at once.
        concurrency: number of actors, or its minimum and maximum.
        precision: of the kernels, as in :meth:`Scorer.load`.
        threads: CPUs and threads of each actor.

    Returns:
        The dataset with the float32 columns ``score`` and ``p_<task>``, not computed yet (Ray Data is lazy). A
        candidate's values are bitwise the same in any batch.

    Raises:
        ImportError: Ray is not installed.
        ValueError: the bundle cannot be read, or the dataset's columns do not fit it.

    Example:
        >>> score_dataset("ranker.safetensors", dataset, concurrency=8)  # doctest: +SKIP
    """
    if find_spec("ray") is None:
        raise ImportError("score_dataset needs Ray, which is not installed: pip install 'ray[data]'")
    settings = (os.path.abspath(bundle), keep, precision, threads)
    BatchScorer(*settings).check(dataset.schema().names)
    return dataset.map_batches(
        BatchScorer,
        fn_constructor_args=settings,
        batch_size=batch_size,
        batch_format="pyarrow",
        concurrency=concurrency,
        num_cpus=threads,
    )
