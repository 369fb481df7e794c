"""Streams of files: every row exactly once, in an order that seed and epoch alone decide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resflow_kernels.data.files import CsvSettings
from resflow_kernels.training.stream import Records, in_batches

ROWS = 1000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``a.parquet`` (row groups of 90), ``b.parquet`` (one of 300), ``empty.parquet``, ``x.csv``, ``y.csv``."""
    folder = tmp_path_factory.mktemp("stream")
    table = pa.table({"row": np.arange(ROWS), "tags": [[i % 3, i % 5] for i in range(ROWS)], "unused": ["x"] * ROWS})
    pq.write_table(table.slice(0, 700), folder / "a.parquet", row_group_size=90)
    pq.write_table(table.slice(700), folder / "b.parquet")
    pq.write_table(table.slice(0, 0), folder / "empty.parquet")
    text = pa.table(
        {"row": table["row"], "tags": ["|".join(map(str, tags)) or None for tags in table["tags"].to_pylist()]}
    )
    pa.csv.write_csv(text.slice(0, 400), folder / "x.csv")
    pa.csv.write_csv(text.slice(400), folder / "y.csv")
    return folder


def rows(tables: Any) -> list[int]:
    return [row for table in tables for row in table["row"].to_pylist()]


@pytest.mark.parametrize("pattern", ["*.parquet", "*.csv"])
@pytest.mark.parametrize("buffer", [1, 64, 10**6])
def test_every_row_once_whatever_the_buffer(folder: Path, pattern: str, buffer: int) -> None:
    records = Records([str(folder / pattern)], ["row", "tags"], csv=CsvSettings(lists=["tags"]))
    assert len(records) == ROWS and rows(records.tables()) == list(range(ROWS))
    tables = list(records.shuffled(batch=16, seed=3, epoch=1, buffer=buffer))
    drawn = rows(tables)
    assert drawn != sorted(drawn) and sorted(drawn) == list(range(ROWS))
    assert all(table.num_rows % 16 == 0 for table in tables[:-1])
    first = tables[0]["tags"][0].as_py()
    assert [int(tag) for tag in first] == [drawn[0] % 3, drawn[0] % 5]


def test_seed_and_epoch_decide_the_order(folder: Path) -> None:
    records = Records([str(folder / "a.parquet"), str(folder / "b.parquet")], ["row"])

    def order(seed: int, epoch: int) -> list[int]:
        return rows(records.shuffled(16, seed, epoch, buffer=100))

    assert order(1, 1) == order(1, 1)
    assert len({tuple(order(seed, epoch)) for seed, epoch in ((1, 1), (1, 2), (2, 1))}) == 3


@pytest.mark.parametrize("ranks", [2, 3, 9])
def test_ranks_share_the_rows(folder: Path, ranks: int) -> None:
    records = Records([str(folder / "*.parquet")], ["row"])
    own = [rows(records.shuffled(8, 0, 1, rank, ranks)) for rank in range(ranks)]
    assert sorted(row for part in own for row in part) == list(range(ROWS)) and min(map(len, own)) > 0


def test_more_ranks_than_pieces_are_refused(folder: Path) -> None:
    records = Records([str(folder / "*.csv")], ["row"])
    with pytest.raises(ValueError, match=r"at least 3 row groups \(or CSV files\), one per rank, got 2"):
        next(records.shuffled(8, 0, 1, 0, 3))


@settings(max_examples=60)
@given(st.integers(0, 50), st.integers(2, 20))
def test_batches_cover_the_rows_and_none_is_of_one(count: int, batch: int) -> None:
    spans = list(in_batches(count, batch))
    assert [row for start, stop in spans for row in range(start, stop)] == list(range(count))
    assert all(stop - start in (batch, batch + 1) for start, stop in spans[:-1])
    assert count == 1 or all(stop - start > 1 for start, stop in spans)


@pytest.mark.parametrize(
    ("paths", "options", "text"),
    [
        (["none-*.parquet"], {}, "must be a file, a folder or a pattern of files, got no file"),
        (["a.parquet", "x.csv"], {}, "must end in one of .parquet, .pq, .csv, .tsv, all alike"),
        (["a.parquet"], {"format": "orc"}, "format must be one of parquet, csv, got 'orc'"),
        (["a.parquet"], {"columns": ["raw"]}, "column 'raw' must be in the file, got columns row, tags, unused"),
    ],
)
def test_bad_input_is_named(folder: Path, paths: list[str], options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Records([str(folder / path) for path in paths], options.pop("columns", ["row"]), **options)
