"""Regression as progressive tasks: targets, thresholds, splits, and the command on a small part of the data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import typer
from typer.testing import CliRunner

from examples.experiments.data import Encoded
from examples.regression import movielens, watch
from examples.regression.compare import Scale, compare, errors, expected_value, middles
from examples.regression.problem import Problem, bucket_means, thresholds_at

APP = typer.Typer()
APP.command()(compare)


def test_watched_shares_are_percent_of_at_most_a_hundred() -> None:
    np.testing.assert_allclose(watch.percent(np.array([0.0, 0.25, 1.0, 58.0])), [0, 25, 100, 100])


def test_the_watch_ladder_is_the_training_days_deciles() -> None:
    problem = watch.load(rows=20_000)
    values = problem.split.train.labels[:, 0].numpy()
    assert values.min() == 0 and values.max() == 100
    # A tenth of the plays is not above the first threshold and so on; equal deciles stand once, the largest is no task.
    below = [(values <= cut).mean() for cut in problem.thresholds]
    assert len(problem.thresholds) == 8 and problem.thresholds[0] == 0 and max(problem.thresholds) < 100
    np.testing.assert_allclose(below[1:], np.arange(0.2, 0.85, 0.1), atol=0.02)
    assert len(problem.values) == 9 and (np.diff(problem.values) > 0).all()
    assert not torch.isnan(problem.split.test.labels).any()


def test_bucket_means_have_the_smallest_squared_error() -> None:
    rng = np.random.default_rng(0)
    values = rng.exponential(20, 5_000)
    cuts = thresholds_at(values, (20, 50, 80))
    means = np.array(bucket_means(values, cuts))
    place = np.searchsorted(cuts, values, side="left")
    best = np.mean((values - means[place]) ** 2)
    for bucket in range(4):
        other = means.copy()
        other[bucket] += 1
        assert np.mean((values - other[place]) ** 2) > best
    with pytest.raises(ValueError, match="thresholds must have a value between each two"):
        bucket_means(values, (-5.0, -1.0))


def test_a_certain_ladder_predicts_its_bucket() -> None:
    logits = torch.tensor([[-30.0, -30.0], [30.0, -30.0], [30.0, 30.0]])
    torch.testing.assert_close(expected_value(logits, (1.0, 5.0, 9.0)), torch.tensor([1.0, 5.0, 9.0]))


def test_plain_predictions_are_scaled_back_and_kept_within_the_range() -> None:
    scale = Scale.of(torch.tensor([[1.0], [3.0], [5.0]]))
    values = torch.tensor([1.0, 2.0, 4.5])
    torch.testing.assert_close(scale.value(scale.standard(values)), values)
    assert scale.value(torch.tensor([-9.0, 9.0])).tolist() == [1.0, 5.0]


def test_errors_and_middles() -> None:
    part = Encoded({}, torch.tensor([[1.0], [3.0]]))
    assert errors(torch.tensor([2.0, 0.0]), part) == {"mse": 5.0, "mae": 2.0}
    problem = watch.load(rows=3_000)
    ladder = Problem(problem.split, (10.0, 50.0), (0.0, 1.0, 2.0))
    assert middles(ladder) == (5.0, 30.0, 75.0)


def test_ratings_are_split_within_each_user() -> None:
    users = np.repeat([3, 1, 2], [100, 25, 7])
    part = movielens.parts(users)
    counts = {user: np.bincount(part[users == user], minlength=3).tolist() for user in (1, 2, 3)}
    assert counts == {3: [80, 10, 10], 1: [21, 2, 2], 2: [7, 0, 0]}
    np.testing.assert_array_equal(part, movielens.parts(users))
    assert (part != movielens.parts(users, seed=1)).any()


@pytest.fixture
def ratings(tmp_path: Path) -> Path:
    """A folder laid out like MovieLens-1M, of made-up ratings."""
    rng = np.random.default_rng(0)
    pairs = [(user, movie) for user in range(1, 41) for movie in rng.permutation(np.arange(1, 61))[:40]]
    user, movie = (np.array(column, np.int16) for column in zip(*pairs, strict=True))
    rating = np.clip(np.round(2 + 2 * (movie % 3) / 2 + rng.normal(0, 0.8, len(user))), 1, 5).astype(np.int8)
    pq.write_table(pa.table({"user_id": user, "movie_id": movie, "rating": rating}), tmp_path / "ratings.parquet")
    people = {"userID": np.arange(1, 41), "gender": ["F", "M"] * 20, "age": [1, 18] * 20, "occupation": ["4"] * 40}
    pq.write_table(pa.table({**people, "zipcode": ["48067"] * 40}), tmp_path / "users.parquet")
    films = {
        "movieID": [str(at) for at in range(1, 61)],
        "title": [f"Film {at} (19{40 + at % 60})" for at in range(60)],
    }
    pq.write_table(pa.table({**films, "genres": ["Action|Drama", "Comedy"] * 30}), tmp_path / "movies.parquet")
    return tmp_path


def test_ratings_are_joined_with_users_and_movies(ratings: Path) -> None:
    problem = movielens.load(ratings)
    sizes = [len(part) for part in (problem.split.train, problem.split.valid, problem.split.test)]
    assert sizes == [1_280, 160, 160] and problem.values == (1, 2, 3, 4, 5)
    rows = problem.split.train.rows
    assert set(rows["genres"].shape[1:]) == {2} and int(rows["year"].min()) > 0 and int(rows["movie_id"].min()) > 0
    (ratings / "users.parquet").unlink()
    with pytest.raises(ValueError, match=r"RESFLOW_ML1M must name a folder with users\.parquet"):
        movielens.load(ratings)


def test_the_command_compares_ratings_and_resumes(
    ratings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(movielens.VARIABLE, str(ratings))
    folder = tmp_path / "results"
    command = ["movielens", "-o", str(folder), "--seeds", "1", "--epochs", "2", "--cells", "2", "--threads", "1"]
    first = CliRunner().invoke(APP, command, catch_exceptions=False)
    assert first.exit_code == 0 and first.output.count("validation") == 4 * 3
    text = (folder / "movielens.md").read_text()
    assert "| progressive, ResFlow, LR |" in text and "| plain regression |" in text and "training mean" in text
    assert "validation" not in CliRunner().invoke(APP, command, catch_exceptions=False).output


def test_the_command_compares_watched_shares(tmp_path: Path) -> None:
    command = ["kuairand", "-o", str(tmp_path), "--method", "resflow_lr", "--seeds", "1", "--epochs", "1"]
    result = CliRunner().invoke(
        APP, [*command, "--rows", "4000", "--cells", "1", "--threads", "1"], catch_exceptions=False
    )
    assert result.exit_code == 0
    assert "## Bucket middles instead of means" in (tmp_path / "kuairand.md").read_text()


def test_the_data_must_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(movielens.VARIABLE, raising=False)
    result = CliRunner().invoke(APP, ["movielens", "-o", str(tmp_path)])
    assert isinstance(result.exception, ValueError) and "RESFLOW_ML1M must name" in str(result.exception)


@pytest.mark.skipif(movielens.folder() is None, reason="RESFLOW_ML1M does not name a folder of MovieLens-1M")
def test_movielens_is_complete() -> None:
    source = movielens.folder()
    assert source is not None
    split = movielens.load(source).split
    assert [len(part) for part in (split.train, split.valid, split.test)] == [805_443, 97_383, 97_383]
    stars = np.concatenate([part.labels[:, 0].numpy() for part in (split.train, split.valid, split.test)])
    assert np.bincount(stars.astype(int)).tolist() == [0, 56_174, 107_557, 261_197, 348_971, 226_310]
