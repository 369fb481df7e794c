"""Every implementation scores as the reference does, in every kind of network; wrong or failing ones are reported."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from resflow_kernels.benchmark import baselines, suite
from resflow_kernels.benchmark.baselines import Model, Requests, threads_of
from resflow_kernels.benchmark.interleave import Schedule, Timing
from resflow_kernels.benchmark.onnx_graph import dense_graph, split_graph
from resflow_kernels.benchmark.suite import Inputs, best_baseline, run, setup
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
QUICK = [baseline for baseline in baselines.BASELINES if baseline.name != "torch.compile"]


def model(name: str) -> Model:
    plan, fusion = PLANS[name]
    return Model(plan, [weight.numpy() for weight in random_weights(plan)], fusion, user_width=7)


def available(implementation: type[baselines.Implementation]) -> type[baselines.Implementation]:
    missing = implementation.missing()
    if missing is not None:
        pytest.skip(f"{implementation.name}: {missing}")
    return implementation


@pytest.mark.parametrize("implementation", [*baselines.OURS, *QUICK], ids=baselines.label)
@pytest.mark.parametrize("name", PLANS)
def test_scores_are_the_references(implementation: type[baselines.Implementation], name: str) -> None:
    with threads_of(1):
        dense = setup(model(name), Inputs.dense(model(name), 11), 1, [available(implementation)])
        one = setup(model(name), Inputs.of_requests(model(name), 1, 6), 1, [implementation])
        several = setup(model(name), Inputs.of_requests(model(name), 3, 5), 1, [implementation])
    for entry in (*dense, *one, *several):
        assert entry.problem is None and entry.call is not None, (entry.name, entry.problem)
        assert entry.error <= suite.TOLERANCES[implementation.precision]
    assert [entry.way for entry in dense] == ["dense"]
    assert [entry.way for entry in one] == (["split"] if one[0].ours else ["joined rows", "split"])


@pytest.mark.parametrize("joined", [False, True])
def test_both_layouts_of_the_first_layers_give_the_same(joined: bool) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    chain, inputs = model("chain"), Inputs.of_requests(model("chain"), 2, 4)
    exact, _ = baselines.exact_scores(chain, inputs.x())
    assert inputs.requests is not None
    dense = dense_graph(chain.plan, chain.weights, chain.fusion, joined)
    split = split_graph(chain.plan, chain.weights, chain.fusion, chain.user_width, True, joined)
    fed: dict[str, Any] = {"user": inputs.requests.user, "item": inputs.requests.item}
    for graph, feed in ((dense, {"x": inputs.x()}), (split, {**fed, "request": inputs.requests.request})):
        session = runtime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        np.testing.assert_allclose(session.run(None, feed)[0], exact, atol=1e-6)


def test_compiled_scores_are_the_references() -> None:
    """The compiler takes seconds even for a small network, so one network is tested, in both precisions."""
    with threads_of(1):
        entries = setup(
            model("chain"), Inputs.dense(model("chain"), 4), 1, [baselines.Compiled, baselines.CompiledBfloat16]
        )
    assert [entry.problem for entry in entries] == [None, None]


def test_requests_of_different_lengths_join_to_their_rows() -> None:
    user, item = np.float32([[1], [2], [3]]), np.arange(4, dtype=np.float32)[:, None]
    requests = Requests(user, item, np.array([0, 1, 1, 4]))
    assert requests.joined().tolist() == [[1, 0], [3, 1], [3, 2], [3, 3]]
    assert requests.joined(2).tolist() == [[1, 0], [3, 1]]
    assert Requests(user[:1], item, np.array([0, 4])).request is None


class Wrong(baselines.Eager):
    name = "wrong"

    def dense(self, x: baselines.Floats) -> Any:
        score = super().dense(x)
        return lambda: (score()[0] + 3e-4, score()[1])


class WrongScore(baselines.Eager):
    name = "wrong score"

    def dense(self, x: baselines.Floats) -> Any:
        score = super().dense(x)
        return lambda: (score()[0], score()[1] * 1.01)


class Broken(baselines.Eager):
    name = "broken"

    def dense(self, x: baselines.Floats) -> Any:
        raise RuntimeError("no such operator\nand more")


class Missing(baselines.Eager):
    name = "missing"
    needs = ("a_library_nobody_has",)


def test_wrong_and_failing_implementations_are_reported_and_not_timed() -> None:
    chain = model("chain")
    implementations = (*baselines.OURS, baselines.Eager, Wrong, WrongScore, Broken, Missing)
    entries = {e.name: e for e in run(chain, Inputs.dense(chain, 8), 1, Schedule(rounds=1), implementations)}
    assert entries["resflow"].timing.rounds and entries["eager"].timing.rounds
    problems = {name: entry.problem or "" for name, entry in entries.items()}
    assert problems["wrong"].startswith("wrong: probabilities off by 3.0e-04")
    assert problems["wrong score"].startswith("wrong: probabilities off by")
    assert problems["broken"] == "failed: RuntimeError: no such operator"
    assert problems["missing"] == "a_library_nobody_has is not installed"
    assert not any(entries[name].timing.rounds for name in ("wrong", "wrong score", "broken", "missing"))
    best = best_baseline(list(entries.values()))
    assert best is not None and best.name == "eager"


def test_the_best_baseline_is_the_fastest_of_the_requested_kind() -> None:
    def entry(implementation: type[baselines.Implementation], way: str, seconds: float) -> suite.Entry:
        return suite.Entry(implementation, way, timing=Timing([[seconds]]))

    slow, fast = entry(baselines.Eager, "split", 3.0), entry(baselines.OpenVinoBfloat16, "split", 1.0)
    joined, ours = entry(baselines.Eager, "joined rows", 2.0), entry(baselines.Resflow, "split", 0.5)
    entries = [slow, fast, joined, ours, suite.Entry(baselines.OnnxRuntime, "split", problem="missing")]
    assert best_baseline(entries) is fast
    assert best_baseline(entries, precision="float32") is joined
    assert best_baseline(entries, precision="float32", way="split") is slow
    assert best_baseline([ours]) is None


def test_thread_count_and_gradients_are_restored() -> None:
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError), threads_of(before + 1):
        assert torch.get_num_threads() == before + 1 and torch.is_inference_mode_enabled()
        raise RuntimeError
    assert torch.get_num_threads() == before and not torch.is_inference_mode_enabled()
