"""Scorer against the float64 reference, its guarantees, its error texts, and that torch stays out."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from resflow_kernels.core.fusion import Additive, ExpectedValue, Fusion, Multiplicative
from resflow_kernels.core.plan import Plan
from resflow_kernels.data.features import Feature, FeatureSet
from resflow_kernels.serving import bundle, scorer

pytest.importorskip("resflow_kernels._runtime", reason="the compiled library is not built")
Scorer = scorer.Scorer

PLANS = {
    "chain": Plan(37, (24, 10), (-1, 0, 1)),
    "tree, affine, silu": Plan(20, (17, 5, 3), (-1, 0, 0, 1), "silu", affine=True, non_increasing=True),
    "roots, no residuals": Plan(6, (4,), (-1, -1), "gelu", feature_residual=False, logit_residual=False),
    "esmm": Plan(16, (16,), (-1, 0), "relu", feature_residual=False, logit_residual=False, head="conditional"),
}
FUSIONS = (Additive(), Multiplicative(), ExpectedValue())


def rows(count: int, width: int, seed: int = 1) -> Any:
    return np.random.default_rng(seed).standard_normal((count, width), dtype=np.float32)


def make(plan: Plan, fusion: Fusion | None = None, threads: int | None = None) -> tuple[Any, list[Any]]:
    rng = np.random.default_rng(0)
    weights = [
        (rng.standard_normal(shape) / np.sqrt(shape[0] if len(shape) > 1 else 4)).astype(np.float32)
        for _, shape in plan.weight_shapes
    ]
    return Scorer(plan, Scorer.pack(plan, weights), fusion, threads=threads), weights


def reference_scores(scorer: Any, weights: list[Any], x: Any, fusion_weights: Any = None, per: str = 0) -> Any:
    """Form 1 in float64."""
    torch = pytest.importorskip("torch")
    from resflow_kernels import reference

    given = scorer.fusion.weights_for(scorer.plan.tasks) if fusion_weights is None else fusion_weights
    doubles = [torch.from_numpy(weight).double() for weight in weights]
    numbers = torch.as_tensor(np.asarray(given), dtype=torch.float64)
    return reference.dense_scores(
        torch.from_numpy(x).double(), doubles, scorer.plan, numbers, scorer.fusion.kind, "candidate" if per else "call"
    )


def assert_close(got: Any, expected: Any) -> None:
    logits, probs, score = (part.numpy() for part in expected)
    assert (np.abs(got.logits - logits) <= 1e-5 * (1 + np.abs(logits))).all()
    assert np.abs(got.probs - probs).max(initial=0) <= 2e-6
    assert (np.abs(got.score - score) <= 1e-5 * (1 + np.abs(score))).all()


@pytest.mark.parametrize("fusion", FUSIONS, ids=lambda fusion: fusion.kind)
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
@pytest.mark.parametrize("count", [0, 1, 131])
def test_scores_are_those_of_the_reference(plan: Plan, fusion: Fusion, count: int) -> None:
    scorer, weights = make(plan, fusion)
    x = rows(count, plan.in_features)
    assert_close(scorer.dense_scores(x), reference_scores(scorer, weights, x))


def test_request_scores_are_those_of_joined_rows() -> None:
    scorer, weights = make(PLANS["chain"], Additive((1, 20, 3)))
    offsets = np.array([0, 5, 5, 40, 41])
    user, item = rows(4, 12), rows(41, 25)
    joined = np.concatenate((user[np.repeat(np.arange(4), np.diff(offsets))], item), axis=1)
    assert_close(scorer.request_scores(user, item, offsets), reference_scores(scorer, weights, joined))
    per_request = np.random.default_rng(3).random((4, 3)).astype(np.float32)
    got = scorer.request_scores(user, item, offsets, per_request, "request")
    spread = per_request[np.repeat(np.arange(4), np.diff(offsets))]
    assert_close(got, reference_scores(scorer, weights, joined, spread, per="request"))


def test_weights_of_the_call() -> None:
    scorer, weights = make(PLANS["chain"])
    x = rows(30, 37)
    assert_close(scorer.dense_scores(x, [1, 20, 5]), reference_scores(scorer, weights, x, [1, 20, 5]))
    prices = np.random.default_rng(3).random((30, 3))
    assert_close(
        scorer.dense_scores(x, prices, "candidate"), reference_scores(scorer, weights, x, prices, per="request")
    )


def test_top_k_is_the_ranking_of_the_scores() -> None:
    scorer, _ = make(PLANS["chain"])
    offsets = np.array([0, 2, 2, 60, 100])
    user, item = rows(4, 12), rows(100, 25)
    item[[10, 11, 12]] = item[9]  # ties
    item[20] = np.nan
    joined = np.concatenate((user[np.repeat(np.arange(4), np.diff(offsets))], item), axis=1)
    for k in (1, 5, 70):
        for best, score in (
            (scorer.dense_topk(joined, k, offsets), scorer.dense_scores(joined).score),
            (scorer.request_topk(user, item, offsets, k), scorer.request_scores(user, item, offsets).score),
        ):
            for request in range(4):
                own = score[offsets[request] : offsets[request + 1]]
                order = np.argsort(-own, kind="stable")[:k]
                assert best.positions[request].tolist() == order.tolist() + [-1] * (k - len(order))
                padded = np.append(own[order], np.full(k - len(order), np.nan, np.float32))
                np.testing.assert_array_equal(best.scores[request], padded)
    assert scorer.dense_topk(joined, 3).positions.shape == (1, 3)


def test_bits_do_not_depend_on_batch_threads_or_strides() -> None:
    scorer, _ = make(PLANS["chain"])
    single = Scorer(scorer.plan, scorer.packed, threads=1)
    x = rows(500, 37)
    whole = scorer.dense_scores(x)
    assert single.dense_scores(x).score.tobytes() == whole.score.tobytes()
    assert scorer.dense_scores(x[100:107]).logits.tobytes() == whole.logits[100:107].tobytes()
    assert scorer.dense_scores(x[::3]).logits.tobytes() == whole.logits[::3].tobytes()
    wide = rows(500, 74)
    wide[:, ::2] = x
    assert scorer.dense_scores(wide[:, ::2]).logits.tobytes() == whole.logits.tobytes()
    assert scorer.dense_scores(np.asfortranarray(x)).logits.tobytes() == whole.logits.tobytes()


def test_many_threads_share_one_scorer() -> None:
    scorer, _ = make(PLANS["chain"])
    batches = [rows(64, 37, seed) for seed in range(24)]
    expected = [scorer.dense_scores(x).score.tobytes() for x in batches]
    with ThreadPoolExecutor(8) as pool:
        assert [got.score.tobytes() for got in pool.map(scorer.dense_scores, batches)] == expected


def test_bundle_with_features(tmp_path: Path) -> None:
    features = FeatureSet(
        (Feature("user", 12, "id", vocabulary=np.array([3, 5])),),
        (Feature("tags", 25, "ids", vocabulary=("a", "b")),),
        "user",
        "item",
    )
    rng = np.random.default_rng(0)
    tables = {f.name: rng.standard_normal((f.rows, f.dim), dtype=np.float32) for f in features.all}
    made, weights = make(PLANS["chain"])
    bundle.save(tmp_path / "m", made.plan, ("a", "b", "c"), weights, Additive((3, 2, 1)), features, tables)
    scorer = Scorer.load(tmp_path / "m", threads=1)
    users = scorer.embed_users(pa.table({"user": [5, 4]}))
    items = scorer.embed_items(pa.table({"tags": [["a", "b"], [], ["x"]]}))
    np.testing.assert_array_equal(users, tables["user"][[2, 0]])
    np.testing.assert_allclose(items[0], tables["tags"][1] + tables["tags"][2], rtol=1e-6)
    assert not items[1].any() and np.array_equal(items[2], tables["tags"][0])
    got = scorer.request_scores(users, items, [0, 2, 3])
    joined = np.concatenate((users[[0, 0, 1]], items), axis=1)
    assert_close(got, reference_scores(scorer, weights, joined))
    assert scorer.tasks == ("a", "b", "c") and scorer.threads == 1


def with_features(threads: int | None = None) -> Any:
    """A scorer of the chain with two features a side, one of each a list or not."""
    names = tuple("abcde")
    user = (Feature("user", 8, "id", vocabulary=np.arange(9)), Feature("likes", 4, "ids", vocabulary=names))
    tags = Feature("tags", 20, "ids", vocabulary=names, pooling="mean")
    item = (tags, Feature("age", 5, "bucket", boundaries=np.arange(3.0)))
    features, rng = FeatureSet(user, item, "request", "item"), np.random.default_rng(0)
    tables = {f.name: rng.standard_normal((f.rows, f.dim), dtype=np.float32) for f in features.all}
    made, _ = make(PLANS["chain"])
    return Scorer(made.plan, made.packed, features=features, tables=tables, threads=threads)


def feature_columns(count: int, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    lists = [["abcdef"[i] for i in rng.integers(0, 6, rng.integers(0, 4))] for _ in range(count)]
    strings = pa.list_(pa.string())
    likes, tags = pa.array(lists[::-1], strings), pa.array(lists, strings)
    return pa.table({"user": rng.integers(0, 12, count), "likes": likes, "tags": tags, "age": rng.normal(size=count)})


@pytest.mark.parametrize("count", [0, 1, 150])
def test_feature_scores_are_those_of_embedded_rows(count: int) -> None:
    scorer, table = with_features(), feature_columns(count)
    encoded = scorer.features.encode_user(table) | scorer.features.encode_item(table)
    x = np.concatenate((scorer.embed_users(table), scorer.embed_items(table)), axis=1)
    for got, expected in zip(scorer.feature_scores(encoded), scorer.dense_scores(x), strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-6)
    best = scorer.feature_topk(encoded, 3)
    np.testing.assert_array_equal(best.positions, scorer.dense_topk(x, 3).positions)
    assert with_features(1).feature_scores(encoded).score.tobytes() == scorer.feature_scores(encoded).score.tobytes()


def test_feature_requests_are_those_of_embedded_rows() -> None:
    scorer, users, items = with_features(), feature_columns(4, 1), feature_columns(150, 2)
    offsets = np.array([0, 50, 50, 149, 150])
    encoded = (scorer.features.encode_user(users), scorer.features.encode_item(items), offsets)
    embedded = (scorer.embed_users(users), scorer.embed_items(items), offsets)
    prices = np.random.default_rng(0).random((150, 3))
    got = scorer.feature_request_scores(*encoded, prices, "candidate")
    np.testing.assert_allclose(got.score, scorer.request_scores(*embedded, prices, "candidate").score, atol=1e-5)
    best = scorer.feature_request_topk(*encoded, 4)
    np.testing.assert_array_equal(best.positions, scorer.request_topk(*embedded, 4).positions)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"user": np.array([0, 99])}, r"feature_scores: ids\[1, 0\] must be a row of tables\[0\], 0 to 9, got 99"),
        ({"tags": (np.array([-1]), np.array([0, 1, 1]))}, r"values\[0\] must be a row of tables\[2\], 0 to 5, got -1"),
        ({"user": np.zeros(3, np.int64)}, "columns of one length"),
        ({"tags": np.zeros(2, np.int64)}, "tags must be encoded as values and offsets, got ndarray"),
        ({"other": np.zeros(2, np.int64)}, "encoded must be the features user, likes, tags, age, got .*other"),
    ],
)
def test_bad_encoded_features(change: dict[str, Any], text: str) -> None:
    scorer = with_features()
    table = feature_columns(2).slice(0, 2)
    encoded = scorer.features.encode_user(table) | scorer.features.encode_item(table)
    encoded["likes"] = (np.zeros(0, np.int64), np.zeros(3, np.int64))
    with pytest.raises(ValueError, match=text):
        scorer.feature_scores(encoded | change)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_the_library_takes_tables_of_every_precision(dtype: str) -> None:
    """bfloat16 as its bits; tables and ids at any stride NumPy knows, backwards too."""
    scorer, _ = make(PLANS["chain"])
    rng = np.random.default_rng(0)
    values = rng.standard_normal((20, 37), dtype=np.float32)
    scales = [rng.random(20, dtype=np.float32)] if dtype == "int8" else []
    held = {
        "float32": values,
        "bfloat16": (values.view(np.uint32) >> 16).astype(np.uint16),
        "int8": rng.integers(-127, 128, (20, 37), dtype=np.int8),
    }[dtype]
    wide = {
        "float32": values,
        "bfloat16": (held.astype(np.uint32) << 16).view(np.float32),
        "int8": held.astype(np.float32) * (scales[0][:, None] if scales else 1.0),
    }[dtype]
    ids, none, zero = rng.integers(0, 20, (60, 1)), np.empty(0, np.int64), np.zeros(1, np.int64)
    fusion = (scorer.packed, np.ones(3, np.float32), scorer.plan.encoded, 0, 0)
    expected = scorer.dense_scores(wide[ids[:, 0]])
    backwards, turned = held[::-1].copy()[::-1], ids[::-1].copy()[::-1]
    for table, looked_up in ((held, ids), (backwards, turned)):
        got = scorer._library.feature_scores(looked_up, none, zero, [table], scales, [], *fusion, None, [], [])
        assert got[0].tobytes() == expected.logits.tobytes()


X = rows(4, 37)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda s: s.dense_scores(X.astype(bool)), "dense_scores: x must be float32 or bfloat16, got bool"),
        (lambda s: s.dense_scores(X[:, :5]), r"dense_scores: x must be a matrix with 37 columns, got \[4, 5\]"),
        (lambda s: s.dense_scores(X[0]), r"dense_scores: x must be a matrix with 37 columns, got \[37\]"),
        (lambda s: s.dense_scores(X, [1, 2]), r"fusion_weights must be a vector of 3, got \[2\]"),
        (lambda s: s.dense_scores(X, np.ones((4, 3)), "request"), "weights_per must be one of"),
        (
            lambda s: s.dense_scores(X, [1, 2, 3], "item"),
            "weights_per must be one of call, request, candidate, got 'item'",
        ),
        (lambda s: s.dense_scores(X, None, "item"), "weights_per must be one of"),
        (lambda s: s.dense_topk(X, 0), "dense_topk: k must be at least 1, got 0"),
        (lambda s: s.dense_topk(X, 1.5), "k must be an integer, got 1.5"),
        (lambda s: s.dense_topk(X, 1, [0, 2]), r"offsets\[1\] must be offsets that end at the number of candidates, 4"),
        (
            lambda s: s.dense_topk(X, 1, [0, 3, 2, 4]),
            r"offsets\[2\] must be offsets that do not decrease, got 2 after 3",
        ),
        (lambda s: s.dense_topk(X, 1, [1, 4]), r"offsets\[0\] must be offsets that start at 0"),
        (lambda s: s.dense_topk(X, 1, np.array([0, 4], np.float32)), "offsets must be int64, got float32"),
        (lambda s: s.request_scores(X[:1], X, [0, 4]), "user and item must be matrices of 37 columns in all"),
        (lambda s: s.request_scores(X[:1, :7], X[:, 7:], [0, 2, 4]), r"offsets must be a vector of 2 offsets"),
        (lambda s: s.embed_users(None), "features must be in the bundle"),
        (lambda s: s.embed_items(None), "features must be in the bundle"),
        (lambda s: Scorer(PLANS["esmm"], s.packed), "dense_scores: packed must be"),
        (lambda s: Scorer(s.plan, s.packed[:-64].copy()), "dense_scores: packed must be the .* bytes of weights"),
        (lambda s: Scorer(s.plan, np.zeros_like(s.packed)), "packed must be packed for this plan by pack_towers"),
        (lambda s: Scorer(s.plan, s.packed, Additive((1, 2))), "Additive: weights must be 3 numbers"),
        (lambda s: Scorer(s.plan, s.packed, tasks=("a",)), "Scorer: tasks must be 3 names, got 1"),
        (lambda s: Scorer(s.plan, s.packed, threads=0), "Scorer: threads must be at least 1"),
        (lambda s: Scorer.pack(s.plan, [X]), "pack_towers: weights must be the 24 tensors of this plan, got 1"),
    ],
)
def test_bad_input(call: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call(make(PLANS["chain"])[0])


def run(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)


def test_scoring_imports_no_torch(tmp_path: Path) -> None:
    made, weights = make(PLANS["chain"])
    bundle.save(tmp_path / "m", made.plan, ("a", "b", "c"), weights, Additive())
    run(
        "import sys, numpy as np, resflow_kernels\n"
        "assert not {'torch', 'numpy.testing', 'resflow_kernels._runtime'} & set(sys.modules)\n"
        f"scorer = resflow_kernels.Scorer.load({str(tmp_path / 'm')!r})\n"
        "scorer.dense_topk(np.zeros((3, 37), np.float32), 2)\n"
        "assert 'torch' not in sys.modules"
    )


def test_without_the_library_import_works_and_use_says_how_to_build(tmp_path: Path) -> None:
    run(
        "import sys\n"
        "sys.modules['resflow_kernels._runtime'] = None\n"
        "import resflow_kernels\n"
        "from resflow_kernels import Plan, Scorer\n"
        "try:\n"
        "    Scorer(Plan(4), None)\n"
        "except ImportError as error:\n"
        "    assert 'make build' in str(error) and 'pip install --no-build-isolation .' in str(error)\n"
        "else:\n"
        "    raise SystemExit('no ImportError')"
    )


def test_package_names() -> None:
    import resflow_kernels as package

    assert package.Plan is Plan and package.Scorer is scorer.Scorer and package.bundle is bundle
    assert {"ResFlow", "Scorer", "metrics", "fuse"} <= set(dir(package))
    with pytest.raises(AttributeError, match="has no attribute 'Resflow'"):
        _ = package.Resflow


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int64, np.int32])
@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_of_other_numbers_are_rounded(dtype: Any, order: Any) -> None:
    """A pandas frame gives float64, of columns one after another."""
    scorer, _ = make(PLANS["chain"])
    x = np.asarray(10 * X, dtype, order=order)
    same = np.ascontiguousarray(x, np.float32)
    for ours, theirs in zip(scorer.dense_scores(x), scorer.dense_scores(same), strict=True):
        assert ours.tobytes() == theirs.tobytes()
    offsets = np.array([0, 4], np.int32)
    got = scorer.request_topk(x[:1, :20], x[:, 20:], offsets, 3)
    expected = scorer.request_topk(same[:1, :20], same[:, 20:], offsets.astype(np.int64), 3)
    assert got.scores.tobytes() == expected.scores.tobytes()
