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
from examples.kuairand.ranker import Ranker, encode, encode_rows
from examples.kuairand.train import train
from resflow_kernels import Additive
from resflow_kernels.cli import build_app
from resflow_kernels.runtime import Scorer


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
    ranker = Ranker(features, 0.0, Additive((1, 1, 1))).eval()
    some = data.test.table.slice(100, 50)
    with torch.no_grad():
        rows = ranker.embed(encode_rows(features.all, some)).numpy()
    encoded = features.encode_user(some) | features.encode_item(some)
    np.testing.assert_allclose(rows, features.embed(encoded, ranker.tables()), atol=1e-6)
    days = encode(features, prepare.Impressions(some, data.test.labels[100:150]))
    probs = ranker.probabilities(days, batch=16)
    assert (probs[:, 1:] <= probs[:, :-1]).all()


def test_from_training_to_ranked_users(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(train)
    bundle = tmp_path / "ranker.safetensors"
    trained = CliRunner().invoke(app, ["-o", str(bundle), "--epochs", "1", "--users", "5"])
    assert trained.exit_code == 0, trained.output
    assert "test" in trained.output and "kept epoch 1" in trained.output

    scores = tmp_path / "scores.parquet"
    files = [str(bundle), str(tmp_path / "requests.parquet"), "-o", str(scores)]
    catalogue = ["--catalogue", str(tmp_path / "videos.parquet"), "--labels", str(tmp_path / "labels.parquet")]
    scored = CliRunner().invoke(build_app(), ["score", *files, *catalogue, "--top-k", "100"])
    assert scored.exit_code == 0, scored.output
    assert "Weighted Recall@100" in scored.output
    ranking = pq.read_table(scores)
    assert ranking.num_rows == 500

    scorer = Scorer.load(bundle)
    user = scorer.embed_users(pq.read_table(tmp_path / "requests.parquet").slice(2, 1))
    item = scorer.embed_items(pq.read_table(tmp_path / "videos.parquet"))
    best = scorer.top_k_requests(user, item, [0, len(item)], 100)
    assert ranking["position"].to_pylist()[200:300] == best.positions[0].tolist()
