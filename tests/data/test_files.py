"""Files as other programs write them: every format, type and name that stands for the same rows reads as the same."""

from __future__ import annotations

import datetime
import decimal
import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resflow_kernels.data import plain
from resflow_kernels.data.files import CsvSettings, Files
from resflow_kernels.data.text import KINDS, TypeOfText

ROWS = {"id": [3, None, 7], "name": ["DE", "NA", None], "tags": [[1, 2], [], [5]], "share": [0.5, None, 2.0]}


def written(path: Path, **columns: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return str(path)


def read(paths: Any, columns: list[str], **options: Any) -> dict[str, list[Any]]:
    names = [str(path) for path in (paths if isinstance(paths, list) else [paths])]
    result: dict[str, list[Any]] = pa.concat_tables(Files(names, columns, **options).tables()).to_pydict()
    return result


TYPES: dict[str, dict[str, pa.Array]] = {
    "small": {"id": pa.array(ROWS["id"], pa.int16()), "tags": pa.array(ROWS["tags"], pa.list_(pa.uint8()))},
    "views": {
        "name": pa.array(ROWS["name"], pa.string_view()),
        "tags": pa.array(ROWS["tags"], pa.large_list(pa.int32())),
    },
    "dictionaries": {
        "name": pa.array(ROWS["name"]).dictionary_encode(),
        "id": pa.array(ROWS["id"]).dictionary_encode(),
    },
    "decimals": {
        "id": pa.array([None if x is None else decimal.Decimal(x) for x in ROWS["id"]], pa.decimal128(18, 0)),
        "share": pa.array([None if x is None else decimal.Decimal(str(x)) for x in ROWS["share"]], pa.decimal128(9, 2)),
    },
    "bytes": {"name": pa.array(ROWS["name"]).cast(pa.binary()), "share": pa.array(ROWS["share"], pa.float32())},
}


@pytest.mark.parametrize("writer", TYPES)
def test_types_of_other_writers_hold_the_same_values(writer: str, tmp_path: Path) -> None:
    got = read(written(tmp_path / "a.parquet", **TYPES[writer]), list(TYPES[writer]))
    assert got == {name: ROWS[name] for name in TYPES[writer]}


def test_tensors_and_lists_of_one_length_are_lists(tmp_path: Path) -> None:
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(6).reshape(3, 2))
    fixed = pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int64(), 2))
    got = read(written(tmp_path / "a.parquet", tensor=tensor, fixed=fixed), ["tensor", "fixed"])
    assert got == {"tensor": [[0, 1], [2, 3], [4, 5]], "fixed": [[1, 2], [], [3, 4]]}


def test_dates_are_text_and_structures_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", day=[datetime.date(2024, 5, 1)], deep=[{"x": 1}])
    assert read(path, ["day"]) == {"day": ["2024-05-01"]}
    with pytest.raises(
        ValueError, match=r"a.parquet: column 'deep' must be numbers, text, or lists of these, got struct"
    ):
        Files([path], ["deep"])


def test_types_widen_from_file_to_file(tmp_path: Path) -> None:
    paths = [
        written(tmp_path / "a.parquet", x=pa.array([None], pa.null()), y=pa.array([1], pa.int8()), z=[[None]]),
        written(tmp_path / "b.parquet", x=["u"], y=pa.array([2**40], pa.int64()), z=[[4]]),
        written(tmp_path / "c.parquet", x=["v"], y=[1.5], z=[[]]),
    ]
    assert read(paths, ["x", "y", "z"]) == {"x": [None, "u", "v"], "y": [1, 2**40, 1.5], "z": [[None], [4], []]}


def test_a_file_with_another_schema_is_named(tmp_path: Path) -> None:
    first, second = written(tmp_path / "a.parquet", x=[1], y=[1]), written(tmp_path / "b.parquet", x=["1"])
    with pytest.raises(ValueError, match=r"b.parquet: column 'x' must be int64 as in .*a.parquet, got string"):
        Files([first, second], ["x"])
    with pytest.raises(ValueError, match=r"b.parquet: column 'y' must be in the file, got columns x"):
        Files([first, second], ["y"])
    (tmp_path / "c.parquet").write_text("no Parquet")
    with pytest.raises(ValueError, match=r"c.parquet: must be a readable Parquet file"):
        Files([first, str(tmp_path / "c.parquet")], ["x"])


def test_bad_text_and_numbers_beyond_int64_name_the_file(tmp_path: Path) -> None:
    broken = pa.array([b"\xff"]).view(pa.binary())
    path = written(tmp_path / "a.parquet", text=broken, big=pa.array([2**63], pa.uint64()))
    with pytest.raises(ValueError, match=r"a.parquet: column 'text' must be UTF-8 text"):
        list(Files([path], ["text"]).tables())
    with pytest.raises(ValueError, match=r"a.parquet: column 'big' must be integers that fit int64"):
        list(Files([path], ["big"]).tables())


