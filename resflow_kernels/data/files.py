"""Rows of files as they are found: names, patterns, folders and partitions; each column of one plain type in all files.

pyarrow.dataset reads them. A *piece* is read as a whole: a row group of a Parquet file, or a CSV file.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.dataset

from . import plain, text

FORMATS = {"parquet": (".parquet", ".pq"), "csv": (".csv", ".tsv")}
BLOCK_ROWS = 1 << 16


@dataclass(frozen=True)
class CsvSettings:
    """How CSV files are read.

    Args:
        separator: between the fields; ``None``: a tab in ``.tsv`` files, else a comma.
        names: of the columns, for files without a line of names.
        types: of columns by name: ``"text"``, ``"integer"``, ``"number"`` or ``"boolean"`` (of a list's elements);
            those of other columns follow from all of their values.
        lists: columns of lists, which are split at ``list_separator``.
        list_separator: the text between a list's elements.
    """

    separator: str | None = None
    names: Sequence[str] | None = None
    types: Mapping[str, str] = field(default_factory=dict)
    lists: Sequence[str] = ()
    list_separator: str = "|"


class Piece(NamedTuple):
    """A part of a file that is read as a whole."""

    file: str
    fragment: Any
    rows: int
    keys: dict[str, Any]  # values of the folders' partition columns


class Files:
    """The rows of some files.

    Args:
        paths: files, patterns (``**`` for any folders) or folders, which are read whole; names that begin with ``_`` or
            ``.`` in them are left out, and ``key=value`` in their names is a column.
        columns: the columns to read.
        format: ``"parquet"`` or ``"csv"``; ``None``: by the names' endings (also before ``.gz`` and the like).
        csv: how CSV files are read.

    Raises:
        ValueError: no such file, files of another format, a column that a file lacks or has in another type than the
            files before; the message names the file and the column.
    """

    def __init__(
        self,
        paths: Sequence[str],
        columns: Sequence[str],
        format: str | None = None,
        csv: CsvSettings | None = None,
    ) -> None:
        csv = CsvSettings() if csv is None else csv
        self.names, self.repeated = find(paths)
        self.columns = list(dict.fromkeys(columns))
        self._kind = _format(self.names) if format is None else format
        if self._kind not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {self._kind!r}")
        self._csv = csv
        for column, kind in csv.types.items():
            if kind not in text.KINDS:
                raise ValueError(f"the type of {column!r} must be one of {', '.join(text.KINDS)}, got {kind!r}")
        self._types: dict[str, pa.DataType] = {}
        self._text = dict(csv.types)
        self.pieces = [piece for piece in self._pieces() if piece.rows > 0]
        if self._kind == "csv":
            self._infer()

    def read(self, piece: Piece) -> Iterator[pa.Table]:
        """A piece's rows in blocks, with the columns of :attr:`columns` in plain types.

        Raises:
            ValueError: the file cannot be read, or holds what the column's type does not; the message names both.
        """
        for block in self._raw(piece):
            try:
                yield pa.table({name: self._converted(name, block) for name in self.columns})
            except ValueError as error:
                raise ValueError(f"{piece.file}: {error}") from None

    def tables(self) -> Iterator[pa.Table]:
        """All rows in the files' order, one block at a time."""
        for piece in self.pieces:
            yield from self.read(piece)

    @property
    def types(self) -> dict[str, pa.DataType]:
        """The columns' types in the tables."""
        if self._kind != "csv":
            return {name: self._types[name] for name in self.columns}
        kinds = {name: text.KINDS[self._text[name]] for name in self.columns}
        return {name: pa.large_list(kind) if name in self._csv.lists else kind for name, kind in kinds.items()}

    def __len__(self) -> int:
        return sum(piece.rows for piece in self.pieces)

    # Opening

    def _pieces(self) -> Iterator[Piece]:
        try:
            source = pa.dataset.dataset(self.names, format=self._dataset_format(), partitioning="hive")
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(self.names[0], self._kind, error) from None
        types: dict[str, tuple[pa.DataType, str]] = {}
        for fragment in source.get_fragments():
            keys = pa.dataset.get_partition_keys(fragment.partition_expression)
            try:
                schema = fragment.physical_schema
                parts = fragment.split_by_row_group() if self._kind == "parquet" else [fragment]
                counts = [self._count(part) for part in parts]
            except (pa.ArrowException, OSError) as error:
                raise _unreadable(fragment.path, self._kind, error) from None
            self._check(fragment.path, schema, keys, types)
            for part, count in zip(parts, counts, strict=True):
                yield Piece(fragment.path, part, count, keys)
        self._types = {name: kind for name, (kind, _) in types.items()}

    def _check(
        self, file: str, schema: pa.Schema, keys: Mapping[str, Any], types: dict[str, tuple[pa.DataType, str]]
    ) -> None:
        """Require all columns, each of a type that fits the files before."""
        for name in self.columns:
            places = schema.get_all_field_indices(name)
            if len(places) == 1:
                raw = schema.field(places[0]).type
            elif not places and name in keys:
                raw = pa.scalar(keys[name]).type
            else:
                raise ValueError(
                    f"{file}: column {name!r} must be in the file{' once' if places else ''}, got columns "
                    f"{', '.join([*schema.names, *keys])}"
                )
            own = plain.type_of(raw)
            if own is None:
                raise ValueError(f"{file}: column {name!r} must be numbers, text, or lists of these, got {raw}")
            before, first = types.setdefault(name, (own, file))
            joined = plain.joined_type(before, own)
            if joined is None:
                raise ValueError(
                    f"{file}: column {name!r} must be {plain.named(before)} as in {first}, got {plain.named(own)}"
                )
            types[name] = (joined, first)

    def _count(self, part: Any) -> int:
        """Rows: from a Parquet file's metadata (``count_rows`` counts those of the whole file), or by reading."""
        return int(part.row_groups[0].num_rows if self._kind == "parquet" else part.count_rows())

    def _dataset_format(self) -> Any:
        if self._kind == "parquet":
            return "parquet"
        csv = self._csv
        suffixes = "".join(Path(self.names[0]).suffixes)
        separator = csv.separator or ("\t" if ".tsv" in suffixes else ",")
        return pa.dataset.CsvFileFormat(
            read_options=pa.csv.ReadOptions(column_names=None if csv.names is None else list(csv.names)),
            parse_options=pa.csv.ParseOptions(delimiter=separator, newlines_in_values=True),
            convert_options=pa.csv.ConvertOptions(
                column_types=dict.fromkeys(self.columns, pa.string()),
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )

    def _infer(self) -> None:
        """The types of text columns that are not given, from all rows."""
        learners = {name: text.TypeOfText() for name in self.columns if name not in self._text}
        for piece in self.pieces if learners else ():
            for block in self._raw(piece):
                for name, learner in learners.items():
                    values = self._column(name, block)
                    if plain.is_text(values.type):
                        learner.add(values)
                    elif plain.is_list(values.type):
                        learner.add(pa.chunked_array([chunk.flatten() for chunk in values.chunks], pa.large_string()))
        self._text |= {name: learner.kind for name, learner in learners.items()}

    # Reading

    def _raw(self, piece: Piece) -> Iterator[pa.Table]:
        """Blocks as they are in the file, with the folders' columns."""
        own = [name for name in self.columns if name in piece.fragment.physical_schema.names]
        scanner = pa.dataset.Scanner.from_fragment(
            piece.fragment, schema=piece.fragment.physical_schema, columns=own, batch_size=BLOCK_ROWS
        )
        try:
            for batch in scanner.to_batches():
                if batch.num_rows:
                    table = pa.Table.from_batches([batch])
                    for name in self.columns:
                        if name not in own:
                            constant = pa.repeat(pa.scalar(piece.keys[name]), batch.num_rows)
                            table = table.append_column(name, constant)
                    yield table
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(piece.file, self._kind, error) from None

    def _column(self, name: str, block: pa.Table) -> pa.ChunkedArray:
        """A column in its plain type; lists in CSV files still of text."""
        values = plain.column(name, block[name])
        if self._kind == "csv" and name in self._csv.lists and plain.is_text(values.type):
            values = pc.if_else(pc.equal(values, ""), pa.scalar(None, values.type), values)  # quotes around no list
            values = plain.column(name, pc.split_pattern(values, self._csv.list_separator))
        return values

    def _converted(self, name: str, block: pa.Table) -> pa.ChunkedArray:
        if self._kind != "csv":
            return plain.column(name, block[name], self._types[name])
        values = self._column(name, block)
        kind = self._text[name]
        if plain.is_text(values.type):
            return text.converted(name, values, kind)
        if not plain.is_list(values.type) or kind == "text":
            return values
        lists = []
        for chunk in values.chunks:
            elements = text.converted(name, pa.chunked_array([chunk.flatten()]), kind).combine_chunks()
            offsets = pa.array(chunk.offsets.to_numpy() - chunk.offsets[0].as_py())
            lists.append(pa.LargeListArray.from_arrays(offsets, elements))
        return pa.chunked_array(lists, pa.large_list(text.KINDS[kind]))


def find(paths: Sequence[str]) -> tuple[list[str], int]:
    """The files of names, patterns and folders, each once, and how many were named again.

    Raises:
        ValueError: a path that names no file.
    """
    found: dict[str, str] = {}
    repeated = 0
    for path in paths:
        names = _files(str(path))
        if not names:
            raise ValueError(f"{path}: must be a file, a folder or a pattern of files, got no file")
        for name in names:
            real = os.path.realpath(name)
            repeated += real in found
            found.setdefault(real, name)
    return list(found.values()), repeated


def _files(path: str) -> list[str]:
    if os.path.exists(path):  # a name may contain brackets
        return _inside(path) if os.path.isdir(path) else [path]
    return [
        file for name in sorted(glob.glob(path, recursive=True)) for file in _files(name) if not _hidden(file, path)
    ]


def _inside(folder: str) -> list[str]:
    """The files in a folder and those below it; names that begin with ``_`` or ``.`` are no data (``_SUCCESS``)."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name[0] not in "_.")
        found += [os.path.join(place, name) for name in sorted(files) if name[0] not in "_."]
    return found


def _hidden(file: str, pattern: str) -> bool:
    """Whether a pattern matched a file that is no data, and did not ask for such."""
    return os.path.basename(file)[0] in "_." and os.path.basename(pattern)[:1] not in ("_", ".")


def _format(files: Sequence[str]) -> str:
    kinds = [_kind_of(file) for file in files]
    if len(set(kinds)) != 1 or kinds[0] is None:
        wrong = next((file for file, kind in zip(files, kinds, strict=True) if kind != kinds[0]), files[0])
        endings = ", ".join(ending for endings in FORMATS.values() for ending in endings)
        raise ValueError(f"{wrong}: files must end in one of {endings}, all alike; or name the format")
    return kinds[0]


def _kind_of(file: str) -> str | None:
    """A file's format by its name, or, as Parquet files often have no ending, by its first bytes."""
    suffixes = Path(file).suffixes
    for kind, endings in FORMATS.items():
        if any(ending in suffixes for ending in endings):
            return kind
    with open(file, "rb") as opened:
        return "parquet" if opened.read(4) == b"PAR1" else None


def _unreadable(file: str, kind: str, error: Exception) -> ValueError:
    return ValueError(f"{file}: must be a readable {'Parquet' if kind == 'parquet' else 'CSV'} file, got {error}")
