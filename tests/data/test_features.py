"""Features: encoding and pooling against plain Python, vocabularies, JSON, error texts."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from resflow_kernels.data import fitting
from resflow_kernels.data.features import Feature, FeatureSet

Tables = dict[str, np.ndarray[Any, np.dtype[np.float32]]]


def sample(rows: int = 300, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)

    def with_nulls(values: list[Any]) -> list[Any]:
        return [None if rng.random() < 0.1 else value for value in values]

    return pa.table(
        {
            "user": pa.array(with_nulls(rng.integers(-20, 20, rows).tolist()), pa.int32()),
            "tab": pa.array(with_nulls([f"tab{i}" for i in rng.integers(0, 9, rows)])),
            "tags": pa.array(with_nulls([rng.integers(0, 9, rng.integers(0, 5)).tolist() for _ in range(rows)])),
            "words": pa.array(with_nulls([[f"w{i}" for i in rng.integers(0, 9, 3)] for _ in range(rows)])),
            "age": pa.array(with_nulls(rng.normal(size=rows).tolist())),
        }
    )


def fitted(min_count: int = 1) -> FeatureSet:
    user = (Feature("user", 3, "id"), Feature("tab", 2, "id"))
    item = (Feature("tags", 4, "ids"), Feature("words", 1, "ids", pooling="mean"), Feature("age", 2, "bucket"))
    return FeatureSet(user, item, "user", "tab").fit(sample(), min_count=min_count, buckets=5)


def random_tables(features: FeatureSet) -> Tables:
    rng = np.random.default_rng(7)
    return {f.name: rng.standard_normal((f.rows, f.dim), dtype=np.float32) for f in features.all}


def plain_row(feature: Feature, value: Any) -> int:
    if feature.kind == "bucket":
        assert feature.boundaries is not None
        return 0 if value is None or np.isnan(value) else 1 + sum(cut <= value for cut in feature.boundaries)
    assert feature.vocabulary is not None
    known = list(feature.vocabulary)
    return known.index(value) + 1 if value is not None and value in known else 0


def plain_embedding(feature: Feature, value: Any, table: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if feature.kind != "ids":
        return np.asarray(table[plain_row(feature, value)])
    pooled = sum((table[plain_row(feature, each)] for each in value or []), start=np.zeros(feature.dim, np.float32))
    return pooled / len(value) if feature.pooling == "mean" and value else pooled


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("min_count", [1, 9])
def test_embedding_agrees_with_plain_python(min_count: int, chunked: bool) -> None:
    features, unseen = fitted(min_count), sample(200, seed=1)
    if chunked:  # slices have an offset within their buffers
        unseen = pa.concat_tables([unseen.slice(0, 3), unseen.slice(3, 0), unseen.slice(3, 150), unseen.slice(153)])
    tables = random_tables(features)
    got = features.embed(features.encode_user(unseen) | features.encode_item(unseen), tables)
    columns = {name: unseen.column(name).to_pylist() for name in unseen.column_names}
    for row in range(unseen.num_rows):
        parts = [plain_embedding(f, columns[f.name][row], tables[f.name]) for f in features.all]
        np.testing.assert_allclose(got[row], np.concatenate(parts), rtol=1e-6, atol=1e-6)
    assert got.shape[1] == features.user_width + features.item_width == 12


def test_a_row_is_the_same_to_the_bit_in_any_batch() -> None:
    features, table = fitted(), sample(9000, seed=2)
    tables = random_tables(features)
    whole = features.embed(features.encode_item(table), tables)
    for row in (0, 1, 4095, 8191, 8192, 8999):
        alone = features.embed(features.encode_item(table.slice(row, 1)), tables)
        assert alone.tobytes() == whole[row : row + 1].tobytes()


def test_min_count_leaves_rare_ids_out() -> None:
    table = pa.table({"a": [5, 5, 5, 2, 2, 9, None, None, None], "b": [["x"], ["x", "y"], ["y"], ["z"], *[[]] * 5]})
    integers = Feature("a", 1, "id").fit(table, min_count=2)
    assert isinstance(integers.vocabulary, np.ndarray) and integers.vocabulary.tolist() == [2, 5]
    assert Feature("b", 1, "ids").fit(table, min_count=2).vocabulary == ("x", "y")
    assert integers.encode(table).tolist() == [2, 2, 2, 1, 1, 0, 0, 0, 0]  # type: ignore[union-attr]


def test_settings_by_feature_and_fitted_features_stay() -> None:
    kept = Feature("user", 3, "id", vocabulary=np.array([1]))
    features = FeatureSet((kept,), (Feature("tab", 2, "id"), Feature("age", 1, "bucket")), "user", "tab")
    fit = features.fit(sample(), min_count={"tab": 10**6}, buckets={"age": 2})
    assert fit.user == (kept,) and fit.item[0].rows == 1 and fit.item[1].rows == 3


def test_bucket_edges_null_and_nan() -> None:
    feature = Feature("age", 1, "bucket", boundaries=np.array([0.0, 1.0]))
    column = pa.table({"age": [-1.0, 0.0, 0.5, 1.0, 9.0, None, float("nan"), float("inf"), -float("inf")]})
    assert feature.encode(column).tolist() == [1, 2, 2, 3, 3, 0, 0, 3, 1]  # type: ignore[union-attr]
    assert feature.rows == 4


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
def test_string_types_are_alike(kind: pa.DataType) -> None:
    feature = Feature("tab", 1, "id", vocabulary=("a", "c"))
    column = pa.chunked_array([pa.array(["c", "b", None], pa.string()).cast(kind), pa.array(["a"]).cast(kind)])
    assert feature.encode(pa.table({"tab": column})).tolist() == [2, 0, 0, 1]  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint16(), pa.int64(), pa.dictionary(pa.int8(), pa.int32())])
def test_integer_types_are_alike(kind: pa.DataType) -> None:
    integers = pa.array([7, 3, None, 5])
    column = integers.dictionary_encode() if pa.types.is_dictionary(kind) else integers.cast(kind)
    feature = Feature("tab", 1, "id", vocabulary=np.array([5, 7]))
    assert feature.encode(pa.table({"tab": column})).tolist() == [2, 0, 0, 1]  # type: ignore[union-attr]


def test_json_and_arrays_bring_the_features_back() -> None:
    features = fitted()
    text = json.dumps(features.to_json())
    arrays = {feature.name: feature.arrays for feature in features.all}
    assert FeatureSet.from_json(json.loads(text), arrays) == features
    assert FeatureSet.from_json(json.loads(text)) != features  # the numeric arrays are not in the JSON
    assert text.count("pooling") == 1  # of the one mean: bundles of sums are read by versions that know no other


def test_a_million_rows_take_well_under_a_second() -> None:
    rng = np.random.default_rng(0)
    ids, names = rng.integers(0, 30_000, 1_000_000), pa.array([f"s{i}" for i in range(300)])
    table = pa.table({"id": ids, "name": names.take(pa.array(ids % 300))})
    features = FeatureSet((Feature("id", 1, "id"),), (Feature("name", 1, "id"),), "id", "name").fit(table)
    began = time.perf_counter()
    features.encode_user(table)
    features.encode_item(table)
    assert time.perf_counter() - began < 2.0  # 0.2 s measured; the rest is for busy machines


def encode(feature: Feature, column: Any, name: str = "a") -> Any:
    return feature.encode(pa.table({name: column}))


INTEGERS = Feature("a", 1, "id", vocabulary=np.array([1, 2]))
LISTS = Feature("a", 1, "ids", vocabulary=("x",))
BUCKETS = Feature("a", 1, "bucket", boundaries=np.array([0.0]))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: encode(INTEGERS, [1], "b"), "column 'a' must be in the table, got columns b"),
        (lambda: encode(INTEGERS, ["x"]), "column 'a' must be integer ids, got string"),
        (lambda: encode(INTEGERS, [4.0, 1.5]), "column 'a' must be ids, whole numbers .*, got 1.5 in row 1"),
        (lambda: encode(INTEGERS, [[1]]), "column 'a' must be integer ids, got list"),
        (lambda: encode(INTEGERS, pa.array([2**64 - 1], pa.uint64())), "column 'a' must be integers that fit int64"),
        (lambda: encode(LISTS, ["x"]), "column 'a' must be lists, got string"),
        (lambda: encode(LISTS, [[1]]), "column 'a' must be lists of string ids, got list"),
        (lambda: encode(BUCKETS, ["x"]), "column 'a' must be numbers, got string"),
        (lambda: encode(Feature("a", 1, "id"), [1]), "must be fitted"),
        (lambda: Feature("a", 0, "id"), "dim must be an integer of at least 1, got 0"),
        (lambda: Feature("", 1, "id"), "name must be a column's name, got ''"),
        (lambda: Feature("a", 1, "float"), "kind must be one of id, ids, bucket, got 'float'"),  # type: ignore[arg-type]
        (lambda: Feature("a", 1, "id", vocabulary=np.array([2, 1])), "vocabulary must be ascending"),
        (lambda: Feature("a", 1, "id", vocabulary=("b", "a")), "vocabulary must be ascending"),
        (
            lambda: Feature("a", 1, "id", vocabulary=np.array([0.5])),
            "vocabulary must be a vector of int64, got float64",
        ),
        (lambda: Feature("a", 1, "bucket", boundaries=np.array([np.nan])), "boundaries must be finite"),
        (lambda: Feature("a", 1, "bucket", vocabulary=("b",)), "vocabulary must be None in a bucket feature"),
        (lambda: Feature("a", 1, "id", boundaries=np.zeros(1)), "boundaries must be None in an id feature"),
        (lambda: FeatureSet((), (INTEGERS,), "r", "i"), "user must be at least one feature"),
        (lambda: FeatureSet((INTEGERS,), (LISTS,), "r", "i"), "of different names, got a twice"),
        (lambda: INTEGERS.fit(pa.table({"a": [1]}), min_count=0), "min_count must be an integer of at least 1, got 0"),
        (lambda: Feature.from_json({"name": "a"}), "JSON must be an object of"),
        (lambda: Feature("a", 1, "ids", pooling="max"), "pooling must be one of sum, mean, got 'max'"),
        (lambda: Feature("a", 1, "id", pooling="mean"), "pooling must be sum in a feature of kind 'id', got 'mean'"),
    ],
)
def test_bad_input(call: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"user": np.array([0, 999])}, "user must be indices of 0 to"),
        ({"user": np.array([0, -1])}, "user must be indices of 0 to"),
        ({"tab": np.zeros(3, np.int64)}, "columns of one length"),
        ({"user": (np.zeros(2, np.int64), np.array([0, 1, 2]))}, "user must be encoded as one index a row"),
        ({"other": np.zeros(2, np.int64)}, "encoded must be this set's features"),
    ],
)
def test_bad_encoded_input(change: dict[str, Any], text: str) -> None:
    features = fitted()
    with pytest.raises(ValueError, match=text):
        features.embed(features.encode_user(sample(2)) | change, random_tables(features))


def test_bad_tables() -> None:
    features = fitted()
    encoded, tables = features.encode_user(sample(2)), random_tables(features)
    for bad in ({}, {**tables, "tab": tables["tab"][:-1]}, {**tables, "tab": tables["tab"].astype(float)}):
        with pytest.raises(ValueError, match=r"table of feature '(user|tab)' must be a float32 array of shape"):
            features.embed(encoded, bad)


@pytest.mark.parametrize("size", [1, 7, 300])
def test_blocks_are_fitted_as_the_whole(size: int) -> None:
    table = sample()
    features = fitted()
    user, item = (
        tuple(replace(f, vocabulary=None, boundaries=None) for f in side) for side in (features.user, features.item)
    )
    bare = FeatureSet(user, item, "user", "tab")
    blocks = (table.slice(at, size) for at in range(0, 300, size))
    assert bare.fit(blocks, min_count=4, buckets=5) == fitted(min_count=4)


def test_quantiles_of_more_numbers_than_the_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "SAMPLE", 4000)
    values = np.random.default_rng(0).random(100_000)
    table = pa.table({"age": values, "item": np.zeros(100_000, np.int64)})
    features = FeatureSet((Feature("age", 1, "bucket"),), (Feature("item", 1, "id"),), "item", "item")

    def cuts(size: int) -> Any:
        return features.fit((table.slice(at, size) for at in range(0, 100_000, size)), buckets=4).user[0].boundaries

    np.testing.assert_allclose(cuts(7000), [0.25, 0.5, 0.75], atol=0.03)
    assert np.array_equal(cuts(7000), cuts(100_000))  # however the rows are cut
    assert not np.array_equal(cuts(7000), features.fit(table, buckets=4).user[0].boundaries)


def test_integers_beyond_int64_are_refused_in_a_fit() -> None:
    with pytest.raises(ValueError, match="column 'a' must be integers that fit int64"):
        Feature("a", 1, "id").fit(pa.table({"a": pa.array([2**64 - 1], pa.uint64())}))
