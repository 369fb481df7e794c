"""The paper's baselines against a recomputation from their weights, and the registry of methods."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from resflow_kernels import Additive, ExpectedValue, FeatureRanker, Multiplicative, ResFlow, Scorer, bundle
from resflow_kernels.core.plan import chain
from resflow_kernels.nn import fused
from resflow_kernels.nn.baselines import AITM, Baseline, MMoE, SharedBottom
from resflow_kernels.nn.methods import METHODS, make_ranker
from resflow_kernels.ops import FeatureIds

TASKS = ("click", "cart", "order")
BASELINES = ("shared_bottom", "mmoe", "aitm", "ple", "dcnv2", "dlrm")
Weights = dict[str, Tensor]


def lived_in(model: nn.Module, seed: int = 0) -> nn.Module:
    """In eval mode and float64, with statistics and slopes that training would have moved."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.double().state_dict().items():
            if name.endswith(("norm.weight", "running_var", "activation.weight")):
                tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) + 0.5)
            elif name.endswith(("norm.bias", "running_mean", "info.1.weight")):
                tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype) / 3)
    return model.eval()


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", torch.zeros((), dtype=x.dtype))


def mlp(w: Weights, name: str, x: Tensor) -> Tensor:
    """PReLU layers with a BatchNorm after the activation, as many as the weights have."""
    at = 0
    while f"{name}.{at}.linear.weight" in w:
        layer = f"{name}.{at}"
        x = linear(w, f"{layer}.linear", x)
        x = torch.where(x > 0, x, x * w[f"{layer}.activation.weight"])
        deviation = (w[f"{layer}.norm.running_var"] + 1e-3).sqrt()
        x = (x - w[f"{layer}.norm.running_mean"]) / deviation * w[f"{layer}.norm.weight"] + w[f"{layer}.norm.bias"]
        at += 1
    return x


def shared_bottom_logits(w: Weights, x: Tensor, parents: tuple[int, ...]) -> list[Tensor]:
    bottom = mlp(w, "bottom", x)
    return [linear(w, f"heads.{k}", mlp(w, f"towers.{k}", bottom)) for k in range(len(parents))]


def mmoe_logits(w: Weights, x: Tensor, parents: tuple[int, ...]) -> list[Tensor]:
    count = len({name.split(".")[1] for name in w if name.startswith("experts.")})
    logits = []
    for k in range(len(parents)):
        raw = (x @ w[f"gates.{k}.weight"].T).exp()
        mixed = sum(raw[:, e, None] / raw.sum(1, keepdim=True) * mlp(w, f"experts.{e}", x) for e in range(count))
        logits.append(linear(w, f"heads.{k}", mlp(w, f"towers.{k}", mixed)))
    return logits


def aitm_logits(w: Weights, x: Tensor, parents: tuple[int, ...]) -> list[Tensor]:
    last: list[Tensor] = []
    for k, parent in enumerate(parents):
        own = mlp(w, f"towers.{k}", x)
        if parent >= 0:
            edge = f"transfers.{k}"
            info = linear(w, f"{edge}.info.0", last[parent])
            info = torch.where(info > 0, info, info * w[f"{edge}.info.1.weight"])
            rows = []
            for a, b in zip(own, info, strict=True):  # a candidate at a time
                h1, h2, h3 = ([w[f"{edge}.{h}.weight"] @ u for u in (a, b)] for h in ("value", "query", "key"))
                raw = [math.exp(float(q @ k_) / math.sqrt(len(a))) for q, k_ in zip(h2, h3, strict=True)]
                rows.append((raw[0] * h1[0] + raw[1] * h1[1]) / sum(raw))
            own = torch.stack(rows)
        last.append(own)
    return [linear(w, f"heads.{k}", hidden) for k, hidden in enumerate(last)]


