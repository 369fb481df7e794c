"""The example on its real data: what is prepared, and the whole way from training to ranked users."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import typer
from typer.testing import CliRunner

from examples.kuairand import prepare
from examples.kuairand.ranker import encode, probabilities, ranker
from examples.kuairand.train import train
from resflow_kernels import Additive
from resflow_kernels.cli import build_app
from resflow_kernels.serving.scorer import Scorer
from resflow_kernels.training.ranker import encode_rows
from tests.support.shared import made_once


@pytest.fixture(scope="module")
def data() -> prepare.Slice:
    return prepare.load()


def test_the_split_is_by_date(data: prepare.Slice) -> None:
    assert [len(days) for days in (data.train, data.valid, data.test)] == [150_055, 30_329, 42_485]
    assert data.videos.num_rows == 7583


def test_labels_are_nested_and_as_frequent_as_the_data_says(data: prepare.Slice) -> None:
    labels = np.concatenate([days.labels for days in (data.train, data.valid, data.test)])
    assert (np.diff(labels, axis=1) <= 0).all()
    np.testing.assert_allclose(labels.mean(0), [0.4490, 0.3153, 0.1636], atol=5e-4)


def test_no_feature_is_an_outcome(data: prepare.Slice) -> None:
    outcomes = {"is_click", "long_view", "is_like", "play_time_ms", "profile_stay_time", "comment_stay_time"}
    names = {feature.name for feature in prepare.feature_set(4).all}
    assert not names & outcomes and not set(data.train.table.column_names) & outcomes


def test_requests_are_users_who_finished_something(data: prepare.Slice) -> None:
    users, finishes = prepare.requests(data.test, 40, seed=3)
    assert users.num_rows == 40 and set(users["user_id"].to_pylist()) == set(finishes["user_id"].to_pylist())
    assert min(finishes["weight"].to_pylist()) >= 1
    user = users["user_id"][0].as_py()
    own = data.test.table["user_id"].to_numpy() == user
    finished = sum(
        w for u, w in zip(*(finishes[n].to_pylist() for n in ("user_id", "weight")), strict=True) if u == user
    )
    assert finished == data.test.labels[own][:, 2].sum()
    assert prepare.requests(data.test, 40, seed=3)[0].equals(users)


def test_the_ranker_trains_on_the_rows_that_scoring_embeds(data: prepare.Slice) -> None:
    """Padded lists in PyTorch and ragged lists in NumPy pool to the same row."""
    features = prepare.feature_set(4).fit(data.train.table.slice(0, 5000))
    model = ranker(features, 0.0, Additive((1, 1, 1))).eval()
    some = data.test.table.slice(100, 50)
    with torch.no_grad():
        rows = model.embed(encode_rows(features.all, some)).numpy()
    encoded = features.encode_user(some) | features.encode_item(some)
    np.testing.assert_allclose(rows, features.embed(encoded, model.tables()), atol=1e-6)
    days = encode(features, data.test.part(100, 50))
    probs = probabilities(model, days, size=16)
    assert (probs[:, 1:] <= probs[:, :-1]).all()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of one epoch, with requests, videos, labels and test days beside it."""

    def make(folder: Path) -> None:
        app = typer.Typer()
        app.command()(train)
        options = ["-o", str(folder / "ranker.safetensors"), "--epochs", "1", "--users", "5"]
        result = CliRunner().invoke(app, options)
        assert result.exit_code == 0, result.output
        assert "test" in result.output and "kept epoch 1" in result.output

    return made_once(tmp_path_factory, "kuairand", make) / "ranker.safetensors"


def test_from_training_to_ranked_users(trained: Path, tmp_path: Path) -> None:
    scores, folder = tmp_path / "scores.parquet", trained.parent
    files = [str(trained), str(folder / "requests.parquet"), "-o", str(scores)]
    catalog = ["--catalog", str(folder / "videos.parquet"), "--labels", str(folder / "labels.parquet")]
    scored = CliRunner().invoke(build_app(), ["score", *files, *catalog, "--top-k", "100"])
    assert scored.exit_code == 0, scored.output
    assert "Weighted Recall@100" in scored.output
    ranking = pq.read_table(scores)
    assert ranking.num_rows == 500

    scorer = Scorer.load(trained)
    user = scorer.embed_users(pq.read_table(folder / "requests.parquet").slice(2, 1))
    item = scorer.embed_items(pq.read_table(folder / "videos.parquet"))
    best = scorer.request_topk(user, item, [0, len(item)], 100)
    # The catalog form's float32 differs in the last digits: two near-equal videos may change places.
    ranked = ranking["position"].to_numpy()[200:300]
    assert len(np.intersect1d(ranked, best.positions[0])) >= 99
    assert np.mean(ranked == best.positions[0]) >= 0.9


def test_int8_keeps_every_auc_within_a_thousandth(trained: Path, data: prepare.Slice) -> None:
    """The bound of int8, and bfloat16's of the top 100, on the test days of a trained ranker."""
    from torchmetrics.functional.classification import binary_auroc

    def aucs(scorer: Scorer) -> list[float]:
        x = np.concatenate([scorer.embed_users(data.test.table), scorer.embed_items(data.test.table)], axis=1)
        probs = torch.from_numpy(scorer.dense_scores(x).probs)
        truth = torch.from_numpy(data.test.labels).long()
        return [float(binary_auroc(probs[:, task], truth[:, task])) for task in range(3)]

    exact = aucs(Scorer.load(trained))
    assert min(exact) > 0.65
    for precision in ("bfloat16", "int8"):
        np.testing.assert_allclose(aucs(Scorer.load(trained, precision=precision)), exact, atol=1e-3)


def test_bfloat16_keeps_99_percent_of_each_top_100(trained: Path, data: prepare.Slice) -> None:
    users, _ = prepare.requests(data.test, 32)
    exact, rounded = Scorer.load(trained), Scorer.load(trained, precision="bfloat16")
    item = exact.embed_items(data.videos)
    kept = []
    for row in range(32):
        user = exact.embed_users(users.slice(row, 1))
        best = [scorer.request_topk(user, item, [0, len(item)], 100).positions[0] for scorer in (exact, rounded)]
        kept.append(len(np.intersect1d(*best)))
    assert np.mean(kept) >= 99
