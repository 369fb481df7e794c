"""The tuned fusion: known best weights are found, and its figure is that of the metric."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from resflow_kernels import Additive, Multiplicative, metrics, reference
from resflow_kernels.metrics import fusion_search
from resflow_kernels.metrics.fusion_search import _Requests, plot_surface, tune_fusion

FUSIONS = {"additive": Additive, "multiplicative": Multiplicative}


def requests(best: tuple[float, ...], form: str, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, feedback and offsets: a request's feedback is on what ``best`` ranks first."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(30, 90, (40,), generator=generator)
    offsets = torch.cat((torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)))
    logits = 1.5 * torch.randn(int(offsets[-1]), len(best), generator=generator) - torch.arange(len(best))
    score = reference.fuse(logits, torch.tensor(best), FUSIONS[form]().kind)
    ranked = reference.topk(score, offsets, 8)
    feedback = torch.zeros(len(logits))
    feedback[(ranked.positions + offsets[:-1, None]).flatten()] = 1.0
    return logits, feedback, offsets


@pytest.mark.parametrize(
    ("form", "best"),
    [
        ("additive", (1.0, 8.0)),
        ("additive", (1.0, 0.3)),
        ("additive", (1.0, 0.5, 30.0)),
        ("additive", (1.0, 3.0, 12.0, 40.0)),
        ("multiplicative", (1.0, 0.3)),
        ("multiplicative", (0.15, 1.0)),
        ("multiplicative", (0.2, 0.6, 1.0)),
    ],
)
def test_known_weights_are_recovered(form: str, best: tuple[float, ...]) -> None:
    logits, feedback, offsets = requests(best, form)
    tuned = tune_fusion(logits, feedback, offsets, 8, form, from_logits=True, most=400)
    assert tuned.wr_at_k > 0.98 and tuned.wr_at_k > tuned.default_wr_at_k + 0.02
    assert isinstance(tuned.fusion, FUSIONS[form])
    found = torch.tensor(tuned.fusion.weights_for(len(best)))
    relative = (found / found[0]) / (torch.tensor(best) / best[0])
    assert ((relative > 0.7) & (relative < 1.4)).all(), found
    unseen = requests(best, form, seed=1)
    score = reference.fuse(unseen[0], found, tuned.fusion.kind)
    assert metrics.weighted_recall_at_k(score, *unseen[1:], 8) > 0.96


Case = tuple[Tensor, Tensor, list[int], int, bool]


@st.composite
def logs(draw: st.DrawFn) -> Case:
    """Predictions with many equal ones, requests of any length, without feedback or without candidates."""
    sizes = draw(st.lists(st.integers(0, 9), min_size=1, max_size=6))
    tasks = draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    count = sum(sizes)
    probs = torch.randint(0, 4, (count, tasks), generator=generator).double() / draw(st.sampled_from([3, 4]))
    feedback = torch.randint(0, 4, (count,), generator=generator) * (torch.rand(count, generator=generator) < 0.5)
    offsets = [sum(sizes[:at]) for at in range(len(sizes) + 1)]
    return probs, feedback, offsets, draw(st.integers(1, 10)), draw(st.booleans())


@pytest.mark.parametrize("form", FUSIONS)
@given(case=logs())
def test_every_setting_tried_has_the_metrics_value(
    form: str, case: tuple[Tensor, Tensor, list[int], int, bool]
) -> None:
    probs, feedback, offsets, k, from_logits = case
    logits = torch.logit(probs)
    predictions = logits if from_logits else probs
    if not feedback.any():
        with pytest.raises(ValueError, match="weights must be above 0 for a candidate, got none"):
            tune_fusion(predictions, feedback, offsets, k, form, from_logits=from_logits)
        return
    tuned = tune_fusion(predictions, feedback, offsets, k, form, from_logits=from_logits, grid=(0, 1, 4), most=30)
    kind, tasks = tuned.fusion.kind, probs.shape[1]

    def value(weights: Any) -> float:
        score = reference.fuse(logits, torch.as_tensor(weights, dtype=torch.float64), kind)
        return metrics.weighted_recall_at_k(score, feedback, offsets, k)

    assert tuned.wr_at_k == value(tuned.fusion.weights_for(tasks))
    assert tuned.default_wr_at_k == value(torch.ones(tasks)) <= tuned.wr_at_k
    assert tuned.surface.shape == (len(tuned.surface), tasks + 1) and len(tuned.surface) <= 30
    for *weights, recall in tuned.surface:
        # Whole weights of thirds and quarters add up without rounding, so that equals are equal in any order.
        if form == "additive" and all(weight == round(weight) for weight in weights) and probs.max() * 4 % 1 == 0:
            assert recall == pytest.approx(value(weights), rel=1e-12)
    assert tuned.surface[:, -1].max() >= tuned.wr_at_k - 1e-12


@given(st.integers(0, 10**6), st.integers(1, 12), st.booleans())
def test_requests_in_blocks_have_the_metrics_value(seed: int, k: int, small: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(0, 14, (9,), generator=generator)
    offsets = torch.cat((torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)))
    count = int(offsets[-1])
    logits = torch.randint(-3, 3, (count, 1), generator=generator).double()  # equal scores, at the k-th place too
    feedback = torch.rand(count, generator=generator, dtype=torch.float64).round(decimals=1)
    expected = metrics.weighted_recall_at_k(logits[:, 0], feedback, offsets, k)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fusion_search, "BLOCK", 20 if small else 10**6)
        for form in FUSIONS:
            if feedback.any():
                prepared = _Requests(logits, feedback, offsets, k, form)
                assert (len(prepared._blocks) > 1) or not small or (feedback > 0).sum() < 20
                assert prepared.recall((1.0,)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("form", FUSIONS)
def test_it_agrees_with_the_fusion_of_a_model(form: str) -> None:
    logits, feedback, offsets = requests((1.0, 5.0, 2.0), form)
    tuned = tune_fusion(logits.numpy(), feedback.numpy(), offsets.numpy(), 10, form, from_logits=True)
    weights = torch.tensor(tuned.fusion.weights_for(3), dtype=torch.float64)
    score = reference.finish(logits.double(), weights, tuned.fusion.kind).score
    assert tuned.wr_at_k == metrics.weighted_recall_at_k(score, feedback, offsets, 10)
    by_hand = {"additive": (logits.double().sigmoid() * weights).sum(1)}
    by_hand["multiplicative"] = (logits.double().sigmoid() ** weights).prod(1)
    assert tuned.wr_at_k == pytest.approx(metrics.weighted_recall_at_k(by_hand[form], feedback, offsets, 10))


def test_it_is_deterministic() -> None:
    case = requests((1.0, 4.0, 9.0), "additive")
    first, second = (tune_fusion(*case, 8, from_logits=True) for _ in range(2))
    assert first.fusion == second.fusion and np.array_equal(first.surface, second.surface)


def test_ties_go_to_the_default_then_to_equal_weights() -> None:
    alike = torch.rand(30, 1).expand(30, 2)  # every setting ranks alike
    assert tune_fusion(alike, torch.ones(30), [0, 30], 5).fusion == Additive((1, 1))
    assert tune_fusion(alike, torch.ones(30), [0, 30], 5, default=(1, 7)).fusion == Additive((1, 7))
    # Here the default ranks the other way round, and all with less of the second task are equal.
    probs = torch.tensor([[0.5, 0.1], [0.1, 0.3]])
    tuned = tune_fusion(probs, [1, 0], [0, 2], 1, default=(1, 30))
    assert tuned.fusion == Additive((1, 1)) and tuned.wr_at_k == 1 and tuned.default_wr_at_k == 0


def test_a_task_alone_may_be_best() -> None:
    generator = torch.Generator().manual_seed(0)
    probs = torch.rand(300, 2, generator=generator)
    feedback = (probs[:, 1] > probs[:, 1].sort().values[-11]).float()
    tuned = tune_fusion(probs, feedback, [0, 300], 10)
    assert tuned.wr_at_k == 1.0
    first, second = tuned.fusion.weights_for(2)
    assert second > 10 * first


def test_one_task_has_nothing_to_tune() -> None:
    tuned = tune_fusion([[0.3], [0.6]], [1, 0], [0, 2], 1)
    assert tuned.fusion == Additive((1,)) and tuned.wr_at_k == 0 and len(tuned.surface) == 1


def test_a_budget_of_one_is_the_default() -> None:
    case = requests((1.0, 4.0), "additive")
    tuned = tune_fusion(*case, 8, from_logits=True, most=1)
    assert tuned.fusion == tuned.default == Additive((1, 1)) and tuned.wr_at_k == tuned.default_wr_at_k


@pytest.mark.parametrize("best", [(1.0, 4.0), (1.0, 4.0, 0.5)])
@pytest.mark.parametrize("form", FUSIONS)
def test_the_surface_is_drawn(best: tuple[float, ...], form: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    tuned = tune_fusion(*requests(best, form), 8, form, from_logits=True, most=150)
    plot_surface(tuned, tmp_path / "surface.svg", ["click", "order", "share"][: len(best)], "a title")
    plot_surface(tuned, tmp_path / "surface.png")
    drawn = (tmp_path / "surface.svg").read_text()
    assert drawn.count("<use ") > 20  # a mark a setting
    assert (tmp_path / "surface.png").read_bytes()[:4] == b"\x89PNG"


def test_what_cannot_be_drawn_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    four = tune_fusion(torch.rand(9, 4), torch.ones(9), [0, 9], 2)
    two = tune_fusion(torch.rand(9, 2), torch.ones(9), [0, 9], 2)
    with pytest.raises(ValueError, match="tuned must be of two or three tasks, got one of 4"):
        plot_surface(four, tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"tasks must be 2 names, got \['a'\]"):
        plot_surface(two, tmp_path / "x.png", ["a"])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"needs matplotlib: pip install matplotlib"):
        plot_surface(two, tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


PROBS, ONES, OFFSETS = torch.rand(4, 2), torch.ones(4), [0, 4]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: tune_fusion(PROBS[:, 0], ONES, OFFSETS), r"predictions must be a matrix \[N, K\], got \[4\]"),
        (lambda: tune_fusion(PROBS / 0, ONES, OFFSETS), r"predictions must be 0 to 1 \(or from_logits=True\)"),
        (lambda: tune_fusion(PROBS * torch.nan, ONES, OFFSETS), "predictions must be without NaN"),
        (lambda: tune_fusion(PROBS, ONES[:3], [0, 3]), r"scores must be of shape \[3\], got \[4\]"),
        (lambda: tune_fusion(PROBS, -ONES, OFFSETS), "weights must be finite and not negative"),
        (lambda: tune_fusion(PROBS, ONES, [0, 3]), "offsets must be from 0 to 4"),
        (lambda: tune_fusion(PROBS, ONES, OFFSETS, 0), "k must be at least 1, got 0"),
        (lambda: tune_fusion(PROBS, 0 * ONES, OFFSETS), "weights must be above 0 for a candidate, got none"),
        (lambda: tune_fusion(PROBS, ONES, OFFSETS, form="max"), "form must be additive or multiplicative, got 'max'"),
        (lambda: tune_fusion(PROBS, ONES, OFFSETS, default=(1, -1)), "default must be not negative, one above 0"),
        (lambda: tune_fusion(PROBS, ONES, OFFSETS, default=(0, 0)), "default must be not negative, one above 0"),
        (lambda: tune_fusion(PROBS, ONES, OFFSETS, default=(1,)), "Additive: weights must be 2 numbers for 2 tasks"),
        (lambda: tune_fusion(PROBS, ONES, OFFSETS, grid=(-1, 1)), "grid must be finite and not negative"),
        (lambda: tune_fusion(PROBS, ONES, OFFSETS, most=0), "most must be at least 1, got 0"),
    ],
)
def test_bad_input_is_named(call: Callable[[], object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call()