def test_folders_patterns_and_partitions(tmp_path: Path) -> None:
    for region, rows in (("north", [1]), ("south", [2, 3])):
        written(tmp_path / f"log/region={region}/part-0.parquet", x=rows)
    (tmp_path / "log/_SUCCESS").write_text("")
    (tmp_path / "log/region=north/.part-0.parquet.crc").write_text("?")
    want = {"x": [1, 2, 3], "region": ["north", "south", "south"]}
    for path in ("log", "log/*", "log/**/*.parquet", "log/region=*"):
        assert read(tmp_path / path, ["x", "region"]) == want, path
    odd = written(tmp_path / "a[1].parquet", x=[9])
    assert read(odd, ["x"]) == {"x": [9]}
    files = Files([str(tmp_path / "log"), str(tmp_path / "log/region=north"), odd, odd], ["x"])
    assert len(files) == 4 and files.repeated == 2
    with pytest.raises(ValueError, match="must be a file, a folder or a pattern of files, got no file"):
        Files([str(tmp_path / "none-*")], ["x"])


CSV = "id,name,agent,share,flag,tags\n3,NA,007,0.5,true,1|2\nNA,DE,8,nan,False,\n7,,x,2,,5\n"
CSV_ROWS = {
    "id": [3, None, 7],
    "name": ["NA", "DE", None],
    "agent": ["007", "8", "x"],
    "share": [0.5, None, 2.0],
    "flag": [True, False, None],
    "tags": [[1, 2], [], [5]],
}


def test_csv_types_follow_from_all_values(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(CSV)
    (tmp_path / "b.tsv").write_text(CSV.replace(",", "\t"))
    (tmp_path / "c.csv.gz").write_bytes(gzip.compress(CSV.encode()))
    (tmp_path / "d.csv").write_text("\n".join(CSV.splitlines()[1:]))
    names = list(CSV_ROWS)
    lists = CsvSettings(lists=["tags"])
    for name in ("a.csv", "b.tsv", "c.csv.gz"):
        assert read(tmp_path / name, names, csv=lists) == CSV_ROWS, name
    assert read(tmp_path / "d.csv", names, csv=CsvSettings(names=names, lists=["tags"])) == CSV_ROWS
    (tmp_path / "e.csv").write_text('id,name,tags\n"3","",""\n"",x,"1|2"\n')
    quoted = {"id": [3, None], "name": ["", "x"], "tags": [[], [1, 2]]}
    assert read(tmp_path / "e.csv", ["id", "name", "tags"], csv=lists) == quoted
    declared = CsvSettings(types={"id": "text", "tags": "text"}, lists=["tags"])
    got = read(tmp_path / "a.csv", ["id", "tags"], csv=declared)
    assert got == {"id": ["3", "NA", "7"], "tags": [["1", "2"], [], ["5"]]}
    with pytest.raises(ValueError, match=r"a.csv: column 'name' must be of kind integer"):
        read(tmp_path / "a.csv", ["name"], csv=CsvSettings(types={"name": "integer"}))
    with pytest.raises(ValueError, match="the type of 'id' must be one of text, integer, number, boolean, got 'int'"):
        Files([str(tmp_path / "a.csv")], ["id"], csv=CsvSettings(types={"id": "int"}))


def test_a_late_value_decides_a_csv_columns_type(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x\n" + "1\n" * 400_000 + "guest\n")
    got = read(tmp_path / "a.csv", ["x"])["x"]
    assert got[0] == "1" and got[-1] == "guest"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.none(), st.integers(-(2**80), 2**80), st.floats(allow_nan=False, allow_infinity=False))))
def test_numbers_survive_csv(values: list[Any]) -> None:
    """A column is read as numbers only where no digit of an integer is lost, else as its text."""
    texts = pa.chunked_array([pa.array([None if v is None else str(v) for v in values], pa.large_string())])
    learner = TypeOfText()
    learner.add(texts)
    if learner.kind == "integer":
        assert all(v is None or (isinstance(v, int) and abs(v) < 2**63) for v in values)
    if learner.kind == "number":
        assert all(v is None or isinstance(v, float) or abs(v) < 2**53 for v in values)
    assert learner.kind in KINDS


def test_plain_types_join() -> None:
    numbers = [pa.bool_(), pa.int64(), pa.float64()]
    assert plain.joined_type(pa.null(), pa.large_string()) == pa.large_string()
    assert [plain.joined_type(a, pa.int64()) for a in numbers] == [pa.int64(), pa.int64(), pa.float64()]
    assert plain.joined_type(pa.large_string(), pa.int64()) is None
    assert plain.joined_type(pa.large_list(pa.null()), pa.large_list(pa.int64())) == pa.large_list(pa.int64())
