"""Modules on a GPU: scored by its kernels without a word, trained in plain PyTorch, compiled, captured as graphs."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch

from resflow_kernels import Additive, ResFlow, TwinTower, make_ranker, nn, ops

pytestmark = pytest.mark.skipif(
    ops.unsupported_reason("cuda") is not None, reason=f"cuda: {ops.unsupported_reason('cuda')}"
)


@pytest.fixture(autouse=True)
def _nothing_said_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn, "_warned", set())


@pytest.fixture
def model() -> ResFlow:
    torch.manual_seed(0)
    return ResFlow(24, (40, 8), ("a", "b", "c"), norm="batch", fusion=Additive((1, 2, 3))).eval()


@pytest.mark.parametrize(("precision", "bound"), [("float32", 1e-5), ("bfloat16", 1e-2), ("float16", 2e-3)])
def test_scores_are_those_of_the_cpu(model: ResFlow, precision: str, bound: float) -> None:
    x, user, item = torch.randn(70, 24), torch.randn(2, 10), torch.randn(70, 14)
    offsets = torch.tensor([0, 30, 70])
    there = copy.deepcopy(model).cuda()
    there.plan = there.packed(precision).plan
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        for got, expected in (
            (there(x.cuda()), model(x)),
            (
                there.request_scores(user.cuda(), item.cuda(), offsets.cuda()),
                model.request_scores(user, item, offsets),
            ),
            (model.packed(precision).cuda()(x.cuda()), model(x)),
        ):
            assert got.probs.is_cuda
            torch.testing.assert_close(got.probs.cpu(), expected.probs, atol=bound, rtol=0)
        best = there.dense_topk(x.cuda(), 5)
        assert torch.equal(best.scores[0].cpu(), there(x.cuda()).score.cpu().sort(descending=True).values[:5])


@pytest.mark.parametrize("method", ["aitm", "mmoe", "ple", "dcnv2", "dlrm"])
def test_tile_programs_score_as_on_the_cpu(method: str) -> None:
    torch.manual_seed(0)
    model = make_ranker(method, 24, (40, 8), ("a", "b")).eval()
    user, item, offsets = torch.randn(2, 10), torch.randn(70, 14), torch.tensor([0, 30, 70])
    there = copy.deepcopy(model).cuda()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = model.request_scores(user, item, offsets)
        for own in (there, model.packed().cuda()):
            got = own.request_scores(user.cuda(), item.cuda(), offsets.cuda())
            assert got.probs.is_cuda
            torch.testing.assert_close(got.probs.cpu(), expected.probs, atol=1e-5, rtol=0)
        # The steps travel with the launches: a graph needs nothing of the call that it was captured from.
        packed, x = model.packed().cuda(), torch.randn(33, 24, device="cuda")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            scores = packed(x)
        x.copy_(torch.randn(33, 24))
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(scores, packed(x), strict=True))


def test_int8_is_scored_in_float32_and_said_so(model: ResFlow) -> None:
    there = ResFlow(24, (40, 8), ("a", "b", "c"), norm="batch", precision="int8").cuda().eval()
    with torch.no_grad(), pytest.warns(UserWarning, match=r"scores in float32: on this device \(cuda\)"):
        there(torch.randn(5, 24, device="cuda"))


def test_training_is_plain_pytorch(model: ResFlow) -> None:
    there = copy.deepcopy(model).cuda().train()
    with pytest.warns(UserWarning, match="the training ops are the CPU's"):
        there(torch.randn(9, 24, device="cuda")).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in there.parameters())


def test_compiled_and_captured(model: ResFlow) -> None:
    packed, x = model.packed().cuda(), torch.randn(33, 24, device="cuda")
    with torch.no_grad():
        expected = packed(x)
        for module in (packed, copy.deepcopy(model).cuda()):
            for got, own in zip(torch.compile(module, fullgraph=True)(x), expected, strict=True):
                torch.testing.assert_close(got, own)
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            packed.dense_topk(x, 5)
            packed(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            scores, best = packed(x), packed.dense_topk(x, 5)
        x.copy_(torch.randn(33, 24))
        graph.replay()
        for got, own in zip((*scores, *best), (*packed(x), *packed.dense_topk(x, 5)), strict=True):
            assert torch.equal(got, own)


def test_work_is_queued_on_the_current_stream(model: ResFlow) -> None:
    """Rows that another kernel of the same stream is still writing are waited for."""
    packed, source = model.packed().cuda(), torch.randn(5000, 24, device="cuda")
    with torch.no_grad():
        expected = packed(source)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)
            got = packed(source.clone())
        stream.synchronize()
        assert torch.equal(got.score, expected.score)


def test_tensors_of_two_devices_are_named(model: ResFlow) -> None:
    packed = model.packed()
    with pytest.raises(ValueError, match="dense_scores: packed must be on cuda:0"):
        ops.dense_scores(torch.randn(5, 24, device="cuda"), packed.packed_weights, packed.plan, torch.ones(3).cuda())


def test_twin_towers() -> None:
    torch.manual_seed(0)
    model = TwinTower(10, 14, tasks=("a", "b"), norm="batch").eval()
    items, user = torch.randn(500, 14), torch.randn(3, 10)
    there = copy.deepcopy(model).cuda()
    table, own = there.build_table(items.cuda(), "int8"), model.build_table(items, "int8")
    best, expected = there.dense_topk(user.cuda(), table, 10), model.dense_topk(user, own, 10)
    torch.testing.assert_close(best.scores.cpu(), expected.scores, atol=1e-2, rtol=0)
