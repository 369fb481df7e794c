"""Rows of files as a stream: in order, or shuffled and divided among ranks, each row exactly once.

An epoch's order is that of the files' pieces (:mod:`resflow_kernels.data.files`), which are drawn anew each epoch, and
within it that of a buffer of rows, half of which is drawn and then refilled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from ..data.files import CsvSettings, Files


@dataclass(frozen=True)
class Records:
    """The rows of some files.

    Args:
        paths, columns, format, csv: as for :class:`~resflow_kernels.data.files.Files`.

    Raises:
        ValueError: as :class:`~resflow_kernels.data.files.Files`.

    Example:
        >>> records = Records(["log/*.parquet"], ["user_id", "video_id", "click"])       # doctest: +SKIP
        >>> for table in records.shuffled(batch=4096, seed=0, epoch=1):                   # doctest: +SKIP
        ...     print(table.num_rows)  # a multiple of 4096, but for the last
    """

    paths: Sequence[str]
    columns: Sequence[str]
    format: str | None = None
    csv: CsvSettings | None = None
    files: Files = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "files", Files(self.paths, self.columns, self.format, self.csv))

    def __len__(self) -> int:
        return len(self.files)

    def tables(self) -> Iterator[pa.Table]:
        """All rows in the files' order, one block at a time."""
        return self.files.tables()

    def shares(self, seed: int, epoch: int, ranks: int = 1) -> list[list[int]]:
        """Each rank's pieces in an epoch, in order: drawn at random, each for the rank with the fewest rows so far.

        Raises:
            ValueError: fewer pieces than ranks.
        """
        pieces = self.files.pieces
        if len(pieces) < ranks:
            raise ValueError(
                f"data must have at least {ranks} row groups (or CSV files), one per rank, got {len(pieces)}: "
                "write it in smaller row groups"
            )
        given: list[list[int]] = [[] for _ in range(ranks)]
        rows = np.zeros(ranks, np.int64)
        for piece in np.random.default_rng([seed, epoch]).permutation(len(pieces)).tolist():
            rank = int(np.argmin(rows))  # a rank without rows is first, and no piece is empty: every rank gets one
            given[rank].append(piece)
            rows[rank] += pieces[piece].rows
        return given

    def shuffled(
        self, batch: int, seed: int, epoch: int, rank: int = 0, ranks: int = 1, buffer: int = 1 << 18
    ) -> Iterator[pa.Table]:
        """A rank's rows of an epoch, shuffled, in tables of many batches; the last table has the remainder.

        Args:
            batch: tables except the last have a multiple of this many rows.
            seed, epoch: determine the order.
            rank, ranks: select the share to read.
            buffer: number of rows to draw from, at least two batches.
        """
        draws = np.random.default_rng([seed, epoch, rank])
        buffer = max(buffer, 2 * batch)
        drawn_at_once = max(buffer // 2 // batch, 1) * batch
        held: list[pa.Table] = []
        for piece in self.shares(seed, epoch, ranks)[rank]:
            for block in self.files.read(self.files.pieces[piece]):
                held.append(block)
                while sum(table.num_rows for table in held) >= buffer:
                    mixed = _mixed(held, draws)
                    yield mixed.slice(0, drawn_at_once)
                    held = [mixed.slice(drawn_at_once)]
        if held:
            rest = _mixed(held, draws)
            if rest.num_rows:
                yield rest


def in_batches(rows: int, batch: int) -> Iterator[tuple[int, int]]:
    """``start, stop`` of batches; a single remaining row joins the batch before, as BatchNorm cannot train on one."""
    stops = list(range(batch, rows, batch))
    if stops and rows - stops[-1] == 1:
        stops.pop()
    for start, stop in zip([0, *stops], [*stops, rows], strict=True):
        if stop > start:
            yield start, stop


def _mixed(tables: list[pa.Table], draws: np.random.Generator) -> pa.Table:
    table = pa.concat_tables(tables).combine_chunks()
    return table.take(draws.permutation(table.num_rows))
