"""Unpacked models in compilers' graphs: weights are packed when they change, and not in each call."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from resflow_kernels import Additive, FeatureRanker, ResFlow
from resflow_kernels.nn import fused
from resflow_kernels.ops import FeatureIds
from tests.support.writes import WRITES


def model() -> ResFlow:
    torch.manual_seed(0)
    return ResFlow(12, (20, 8), ("a", "b", "c"), norm="batch", fusion=Additive((1, 2, 3))).eval()


@pytest.fixture
def packs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each packing."""
    made: list[int] = []
    pack = fused.ops.pack_towers
    monkeypatch.setattr(fused.ops, "pack_towers", lambda *a: made.append(1) or pack(*a))
    return made


@torch.no_grad()
def test_a_compiled_model_packs_when_a_weight_was_written(packs: list[int]) -> None:
    scorer, x = model(), torch.randn(5, 12)
    compiled = torch.compile(scorer, fullgraph=True, backend="eager")
    for write in WRITES.values():
        write(scorer.towers[1][0].linear.weight)
        for _ in range(2):
            assert torch.equal(compiled(x).logits, scorer(x).logits)
    assert len(packs) == len(WRITES)


@torch.no_grad()
def test_every_copy_compiles_to_its_own_weights() -> None:
    scorer, x = model(), torch.randn(5, 12)
    other = copy.deepcopy(scorer)
    other.heads[0].bias += 1
    for each in (scorer, other):
        compiled = torch.compile(each, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x).logits, each(x).logits)


@torch.no_grad()
def test_other_tensors_in_a_graph_are_refused() -> None:
    scorer, x = model(), torch.randn(5, 12)
    weights = {name: torch.zeros_like(one) for name, one in scorer.named_parameters()}
    called = torch.compile(lambda own: torch.func.functional_call(scorer, own, (x,)).logits, backend="eager")
    with pytest.raises(RuntimeError, match="ResFlow: model must be as it was compiled; compile it again"):
        called(weights)


@torch.no_grad()
def test_ranking_and_features_compile_too(packs: list[int]) -> None:
    scorer = model()
    compiled = torch.compile(lambda u, i, o: scorer.request_topk(u, i, o, 2), fullgraph=True, backend="eager")
    given = torch.randn(2, 4), torch.randn(9, 8), torch.tensor([0, 4, 9])
    features = FeatureRanker([nn.Embedding(9, 12)], scorer).eval()
    ids = FeatureIds(torch.tensor([[3], [8]]), torch.zeros(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    looked_up = torch.compile(features, fullgraph=True, backend="eager")
    for _ in range(2):
        assert torch.equal(compiled(*given).positions, scorer.request_topk(*given, 2).positions)
        assert torch.equal(looked_up(ids).score, features(ids).score)
    assert len(packs) == 1


@torch.no_grad()
def test_an_exported_model_that_has_scored_holds_packed_weights(tmp_path: Path) -> None:
    scorer, x = model(), torch.randn(5, 12)
    scorer(x)
    exported = torch.export.export(scorer, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    called = {str(node.target) for node in exported.graph.nodes if "resflow" in str(node.target)}
    assert called == {"resflow.dense_scores.default"}
    torch.export.save(exported, tmp_path / "model.pt2")
    other = torch.randn(8, 12)
    assert torch.equal(torch.export.load(tmp_path / "model.pt2").module()(other).score, scorer(other).score)
    scorer.heads[0].bias.data.add_(1)  # not packed yet
    again = torch.export.export(scorer, (x,)).module()
    torch.testing.assert_close(again(x).logits, scorer(x).logits)
