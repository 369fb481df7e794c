"""Peers score what the reference scores, in every kind of network; a contest reports who does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from resflow_kernels.benchmark import contest, peers
from resflow_kernels.benchmark.contest import Inputs, best_peer, enter, hold
from resflow_kernels.benchmark.onnx_graph import dense_graph, split_graph
from resflow_kernels.benchmark.peers import Model, Requests, threads_of
from resflow_kernels.benchmark.turns import Schedule, Timing
from resflow_kernels.contract import ACTIVATIONS
from resflow_kernels.core.fusion import Additive, ExpectedValue, Multiplicative
from resflow_kernels.core.plan import Plan
from resflow_kernels.testing import random_weights

pytest.importorskip("resflow_kernels._runtime", reason="the compiled library is not built")

PLANS = {
    "chain": (Plan(12, (9, 5), (-1, 0, 1), affine=True), Additive((1, 2, 3))),
    "tree": (Plan(12, (9, 5, 4), (-1, 0, 0, -1), "silu", non_increasing=True), Multiplicative()),
    "one task": (Plan(12, (7,), (-1,), "tanh"), ExpectedValue((1.0, 3.0))),
    "no residuals": (Plan(12, (8, 4), (-1, 0), "gelu", feature_residual=False, logit_residual=False), Additive()),
    "conditional": (
        Plan(12, (8, 4), (-1, 0), "relu", logit_residual=False, head="conditional"),
        Multiplicative((2, 1)),
    ),
    "progressive": (Plan(12, (8, 4), (-1, 0, 1), "sigmoid", feature_residual=False), ExpectedValue()),
    "activations": (Plan(12, (5,) * len(ACTIVATIONS), (-1, 0), ACTIVATIONS), Additive()),
}
QUICK = [peer for peer in peers.PEERS if peer.name != "torch.compile"]


def model(name: str) -> Model:
    plan, fusion = PLANS[name]
    return Model(plan, [weight.numpy() for weight in random_weights(plan)], fusion, user_width=7)


def available(contestant: type[peers.Contestant]) -> type[peers.Contestant]:
    missing = contestant.missing()
    if missing is not None:
        pytest.skip(f"{contestant.name}: {missing}")
    return contestant


@pytest.mark.parametrize("contestant", [*peers.OURS, *QUICK], ids=peers.label)
@pytest.mark.parametrize("name", PLANS)
def test_scores_are_the_references(contestant: type[peers.Contestant], name: str) -> None:
    with threads_of(1):
        dense = enter(model(name), Inputs.dense(model(name), 11), 1, [available(contestant)])
        one = enter(model(name), Inputs.of_requests(model(name), 1, 6), 1, [contestant])
        several = enter(model(name), Inputs.of_requests(model(name), 3, 5), 1, [contestant])
    for entry in (*dense, *one, *several):
        assert entry.problem is None and entry.call is not None, (entry.name, entry.problem)
        assert entry.error <= contest.TOLERANCES[contestant.precision]
    assert [entry.way for entry in dense] == ["dense"]
    assert [entry.way for entry in one] == (["split"] if one[0].ours else ["joined rows", "split"])


@pytest.mark.parametrize("joined", [False, True])
def test_both_layouts_of_the_first_layers_give_the_same(joined: bool) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    own, inputs = model("chain"), Inputs.of_requests(model("chain"), 2, 4)
    exact, _ = peers.exact_scores(own, inputs.x())
    assert inputs.requests is not None
    dense = dense_graph(own.plan, own.weights, own.fusion, joined)
    split = split_graph(own.plan, own.weights, own.fusion, own.user_width, True, joined)
    fed: dict[str, Any] = {"user": inputs.requests.user, "item": inputs.requests.item}
    for graph, feed in ((dense, {"x": inputs.x()}), (split, {**fed, "request": inputs.requests.request})):
        session = runtime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        np.testing.assert_allclose(session.run(None, feed)[0], exact, atol=1e-6)


def test_compiled_scores_are_the_references() -> None:
    """The compiler takes seconds even for a small network: one of them, in both precisions."""
    with threads_of(1):
        entries = enter(model("chain"), Inputs.dense(model("chain"), 4), 1, [peers.Compiled, peers.CompiledBfloat16])
    assert [entry.problem for entry in entries] == [None, None]


def test_requests_of_different_lengths_join_to_their_rows() -> None:
    user, item = np.float32([[1], [2], [3]]), np.arange(4, dtype=np.float32)[:, None]
    requests = Requests(user, item, np.array([0, 1, 1, 4]))
    assert requests.joined().tolist() == [[1, 0], [3, 1], [3, 2], [3, 3]]
    assert requests.joined(2).tolist() == [[1, 0], [3, 1]]
    assert Requests(user[:1], item, np.array([0, 4])).request is None


class Wrong(peers.Eager):
    name = "wrong"

    def dense(self, x: peers.Floats) -> Any:
        score = super().dense(x)
        return lambda: (score()[0] + 3e-4, score()[1])


class WrongScore(peers.Eager):
    name = "wrong score"

    def dense(self, x: peers.Floats) -> Any:
        score = super().dense(x)
        return lambda: (score()[0], score()[1] * 1.01)


class Broken(peers.Eager):
    name = "broken"

    def dense(self, x: peers.Floats) -> Any:
        raise RuntimeError("no such operator\nand more")


class Missing(peers.Eager):
    name = "missing"
    needs = ("a_library_nobody_has",)


def test_who_is_wrong_or_fails_is_reported_and_not_timed() -> None:
    own = model("chain")
    everyone = (*peers.OURS, peers.Eager, Wrong, WrongScore, Broken, Missing)
    entries = {e.name: e for e in hold(own, Inputs.dense(own, 8), 1, Schedule(rounds=1), everyone)}
    assert entries["resflow"].timing.turns and entries["eager"].timing.turns
    problems = {name: entry.problem or "" for name, entry in entries.items()}
    assert problems["wrong"].startswith("wrong: probabilities off by 3.0e-04")
    assert problems["wrong score"].startswith("wrong: probabilities off by")
    assert problems["broken"] == "failed: RuntimeError: no such operator"
    assert problems["missing"] == "a_library_nobody_has is not installed"
    assert not any(entries[name].timing.turns for name in ("wrong", "wrong score", "broken", "missing"))
    best = best_peer(list(entries.values()))
    assert best is not None and best.name == "eager"


def test_the_best_peer_is_the_fastest_of_the_kind_asked_for() -> None:
    def entry(contestant: type[peers.Contestant], way: str, seconds: float) -> contest.Entry:
        return contest.Entry(contestant, way, timing=Timing([[seconds]]))

    slow, fast = entry(peers.Eager, "split", 3.0), entry(peers.OpenVinoBfloat16, "split", 1.0)
    joined, ours = entry(peers.Eager, "joined rows", 2.0), entry(peers.Resflow, "split", 0.5)
    entries = [slow, fast, joined, ours, contest.Entry(peers.OnnxRuntime, "split", problem="missing")]
    assert best_peer(entries) is fast
    assert best_peer(entries, precision="float32") is joined
    assert best_peer(entries, precision="float32", way="split") is slow
    assert best_peer([ours]) is None


def test_threads_and_gradients_are_put_back() -> None:
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError), threads_of(before + 1):
        assert torch.get_num_threads() == before + 1 and torch.is_inference_mode_enabled()
        raise RuntimeError
    assert torch.get_num_threads() == before and not torch.is_inference_mode_enabled()
