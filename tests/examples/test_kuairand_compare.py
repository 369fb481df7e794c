"""The comparison on KuaiRand: labels, rankings, residuals, and the command on a small part of the data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import typer
from typer.testing import CliRunner

from examples.experiments.catalog import Requests
from examples.experiments.data import Encoded
from examples.kuairand import prepare
from examples.kuairand.compare import compare
from examples.kuairand.comparison import SENSITIVITY_METHODS, TOPOLOGIES, labels_of
from examples.kuairand.fusions import plain_recalls, tuned_recalls
from examples.kuairand.requests import make_requests
from examples.kuairand.residuals import EDGES, residual_histograms, residuals

APP = typer.Typer()
APP.command()(compare)


@pytest.fixture(scope="module")
def data() -> prepare.Slice:
    return prepare.load()


def test_likes_count_after_a_click_alone(data: prepare.Slice) -> None:
    labels = labels_of(data.test, ("click", "like"))
    log = pq.read_table(prepare.DATA / "log_standard_4_25_to_5_08.parquet")
    date, click, like = (log[name].to_numpy() for name in ("date", "is_click", "is_like"))
    liked = (date > prepare.LAST_VALIDATION_DAY) & (click > 0) & (like > 0)
    assert (labels[:, 1] <= labels[:, 0]).all() and 0 < liked.sum() == labels[:, 1].sum()
    np.testing.assert_array_equal(labels_of(data.test, prepare.TASKS), data.test.labels)


def test_finishes_are_plays_of_nearly_the_whole_video(data: prepare.Slice) -> None:
    finished = data.test.labels[:, 2] > 0
    assert data.test.watched[finished].min() >= prepare.FINISHED
    assert 0.01 < np.isnan(data.train.watched).mean() < 0.02


def test_a_part_of_the_impressions(data: prepare.Slice) -> None:
    part = data.test.part(100, 50)
    assert len(part) == part.table.num_rows == len(part.likes) == len(part.watched) == 50
    assert part.table["video_id"][3] == data.test.table["video_id"][103]
    assert len(data.test.part(len(data.test) - 5, 50)) == 5


def test_requests_hold_what_users_finished(data: prepare.Slice) -> None:
    features = prepare.feature_set(2).fit(data.train.table.slice(0, 3_000))
    requests = make_requests(features, data.test, data.videos, 20)
    users, finishes = prepare.requests(data.test, 20)
    assert requests.feedback.shape == (20, data.videos.num_rows)
    assert requests.feedback.sum() == sum(finishes["weight"].to_pylist())
    user, video, weight = (finishes[name][0].as_py() for name in ("user_id", "video_id", "weight"))
    row, column = users["user_id"].to_pylist().index(user), data.videos["video_id"].to_pylist().index(video)
    assert requests.feedback[row, column] == weight and len(requests.user["tab"]) == 20


def test_tuned_weights_find_what_ranks_best() -> None:
    """Feedback follows the second task alone, so both forms must learn to leave out the first."""
    rng = np.random.default_rng(0)
    probs = rng.uniform(0.1, 0.9, (30, 400, 2)).astype(np.float32)
    requests = Requests({}, {}, (probs[:, :, 1] > 0.8).astype(np.float64))
    metrics, chosen = tuned_recalls(probs, requests, probs, requests)
    plain = plain_recalls(probs, requests)
    assert plain["wr100_last"] > 0.99 > plain["wr100_sum"]
    for form in ("additive", "multiplicative"):
        assert metrics[f"wr100_{form}"] > 0.99 and chosen[form]["valid"] == pytest.approx(metrics[f"wr100_{form}"])
        assert chosen[form]["weights"][1] > 2 * chosen[form]["weights"][0]


def test_residuals_add_up_to_the_logits_along_a_tree() -> None:
    parents = TOPOLOGIES["tree"].parents
    logits = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    own = residuals(logits, parents)
    np.testing.assert_allclose(own[:, 3] + own[:, 0], logits[:, 3], atol=1e-6)
    np.testing.assert_allclose(own[:, :3].sum(1), logits[:, 2], atol=1e-6)


def test_residuals_are_counted_by_how_far_the_user_went() -> None:
    logits = torch.tensor([[0.0, 1.0, -90.0], [0.0, 1.0, 1.0], [2.0, 1.0, 1.5]])
    labels = torch.tensor([[0.0, 0, 0], [1, 1, 0], [1, 1, 0]])

    class Fixed(torch.nn.Module):
        def forward(self, rows: dict[str, torch.Tensor]) -> torch.Tensor:
            return logits[rows["at"]]

    found = residual_histograms(Fixed(), Encoded({"at": torch.arange(3)}, labels), (-1, 0, 1))
    counts = np.array(found["counts"])
    assert counts.shape == (3, 4, len(EDGES) - 1)
    np.testing.assert_array_equal(counts.sum(2), [[1, 0, 2, 0]] * 3)
    assert counts[2, 0, 0] == 1  # beyond the edges: in the outer bin
    assert found["means"][0][2] == 1.0 and found["means"][1][2] == 0.0 and found["deviations"][1][2] == 1.0
    assert np.isnan(found["means"][0][1])


def invoke(folder: Path, *options: str) -> str:
    small = ["--seeds", "1", "--epochs", "1", "--users", "6", "--rows", "3000", "--cells", "1", "--threads", "1"]
    result = CliRunner().invoke(APP, ["-o", str(folder), *small, *options], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_the_command_compares_and_resumes(tmp_path: Path) -> None:
    chain = invoke(tmp_path, "--only", "chain", "--method", "resflow")
    assert chain.count("validation") == 1
    everything = invoke(tmp_path, "--method", "resflow")
    # A line per run: ResFlow's of the branch, each topology's, and with one cell and seed each method's of sensitivity.
    runs = 1 + len(TOPOLOGIES) + len(SENSITIVITY_METHODS)
    assert "chain: resflow" not in everything and everything.count("validation") == runs
    text = (tmp_path / "comparison.md").read_text()
    for title in ("Click → long view → finish", "Additive against", "residuals learn", "Click → like", "Topologies"):
        assert title in text
    for chart in ("chain", "branch", "residuals", "sensitivity"):
        assert f"({chart}.png)" in text and (tmp_path / f"{chart}.png").is_file()
    rows = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert {"auc_finish", "gauc_finish", "wr100_additive", "wr100_last"} <= set(rows[0]["metrics"])
    assert "validation" not in invoke(tmp_path, "--method", "resflow")


def test_unknown_experiments_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="only must be of chain, branch, topology, sensitivity, got other"):
        invoke(tmp_path, "--only", "other")
