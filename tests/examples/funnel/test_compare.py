"""The whole comparison on a small shop: one method, one seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from examples.funnel import data, generate
from examples.funnel.compare import compare
from examples.funnel.world import Settings

APP = typer.Typer()
APP.command()(compare)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("funnel")
    generate.write(Settings(users=300, items=200, rates=(0.3, 0.1, 0.04)), 20_000, folder)
    return folder


def test_traffic_is_joined_and_split_in_order(folder: Path) -> None:
    traffic = data.load(folder)
    split = traffic.split
    assert [len(part) for part in (split.train, split.valid, split.test)] == [12_000, 3_000, 5_000]
    assert traffic.truth.shape == (5_000, 3) and 0.25 < traffic.truth[:, 0].mean() < 0.35
    world = traffic.world
    users, items = next(generate.blocks(world, 20_000)).columns[:2]
    chosen = split.test.rows["user_id"][:50].numpy() - 1, split.test.rows["item_id"][:50].numpy() - 1
    np.testing.assert_array_equal(chosen[0], users.to_numpy()[15_000:15_050])
    np.testing.assert_array_equal(chosen[1], items.to_numpy()[15_000:15_050])
    np.testing.assert_allclose(world.probabilities(*chosen), traffic.truth[:50], rtol=1e-6)


def test_requests_know_the_expected_orders(folder: Path) -> None:
    traffic = data.load(folder, rows=1_000)
    requests = traffic.requests(4)
    assert requests.feedback.shape == (4, 200) and len(requests.user["user_x0"]) == 4
    user = int(requests.user["user_id"][2]) - 1
    known = traffic.world.probabilities(np.full(200, user), np.arange(200))[:, 2]
    np.testing.assert_allclose(requests.feedback[2], known)


def test_the_command_compares_and_resumes(folder: Path, tmp_path: Path) -> None:
    command = ["--data", str(folder), "-o", str(tmp_path), "--method", "resflow", "--seeds", "1", "--epochs", "1"]
    command += ["--cells", "2", "--users", "8", "--threads", "1"]
    first = CliRunner().invoke(APP, command, catch_exceptions=False)
    assert first.exit_code == 0 and first.output.count("validation") == 3
    text = (tmp_path / "comparison.md").read_text()
    assert "| ResFlow, FR + LR |" in text and "no ranking has more" in text and "## Tuning" in text
    assert (tmp_path / "auc.png").stat().st_size > 1_000
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 3
    again = CliRunner().invoke(APP, command, catch_exceptions=False)
    assert again.exit_code == 0 and "validation" not in again.output