def ple_logits(w: Weights, x: Tensor, parents: tuple[int, ...]) -> list[Tensor]:
    """One level: a task mixes its own experts and the shared ones, which come last."""
    tasks = len(parents)
    logits = []
    for k in range(tasks):
        own = [mlp(w, f"levels.0.experts.{group}.0", x) for group in (k, tasks)]
        raw = (x @ w[f"levels.0.gates.{k}.weight"].T).exp()
        mixed = sum(raw[:, e, None] / raw.sum(1, keepdim=True) * expert for e, expert in enumerate(own))
        logits.append(linear(w, f"heads.{k}", mlp(w, f"towers.{k}", mixed)))
    return logits


def dcnv2_logits(w: Weights, x: Tensor, parents: tuple[int, ...]) -> list[Tensor]:
    crossed = x
    for layer in range(3):
        crossed = x * linear(w, f"crosses.{layer}", crossed) + crossed
    both = torch.cat((crossed, mlp(w, "tower", x)), 1)
    return [linear(w, f"heads.{k}", both) for k in range(len(parents))]


def dlrm_logits(w: Weights, x: Tensor, parents: tuple[int, ...]) -> list[Tensor]:
    width = next((width for width in (32, 16, 8, 4, 2) if 2 * width <= x.shape[1]), 1)
    numeric = x.shape[1] % width
    fields = list(x[:, numeric:].split(width, dim=1))
    bottom = [mlp(w, "bottom", x[:, :numeric])] if numeric else []
    fields = bottom + fields
    products = [(a * b).sum(1, keepdim=True) for at, a in enumerate(fields) for b in fields[at + 1 :]]
    hidden = mlp(w, "top", torch.cat((*bottom, *products), 1))
    return [linear(w, f"heads.{k}", hidden) for k in range(len(parents))]


RECOMPUTED: dict[str, Callable[[Weights, Tensor, tuple[int, ...]], list[Tensor]]] = {
    "shared_bottom": shared_bottom_logits,
    "mmoe": mmoe_logits,
    "aitm": aitm_logits,
    "ple": ple_logits,
    "dcnv2": dcnv2_logits,
    "dlrm": dlrm_logits,
}


