"""What Triton's kernels do among themselves: tiles, the two kernels of towers, turns of products, the selection."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from resflow_kernels import reference
from resflow_kernels.contract import TABLE_PRECISIONS
from resflow_kernels.core.checks import precisions_of
from resflow_kernels.core.plan import Plan
from resflow_kernels.testing import assert_exact
from tests.support.cases import TowerCase
from tests.support.comparisons import same_bits
from tests.support.devices import Device
from tests.support.draws import random_offsets, seeds

TREE = Plan(20, (130, 5), (-1, 0, 0, 1), "tanh", non_increasing=True)
TINY = Plan(2, (4,), (-1, 0))


def test_more_tiles_than_programs(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of the forest kernel takes several tiles, and its part of the workspace serves all."""
    from resflow_kernels.triton import launch

    case = TowerCase(TREE, 70, ops=device)
    whole = case.run()
    monkeypatch.setattr(launch, "FOREST_PROGRAMS", 2)
    assert same_bits(case.run(), whole)


@pytest.mark.parametrize("precision", precisions_of("cuda"))
def test_the_kernels_agree(device: Device, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain through the forest kernel as through its own."""
    from resflow_kernels.triton import configs

    case = TowerCase(Plan(70, (40, 20, 8), (-1, 0, -1, 2), affine=True, precision=precision), 40, ops=device)
    own = case.run()
    monkeypatch.setattr(configs, "CHAIN_LAYERS", 0)
    assert_exact(case.run(), type(own)(*(part.double() for part in own)), case.fusion_weights, precision)


def test_catalogs_beyond_one_turn_of_products(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    from resflow_kernels.triton import scoring

    case = TowerCase(Plan(7, (20, 8), (-1, 0, 1)), 0, ops=device)
    items = torch.randn(40, 4)
    for dtype in TABLE_PRECISIONS:
        whole = device.catalog_rows(items, case.packed, case.plan, dtype)
        with monkeypatch.context() as patch:
            patch.setattr(scoring, "_PRODUCT_BYTES", 4 * case.plan.table_width * 7)
            assert same_bits(device.catalog_rows(items, case.packed, case.plan, dtype), whole)


@given(count=st.integers(0, 300), requests=st.integers(0, 9), k=st.sampled_from([1, 2, 7, 33, 400]), seed=seeds)
@example(count=300, requests=1, k=1000, seed=0)
def test_the_selection(device: Device, count: int, requests: int, k: int, seed: int) -> None:
    """Of scores that are equal, infinite and NaN, and of both zeros."""
    from resflow_kernels.triton.scoring import topk

    generator = torch.Generator().manual_seed(seed)
    count *= requests > 0
    some = torch.tensor([0.0, -0.0, 1.0, 2.0, float("inf"), float("-inf"), float("nan"), -3.0])
    score = some[torch.randint(0, 8, (count,), generator=generator)]
    offsets = random_offsets(count, requests, generator)
    best = topk(device.tensor(score), device.tensor(offsets), k)
    assert same_bits((part.cpu() for part in best), reference.topk(score, offsets, k))


def test_offsets_that_leave_candidates_out(device: Device) -> None:
    case = TowerCase(TINY, 10, ops=device)
    settings = (case.packed, TINY, case.fusion_weights)
    best = device.dense_topk(case.x, torch.tensor([2, 5, 8]), *settings, k=4)
    scores = device.dense_scores(case.x, *settings).score
    assert same_bits(best, reference.topk(scores, torch.tensor([2, 5, 8]), 4))
    for bad in ([9, 1, 30], [-4, 5, 1 << 40], [0, 0, 0]):
        best = device.dense_topk(case.x, torch.tensor(bad), *settings, k=4)
        assert best.scores.shape == (2, 4) and ((best.positions >= -1) & (best.positions < 1 << 40)).all()
