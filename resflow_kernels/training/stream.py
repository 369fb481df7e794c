"""Rows of Parquet and CSV files as a stream: in order, or shuffled and divided among ranks, each row exactly once.

A *piece* is read as a whole: a row group of a Parquet file, or a CSV file. An epoch's order is that of its pieces,
which are drawn anew each epoch, and within it that of a buffer of rows, half of which is drawn and then refilled.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.dataset

FORMATS = ("parquet", "csv")
BLOCK_ROWS = 1 << 16


@dataclass(frozen=True)
class Records:
    """The rows of some files.

    Args:
        paths: files or globs; at least one file must exist.
        columns: the columns to read.
        format: ``"parquet"``, ``"csv"``, or ``None``: by the suffix of the files' names.
        lists: columns of lists in CSV, which has no list type: split at ``separator`` into strings.
        separator: the text between a list's elements.

    Raises:
        ValueError: no such file, files of another format, a column that is missing.

    Example:
        >>> records = Records(["log/*.parquet"], ["user_id", "video_id", "click"])       # doctest: +SKIP
        >>> for table in records.shuffled(batch=4096, seed=0, epoch=1):                   # doctest: +SKIP
        ...     print(table.num_rows)  # a multiple of 4096, but for the last
    """

    paths: Sequence[str]
    columns: Sequence[str]
    format: str | None = None
    lists: Sequence[str] = ()
    separator: str = "|"
    _pieces: list[Any] = field(init=False, repr=False, compare=False)
    _rows: list[int] = field(init=False, repr=False, compare=False)
    _schema: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        files = [file for path in self.paths for file in _files(path)]
        kind = _format(files) if self.format is None else self.format
        if kind not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {kind!r}")
        source = pa.dataset.dataset(files, format=self._csv() if kind == "csv" else kind)
        names = source.schema.names
        for column in self.columns:
            if names.count(column) != 1:
                raise ValueError(f"{files[0]}: column {column!r} must be in the file, got columns {', '.join(names)}")
        pieces = [piece for file in source.get_fragments() for piece in _split(file, kind)]
        rows = [_rows(piece, kind) for piece in pieces]
        object.__setattr__(self, "_pieces", [piece for piece, count in zip(pieces, rows, strict=True) if count])
        object.__setattr__(self, "_rows", [count for count in rows if count])
        object.__setattr__(self, "_schema", source.schema)

    def __len__(self) -> int:
        return sum(self._rows)

    def tables(self) -> Iterator[pa.Table]:
        """All rows in the files' order, one block at a time."""
        for piece in range(len(self._pieces)):
            yield from self._read(piece)

    def shares(self, seed: int, epoch: int, ranks: int = 1) -> list[list[int]]:
        """Each rank's pieces in an epoch, in order: drawn at random, each for the rank with the fewest rows so far.

        Raises:
            ValueError: fewer pieces than ranks.
        """
        if len(self._pieces) < ranks:
            raise ValueError(
                f"data must have at least {ranks} row groups (or CSV files), one per rank, got {len(self._pieces)}: "
                "write it in smaller row groups"
            )
        given: list[list[int]] = [[] for _ in range(ranks)]
        rows = np.zeros(ranks, np.int64)
        for piece in np.random.default_rng([seed, epoch]).permutation(len(self._pieces)).tolist():
            rank = int(np.argmin(rows))  # a rank without rows is first, and no piece is empty: every rank gets one
            given[rank].append(piece)
            rows[rank] += self._rows[piece]
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
            for block in self._read(piece):
                held.append(block)
                while sum(table.num_rows for table in held) >= buffer:
                    mixed = _mixed(held, draws)
                    yield mixed.slice(0, drawn_at_once)
                    held = [mixed.slice(drawn_at_once)]
        if held:
            rest = _mixed(held, draws)
            if rest.num_rows:
                yield rest

    def _read(self, piece: int) -> Iterator[pa.Table]:
        scanner = pa.dataset.Scanner.from_fragment(
            self._pieces[piece], schema=self._schema, columns=list(self.columns), batch_size=BLOCK_ROWS
        )
        for block in scanner.to_batches():
            if block.num_rows:
                yield self._with_lists(pa.Table.from_batches([block]))

    def _with_lists(self, table: pa.Table) -> pa.Table:
        for name in self.lists:
            column = table[name]
            if pa.types.is_string(column.type):
                table = table.set_column(table.column_names.index(name), name, pc.split_pattern(column, self.separator))
        return table

    def _csv(self) -> pa.dataset.CsvFileFormat:
        types = dict.fromkeys(self.lists, pa.string())
        convert = pa.csv.ConvertOptions(column_types=types, strings_can_be_null=True)
        return pa.dataset.CsvFileFormat(convert_options=convert)


def in_batches(rows: int, batch: int) -> Iterator[tuple[int, int]]:
    """``start, stop`` of batches; a single remaining row joins the batch before, as BatchNorm cannot train on one."""
    stops = list(range(batch, rows, batch))
    if stops and rows - stops[-1] == 1:
        stops.pop()
    for start, stop in zip([0, *stops], [*stops, rows], strict=True):
        if stop > start:
            yield start, stop


def _files(path: str) -> list[str]:
    found = sorted(file for file in glob.glob(path, recursive=True) if Path(file).is_file())
    if not found and Path(path).is_file():  # a name that contains brackets
        found = [path]
    if not found:
        raise ValueError(f"{path}: must be a file or match some, got none")
    return found


def _format(files: Sequence[str]) -> str:
    kinds = {kind for kind in FORMATS for file in files if f".{kind}" in "".join(Path(file).suffixes)}
    if len(kinds) != 1:
        raise ValueError(f"{files[0]}: files must end in one of .{', .'.join(FORMATS)}, all alike; or name the format")
    return kinds.pop()


def _split(file: Any, kind: str) -> Sequence[Any]:
    return file.split_by_row_group() if kind == "parquet" else [file]


def _rows(piece: Any, kind: str) -> int:
    """A piece's rows: from a Parquet file's metadata (``count_rows`` counts those of the whole file), or by reading."""
    return int(piece.row_groups[0].num_rows if kind == "parquet" else piece.count_rows())


def _mixed(tables: list[pa.Table], draws: np.random.Generator) -> pa.Table:
    table = pa.concat_tables(tables).combine_chunks()
    return table.take(draws.permutation(table.num_rows))