@given(
    method=st.sampled_from(BASELINES),
    width=st.integers(2, 13),
    hidden=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    parents=st.integers(1, 5).flatmap(lambda k: st.tuples(*(st.integers(-1, task - 1) for task in range(k)))),
    rows=st.integers(1, 6),
    input_norm=st.booleans(),
)
def test_scores_are_those_recomputed_from_the_weights(
    method: str, width: int, hidden: list[int], parents: tuple[int, ...], rows: int, input_norm: bool
) -> None:
    tasks = [f"task {k}" for k in range(len(parents))]
    torch.manual_seed(width)
    model = lived_in(make_ranker(method, width, hidden, tasks, parents, input_norm=input_norm, fusion=Additive()))
    w, x = model.state_dict(), torch.randn(rows, width, dtype=torch.float64)
    inner = x
    if input_norm:
        deviation = (w["input_norm.running_var"] + 1e-3).sqrt()
        inner = (x - w["input_norm.running_mean"]) / deviation * w["input_norm.weight"] + w["input_norm.bias"]
    expected = torch.cat(RECOMPUTED[method](w, inner, parents), 1)
    with torch.no_grad():
        logits, probs, score = model(x)
    torch.testing.assert_close(logits, expected, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(probs, 1 / (1 + (-expected).exp()), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(score, probs.sum(1), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tasks", [("click",), TASKS])
def test_gradients_reach_every_parameter(method: str, tasks: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    model = make_ranker(method, 11, (9, 5), tasks).train()
    target = torch.rand(32, len(tasks))
    F.binary_cross_entropy_with_logits(model(torch.randn(32, 11)).logits, target).backward()
    unreached = [
        name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    # A gate over one expert is constant: its softmax is 1 whatever its weights.
    assert unreached == (["gates.0.weight"] if method == "mmoe" and len(tasks) == 1 else [])


@pytest.mark.parametrize("method", METHODS)
def test_a_score_depends_on_no_other_candidate(method: str) -> None:
    model = lived_in(make_ranker(method, 11, (9, 5), TASKS)).float()
    x, order = torch.randn(40, 11), torch.randperm(40)
    with torch.no_grad():
        whole = model(x)
        for got, expected in zip(model(x[order]), whole, strict=True):
            torch.testing.assert_close(got, expected[order])
        alone = torch.cat([model(row[None]).logits for row in x])
        torch.testing.assert_close(alone, whole.logits)
        spoiled = x.clone()
        spoiled[7] = torch.nan
        kept = torch.arange(40) != 7
        got = model(spoiled)
        torch.testing.assert_close(got.logits[kept], whole.logits[kept])
        assert got.logits[7].isnan().all() and got.score[7].isnan()


def problem(rows: int) -> tuple[Tensor, Tensor]:
    """Nested labels of a learnable rule."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(rows, 12, generator=generator)
    steps = torch.stack((x[:, 0] + x[:, 1] > 0, x[:, 2] - x[:, 3] > 0, x[:, 4] > 0), 1)
    return x, steps.cumprod(1).float()


@pytest.mark.parametrize("method", METHODS)
def test_training_learns(method: str) -> None:
    if method == "dlrm":
        pytest.skip("it learns by its fields, which are rows of data here and not embeddings")
    torch.manual_seed(0)
    model = make_ranker(method, 12, (16, 8), TASKS).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    x, labels = problem(512)
    losses = []
    for _ in range(60):
        loss = F.binary_cross_entropy_with_logits(model(x).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    rates = labels.mean(0)
    constant = float(F.binary_cross_entropy(rates.expand_as(labels), labels))
    assert losses[-1] < 0.5 * constant < losses[0]


@pytest.mark.parametrize("method", BASELINES)
def test_calls_of_requests_and_top_k_agree_with_the_dense_form(method: str) -> None:
    model = make_ranker(method, 11, (9, 5), TASKS, fusion=Additive((1, 5, 20))).eval()
    user, item, offsets = torch.randn(3, 4), torch.randn(20, 7), torch.tensor([0, 8, 8, 20])
    joined = torch.cat((user.repeat_interleave(offsets.diff(), 0), item), 1)
    with torch.no_grad():
        dense = model(joined)
        by_request = model.request_scores(user, item, offsets)
        assert all(torch.equal(a, b) for a, b in zip(by_request, dense, strict=True))
        for best in (model.dense_topk(joined, 3, offsets), model.request_topk(user, item, offsets, 3)):
            assert torch.equal(best.scores[2], dense.score[8:].sort(descending=True).values[:3])
            assert best.positions[1].tolist() == [-1, -1, -1]
        assert torch.equal(model.dense_topk(joined, 1).scores[0], dense.score.max()[None])


@pytest.mark.parametrize("method", BASELINES)
def test_fusion_is_the_models_or_the_calls(method: str) -> None:
    model = make_ranker(method, 11, (9,), TASKS, fusion=Multiplicative((0.5, 1, 2)))
    x = torch.randn(6, 11)
    with torch.no_grad():
        _, probs, score = model.eval()(x)
        torch.testing.assert_close(score, (probs ** torch.tensor([0.5, 1, 2])).prod(1))
        own = torch.rand(6, 3)
        torch.testing.assert_close(model(x, own, "candidate").score, (probs**own).prod(1))
    assert make_ranker(method, 11, (9,), TASKS, fusion=ExpectedValue()).fusion_weights.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("method", METHODS)
def test_models_copy_pickle_and_load(method: str) -> None:
    model = make_ranker(method, 11, (9, 5), TASKS).eval()
    x = torch.randn(4, 11)
    with torch.no_grad():
        expected = model(x).score
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other(x).score, expected)
        fresh = make_ranker(method, 11, (9, 5), TASKS).eval()
        fresh.load_state_dict(model.state_dict())
        assert torch.equal(fresh(x).score, expected)


@pytest.mark.parametrize("method", BASELINES)
def test_embeddings_in_front(method: str) -> None:
    towers = make_ranker(method, 7, (9, 5), TASKS)
    features = [nn.Embedding(10, 4), nn.EmbeddingBag(6, 3, mode="sum")]
    ranker = FeatureRanker(features, towers)
    ids = FeatureIds(torch.tensor([[7], [3]]), torch.tensor([1, 4, 4]), torch.tensor([0, 2, 3]))
    ranker.train()(ids).logits.sum().backward()
    assert features[0].weight.grad is not None and features[1].weight.grad.any()
    ranker.eval()
    rows = torch.stack(
        [
            torch.cat((features[0].weight[7], features[1].weight[1] + features[1].weight[4])),
            torch.cat((features[0].weight[3], features[1].weight[4])),
        ]
    )
    torch.testing.assert_close(ranker(ids).logits, towers(rows).logits)
    with torch.no_grad():
        assert torch.equal(ranker(ids).probs, ranker.packed()(ids).probs)


def count(model: nn.Module) -> int:
    """Parameters besides biases, slopes and BatchNorms."""
    return sum(p.numel() for p in model.parameters() if p.dim() == 2)


def test_parameter_counts_are_those_documented() -> None:
    width, hidden, tasks = 40, (24, 12), len(TASKS)
    tower = 40 * 24 + 24 * 12
    counts = {method: count(make_ranker(method, width, hidden, TASKS)) for method in METHODS}
    for method in ("nse", "esmm", "resflow", "resflow_fr", "resflow_lr"):
        assert counts[method] == tasks * (tower + 12)
    assert counts["aitm"] == counts["nse"] + 2 * 4 * 12**2
    assert counts["mmoe"] == counts["nse"] + tasks**2 * width
    assert counts["shared_bottom"] == counts["nse"] - (tasks - 1) * 40 * 24


def test_how_layers_are_split_is_a_setting() -> None:
    assert [len(SharedBottom(9, (8, 7, 6), TASKS, tower_layers=n).bottom) for n in (0, 1, 2)] == [3, 2, 1]
    assert len(SharedBottom(9, (8,), TASKS).towers[0]) == 0
    model = MMoE(9, (8, 7, 6), TASKS, experts=5, tower_layers=2)
    assert len(model.experts) == 5 and len(model.experts[0]) == 1 and len(model.towers[0]) == 2


def test_methods_are_what_their_names_say() -> None:
    plans = {method: make_ranker(method, 9, (8,), TASKS).plan for method in METHODS}
    switches = {method: (plan.feature_residual, plan.logit_residual, plan.head) for method, plan in plans.items()}
    assert switches["nse"] == (False, False, "residual")
    assert switches["esmm"] == (False, False, "conditional")
    assert switches["resflow"] == (True, True, "residual")
    assert switches["resflow_fr"] == (True, False, "residual")
    assert switches["resflow_lr"] == (False, True, "residual")
    for method, entry in METHODS.items():
        model = make_ranker(method, 9, (8,), TASKS, {"order": "click"}, activation="relu")
        assert model.plan.parents == (-1, -1, 0) and model.tasks == TASKS
        assert isinstance(model, ResFlow) != isinstance(model, Baseline)
        if entry.has_constraint:
            assert make_ranker(method, 9, (8,), TASKS, non_increasing=True).plan.non_increasing
        else:
            with pytest.raises(ValueError, match="non_increasing must be False for any method but resflow, resflow_lr"):
                make_ranker(method, 9, (8,), TASKS, non_increasing=True)


@pytest.mark.parametrize("method", METHODS)
def test_topology_matters_where_the_registry_says_so(method: str) -> None:
    x = torch.randn(20, 9)

    def logits(parents: str) -> Tensor:
        torch.manual_seed(5)
        with torch.no_grad():
            return make_ranker(method, 9, (8,), TASKS, parents).eval()(x).logits

    assert torch.equal(logits("chain"), logits("star")) != METHODS[method].has_topology


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: make_ranker("mtl", 9), "make_ranker: method must be one of nse, esmm, aitm, .*, got 'mtl'"),
        (lambda: make_ranker("aitm", 9, experts=3), r"settings must be arguments of 'aitm', got \['experts'"),
        (lambda: make_ranker("mmoe", 9, norm="layer"), "norm must be None or 'batch', got 'layer'"),
        (lambda: make_ranker("mmoe", 9, experts=0), "MMoE: experts must be at least 1, got 0"),
        (lambda: SharedBottom(9, activation="swish"), "activation must be one of identity, relu"),
        (lambda: SharedBottom(9, (8, 7), tower_layers=2), "tower_layers must be 0 to 1 of 2 hidden layers, got 2"),
        (lambda: MMoE(9, (8,), tower_layers=-1), "tower_layers must be 0 to 0 of 1 hidden layers, got -1"),
        (lambda: AITM(9, ()), r"Plan: hidden must be 1 to 16 widths, got \(\)"),
        (lambda: AITM(0), "Plan: in_features must be 1 to"),
        (lambda: AITM(9, tasks=()), "Plan: parents must be 1 to 64 tasks"),
        (lambda: AITM(9, tasks=TASKS, parents=(-1, 0)), r"Plan: parents must be one per task \(3\), got 2"),
        (lambda: AITM(9, fusion=Additive((1, 2, 3))), "Additive: weights must be 2 numbers for 2 tasks, got 3"),
        (lambda: AITM(9)(torch.randn(2, 8)), r"dense_scores: x must be a matrix with 9 columns, got \[2, 8\]"),
        (lambda: AITM(9)(torch.randn(2, 9), torch.ones(2), "row"), "weights_per must be one of call, request"),
    ],
)
def test_bad_settings_are_named(make: Callable[[], object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()


def test_default_parents_are_a_chain() -> None:
    assert AITM(9, tasks=TASKS).plan.parents == chain(3)


@pytest.mark.parametrize("settings", [{}, {"input_norm": True}, {"norm": None, "activation": "gelu"}])
@pytest.mark.parametrize("method", BASELINES)
def test_programs_score_as_the_layers_do(method: str, settings: dict[str, Any]) -> None:
    """In eval mode a baseline is a tile program: within float32 of its layers in float64, bitwise its packed form."""
    model = make_ranker(method, 50, (20, 9), TASKS, **settings).eval()
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 2.0)
    x = torch.randn(70, 50)
    with torch.no_grad():
        got = model(x)
        exact = copy.deepcopy(model).double()._logits(x.double())
        assert float((got.logits - exact).abs().max()) < 1e-5 * float(1 + exact.abs().max())
        assert torch.equal(got.score, model.packed()(x).score)
        assert float((model.packed("bfloat16")(x).probs - got.probs).abs().max()) < 2e-2
        model.heads[0].bias.add_(1.0)
        assert float((model(x).logits - got.logits)[:, 0].min()) > 0.99  # packed again


@pytest.mark.parametrize("method", BASELINES)
def test_an_altered_baseline_is_scored_by_its_own_layers(method: str) -> None:
    model = make_ranker(method, 50, (20, 9), TASKS).eval()
    model.heads[0].register_forward_hook(lambda module, inputs, output: output + 1)
    x = torch.randn(7, 50)
    fused._warned.clear()
    with (
        torch.no_grad(),
        pytest.warns(UserWarning, match="scores with the slow PyTorch reference: its Linear has hooks"),
    ):
        assert torch.equal(model(x).logits, model._logits(x))
    with pytest.raises(ValueError, match="layers must be as they were made to have canonical weights"):
        model.packed()


@pytest.mark.parametrize("method", BASELINES)
def test_a_bundle_of_a_baseline(method: str, tmp_path: Path) -> None:
    model = make_ranker(method, 50, (20, 9), TASKS, fusion=Additive((1, 5, 20))).eval()
    bundle.save_model(tmp_path / "model.safetensors", model)
    x = torch.randn(7, 50)
    with torch.no_grad():
        scores = model(x)
        loaded = bundle.load_model(tmp_path / "model.safetensors")
        assert torch.equal(loaded(x).score, scores.score)
    scorer = Scorer.load(tmp_path / "model.safetensors")
    assert np.array_equal(scorer.dense_scores(x.numpy()).score, scores.score.numpy())
    offsets = [0, 3, 7]
    best = scorer.request_topk(x[:2, :20].numpy(), x[:, 20:].numpy(), offsets, 2)
    assert best.positions.shape == (2, 2)
