"""The made-up shop: rates, nesting, calibration of its probabilities, and what depends on what."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.funnel import generate
from examples.funnel.world import TASKS, Settings, World

SMALL = Settings(users=800, items=300, rates=(0.2, 0.05, 0.02))


@pytest.fixture(scope="module")
def world() -> World:
    return World(SMALL)


def stacked(table: pa.Table, prefix: str = "") -> np.ndarray:
    return np.stack([table[f"{prefix}{task}"].to_numpy() for task in TASKS], axis=1).astype(np.float64)


@pytest.fixture(scope="module")
def traffic(world: World) -> pa.Table:
    return pa.concat_tables(generate.blocks(world, 250_000))


def test_rates_are_met(traffic: pa.Table) -> None:
    assert traffic.num_rows == 250_000
    # Five standard deviations of the rarest count are within 9 % of it.
    np.testing.assert_allclose(stacked(traffic).mean(0), SMALL.rates, rtol=0.09)
    np.testing.assert_allclose(stacked(traffic, "p_").mean(0), SMALL.rates, rtol=0.03)


def test_default_rates_are_met() -> None:
    traffic = pa.concat_tables(generate.blocks(World(Settings()), 400_000))
    np.testing.assert_allclose(stacked(traffic, "p_").mean(0), (0.05, 0.005, 0.001), rtol=0.05)


def test_labels_and_probabilities_are_nested(traffic: pa.Table) -> None:
    assert (np.diff(stacked(traffic), axis=1) <= 0).all()
    assert (np.diff(stacked(traffic, "p_"), axis=1) < 0).all()


def test_true_probabilities_are_calibrated(traffic: pa.Table) -> None:
    """In every tenth of the exposures by probability, as many positives as it says, within 4.5 deviations."""
    labels, truth = stacked(traffic), stacked(traffic, "p_")
    for task in range(len(TASKS)):
        for part in np.array_split(np.argsort(truth[:, task]), 10):
            p = truth[part, task]
            deviation = np.sqrt((p * (1 - p)).sum())
            assert abs(labels[part, task].sum() - p.sum()) < 4.5 * deviation + 1


def test_probabilities_are_the_product_of_the_steps(world: World) -> None:
    users, items = np.arange(50), np.arange(50)
    steps = 1 / (1 + np.exp(-world.step_logits(users, items)))
    np.testing.assert_allclose(world.probabilities(users, items), np.cumprod(steps, axis=1))


def test_traffic_is_reproducible_and_longer_traffic_begins_alike(traffic: pa.Table) -> None:
    again = pa.concat_tables(generate.blocks(World(SMALL), 120_000))
    assert again.combine_chunks().equals(traffic.slice(0, 120_000).combine_chunks())
    other = pa.concat_tables(generate.blocks(World(replace(SMALL, seed=1)), 1_000))
    assert other["user_id"].to_pylist() != traffic["user_id"].slice(0, 1_000).to_pylist()


def test_popular_items_are_exposed_more(traffic: pa.Table) -> None:
    counts = np.bincount(traffic["item_id"].to_numpy(), minlength=SMALL.items)
    expected = (np.arange(SMALL.items) + 10.0) ** -SMALL.popularity
    np.testing.assert_allclose(counts[:5] / counts.sum(), expected[:5] / expected.sum(), rtol=0.1)
    assert counts[:30].sum() > 2 * counts[-30:].sum()


def test_observations_are_the_factors_and_noise() -> None:
    exact = World(replace(SMALL, noise=0.0))
    np.testing.assert_array_equal(exact.user_observed, exact.user_factors)
    noisy = World(replace(SMALL, users=20_000))
    assert np.std(noisy.user_observed - noisy.user_factors) == pytest.approx(SMALL.noise, rel=0.02)


@settings(max_examples=10, deadline=None)
@given(relatedness=st.floats(0, 1), seed=st.integers(0, 1_000))
def test_any_relatedness_meets_the_rates(relatedness: float, seed: int) -> None:
    world = World(Settings(users=60, items=40, rates=(0.3, 0.1, 0.05), relatedness=relatedness, seed=seed))
    users, items = world.expose(np.random.default_rng(5), 100_000)
    np.testing.assert_allclose(world.probabilities(users, items).mean(0), (0.3, 0.1, 0.05), rtol=0.05)


def test_full_relatedness_makes_the_steps_alike(world: World) -> None:
    same = World(replace(SMALL, relatedness=1.0))
    users, items = same.expose(np.random.default_rng(5), 2_000)
    steps = same.step_logits(users, items) - same.intercepts
    np.testing.assert_allclose(steps[:, 0], steps[:, 2])
    own = world.step_logits(users, items) - world.intercepts
    assert 0 < np.corrcoef(own[:, 0], own[:, 2])[0, 1] < 0.999


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rates": (0.05, 0.05, 0.001)}, "rates must be 3 descending numbers between 0 and 1"),
        ({"rates": (0.05, 0.005)}, "rates must be 3 descending"),
        ({"rates": (1.5, 0.1, 0.01)}, "rates must be 3 descending"),
        ({"relatedness": 1.2}, "relatedness must be from 0 to 1, got 1.2"),
    ],
)
def test_bad_settings_are_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)


def test_a_folder_is_whole_or_refused(tmp_path: Path) -> None:
    generate.write(SMALL, 150_000, tmp_path)
    log = pq.ParquetFile(tmp_path / "impressions.parquet")
    assert log.metadata.num_rows == 150_000 and log.num_row_groups == 2
    assert pq.read_table(tmp_path / "users.parquet").num_rows == SMALL.users
    assert pq.read_table(tmp_path / "items.parquet").column_names == ["item_id", *(f"item_x{at}" for at in range(6))]
    assert json.loads((tmp_path / "settings.json").read_text())["rows"] == 150_000
    assert generate.open_world(tmp_path).settings == SMALL
    (tmp_path / "settings.json").unlink()
    with pytest.raises(ValueError, match=r"folder must hold settings\.json"):
        generate.open_world(tmp_path)
