"""The module: fused in eval mode, the reference in training, never a stale weight."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from resflow_kernels import ESMM, NSE, Additive, ExpectedValue, Multiplicative, ResFlow
from resflow_kernels.nn import fused
from resflow_kernels.testing import assert_exact
from tests.support.writes import WRITES

SETTINGS: dict[str, dict[str, object]] = {
    "the paper's": {"norm": "batch", "input_norm": True},
    "norm before the activation": {"norm": "batch", "norm_after_activation": False, "activation": "relu"},
    "no norm": {"activation": "leaky_relu"},
    "gelu": {"activation": "gelu", "norm": "batch"},
    "gelu_tanh": {"activation": "gelu_tanh"},
    "silu": {"activation": "silu"},
    "tanh": {"activation": "tanh"},
    "sigmoid": {"activation": "sigmoid"},
    "identity": {"activation": "identity"},
    "logit residual alone": {"feature_residual": False},
    "feature residual alone": {"logit_residual": False},
    "non-increasing": {"non_increasing": True},
    "a tree": {"parents": (-1, 0, 0), "norm": "batch"},
    "roots": {"parents": (-1, -1, -1)},
    "multiplicative": {"fusion": Multiplicative((0.5, 1, 2))},
    "expected value": {"fusion": ExpectedValue((0, 1, 5, 20))},
}


def make(settings: dict[str, object], make_model: Callable[..., ResFlow] = ResFlow) -> ResFlow:
    """A model with lived-in statistics."""
    torch.manual_seed(1)
    model = make_model(24, (20, 10), ("click", "cart", "order"), **settings)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.normal_(0, 0.5)
                module.running_var.uniform_(0.5, 2)
                module.weight.normal_(1, 0.2)
                module.bias.normal_(0, 0.2)
    return model.eval()


@pytest.mark.parametrize("name", SETTINGS)
def test_fused_scores_are_those_of_the_modules_own_layers(name: str) -> None:
    model = make(SETTINGS[name])
    x = torch.randn(70, 24)
    user, item, offsets = torch.randn(3, 10), torch.randn(70, 14), torch.tensor([0, 20, 20, 70])
    with torch.no_grad():
        got, by_request = model(x), model.request_scores(user, item, offsets)
        best = model.request_topk(user, item, offsets, 5)
        joined = torch.cat((user.repeat_interleave(offsets.diff(), 0), item), 1)
        assert all(torch.equal(a, b) for a, b in zip(by_request, model(joined), strict=True))
        assert torch.equal(best.scores[2], by_request.score[20:].sort(descending=True).values[:5])
        assert torch.equal(model.dense_topk(x, 1).scores[0], got.score.max()[None])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # float64 goes to the reference, and says so
            exact = model.double()(x.double())
    assert_exact(got, exact, model.fusion_weights)


def test_esmm_and_nse_are_settings() -> None:
    x = torch.randn(30, 24)
    with torch.no_grad():
        esmm, nse = make({}, ESMM), make({}, NSE)
        own = esmm._reference_logits  # conditional heads inside
        assert not nse.plan.feature_residual and not nse.plan.logit_residual
        conditional = NSE(24, (20, 10), ("click", "cart", "order")).eval()
        conditional.load_state_dict(esmm.state_dict())
        steps = conditional(x).probs
        torch.testing.assert_close(esmm(x).probs, steps.cumprod(1), atol=2e-6, rtol=0)
        torch.testing.assert_close(esmm(x).logits, own(x), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(esmm(x).logits, torch.logit(steps.double().cumprod(1)).float(), atol=1e-4, rtol=1e-4)


def test_weights_of_a_call_a_request_and_a_candidate() -> None:
    model = make({"fusion": Additive((1, 20, 20))})
    user, item, offsets = torch.randn(2, 10), torch.randn(9, 14), torch.tensor([0, 4, 9])
    with torch.no_grad():
        plain = model.request_scores(user, item, offsets)
        torch.testing.assert_close(plain.score, (plain.probs * torch.tensor([1.0, 20, 20])).sum(1))
        for per, rows in (("call", None), ("request", 2), ("candidate", 9)):
            weights = torch.rand(3) if rows is None else torch.rand(rows, 3)
            spread = weights.repeat_interleave(offsets.diff(), 0) if per == "request" else weights
            got = model.request_scores(user, item, offsets, weights, per)
            torch.testing.assert_close(got.score, (got.probs * spread).sum(1))
        with pytest.raises(ValueError, match="weights_per must be one of call, request, candidate, got 'row'"):
            model(torch.randn(2, 24), torch.ones(3), "row")


def _edit(change: Callable[[ResFlow], object]) -> Callable[[ResFlow], object]:
    return change


def _optimizer_step(model: ResFlow) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with torch.enable_grad():
        model.train()(torch.randn(32, 24)).score.sum().backward()
    optimizer.step()
    model.eval()


CHANGES: dict[str, Callable[[ResFlow], object]] = {
    "in-place edit": lambda m: m.heads[1].bias.add_(1),
    **{f"weight, {how}": lambda m, write=write: write(m.towers[1][1].linear.weight) for how, write in WRITES.items()},
    **{f"bias, {how}": lambda m, write=write: write(m.heads[1].bias) for how, write in WRITES.items()},
    "replaced parameter": lambda m: setattr(m.heads[1], "bias", nn.Parameter(torch.ones(1) * 3)),
    "replaced layer": lambda m: setattr(m.towers[0][0], "linear", nn.Linear(24, 20)),
    "running statistics": lambda m: m.towers[2][1].norm.running_mean.add_(1),
    "training forward": lambda m: (m.train()(torch.randn(64, 24) * 3), m.eval()),
    "load_state_dict": lambda m: m.load_state_dict(
        {k: v + 0.5 if v.is_floating_point() else v for k, v in m.state_dict().items()}
    ),
    "load_state_dict assign": lambda m: m.load_state_dict(
        {k: v + 0.5 if v.is_floating_point() else v for k, v in m.state_dict().items()}, assign=True
    ),
    "optimizer step": _optimizer_step,
    "there and back in dtype": lambda m: m.bfloat16().float(),
    "initialisation": lambda m: nn.init.normal_(m.towers[1][0].linear.weight),
}


@pytest.mark.parametrize("change", CHANGES)
def test_weights_are_repacked_after(change: str) -> None:
    model = make(SETTINGS["the paper's"])
    x = torch.randn(20, 24)
    with torch.no_grad():
        before = model(x)
        CHANGES[change](model)
        after = model(x)
        assert not torch.equal(before.logits, after.logits)
        torch.testing.assert_close(after.logits, model._reference_logits(x), atol=1e-5, rtol=1e-5)


def test_weights_are_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make({})
    packs: list[int] = []
    pack = fused.ops.pack_towers
    monkeypatch.setattr(fused.ops, "pack_towers", lambda *a: packs.append(1) or pack(*a))
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(4, 24))
        assert len(packs) == 1
        model.to("cpu"), model.eval(), model.requires_grad_(False)
        with torch.inference_mode():
            model(torch.randn(4, 24))
        assert len(packs) == 1


def test_packed_weights_made_in_inference_mode_serve_everywhere() -> None:
    model = make({})
    x = torch.randn(4, 24)
    with torch.inference_mode():
        first = model(x).score.clone()
    with torch.no_grad():
        assert torch.equal(model(x).score, first)
    with torch.inference_mode():
        inference_model = make({})
        assert torch.equal(inference_model(x).score, first)
        inference_model.heads[0].bias.add_(1)
        assert not torch.equal(inference_model(x).score, first)


@pytest.mark.parametrize("change", [nn.Module.half, nn.Module.bfloat16, nn.Module.double])
def test_a_packed_model_keeps_its_precision_in_a_module_of_another(change: Callable[[nn.Module], nn.Module]) -> None:
    packed, x = make({"fusion": Additive((1, 20, 20))}).packed(), torch.randn(5, 24)
    want = packed(x)
    service = change(nn.ModuleList([nn.Linear(3, 3), packed]))
    assert service[0].weight.dtype != torch.float32
    assert all(torch.equal(a, b) for a, b in zip(service[1](x), want, strict=True))


def test_training_has_gradients_and_batch_statistics() -> None:
    model = make(SETTINGS["the paper's"]).train()
    before = model.input_norm.running_mean.clone()
    model(torch.randn(16, 24)).logits.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    assert not torch.equal(model.input_norm.running_mean, before)


def test_eval_with_gradients_keeps_them() -> None:
    model = make({})
    x = torch.randn(3, 24, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score = model(x).score
    score.sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


@pytest.mark.parametrize("layout", ["transposed", "strided", "sliced"])
def test_any_layout_of_x(layout: str) -> None:
    model = make({})
    x = torch.randn(12, 24)
    other = {
        "transposed": x.T.contiguous().T,
        "strided": x.repeat_interleave(2, 0)[::2],
        "sliced": torch.cat((x, x), 1)[:, :24],
    }
    with torch.no_grad():
        assert torch.equal(model(other[layout]).score, model(x).score)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"activation": "swish"}, "activation must be one of identity, relu"),
        ({"norm": "layer"}, "norm must be None or 'batch', got 'layer'"),
        ({"parents": (-1, 0)}, r"parents must be one per task \(3\), got 2"),
        ({"fusion": Additive((1, 2))}, "Additive: weights must be 3 numbers for 3 tasks, got 2"),
        ({"conditional": True}, "logit_residual must be False with a conditional head"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        ResFlow(24, (20,), ("a", "b", "c"), **settings)


def test_bad_input_of_a_module_is_named_in_both_modes() -> None:
    model = make({})
    for mode in (model.eval(), model.train()):
        with (
            torch.no_grad(),
            pytest.raises(ValueError, match=r"dense_scores: x must be a matrix with 24 columns, got \[2, 23\]"),
        ):
            mode(torch.randn(2, 23))


def test_state_dict_has_ordinary_names() -> None:
    names = set(make(SETTINGS["the paper's"]).state_dict())
    assert {"input_norm.weight", "towers.0.0.linear.weight", "towers.2.1.norm.running_var", "heads.1.bias"} <= names
    assert not any("packed" in name or "fusion" in name for name in names)


def test_reference_serves_what_the_ops_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make({})
    x = torch.randn(5, 24)
    with torch.no_grad():
        expected = model(x)
        monkeypatch.setattr(fused.ops, "unsupported_reason", lambda *_, **__: "no library")
        fused._warned.clear()
        model = deepcopy(model)  # it has not been asked before what serves it
        with pytest.warns(UserWarning, match="scores with the slow PyTorch reference: no library") as said:
            got = model(x)
        assert len(said) == 1  # nothing about training
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    best: Tensor = model.dense_topk(x, 2).positions
    assert best.shape == (1, 2)


@pytest.mark.parametrize(("precision", "bound"), [("bfloat16", 1e-2), ("int8", 3e-2)])
def test_precision_is_a_setting_of_module_and_packed_form(precision: str, bound: float) -> None:
    exact, rounded = make({}), make({"precision": precision})
    rounded.load_state_dict(exact.state_dict())
    x = torch.randn(50, 24)
    with torch.no_grad():
        probs = rounded(x).probs
        assert torch.equal(probs, exact.packed(precision)(x).probs)
        assert not torch.equal(probs, exact(x).probs)
        torch.testing.assert_close(probs, exact(x).probs, atol=bound, rtol=0)
        rounded.train()
        torch.testing.assert_close(rounded(x).probs, exact(x).probs)  # training is not rounded


def test_a_model_in_a_precision_of_gpus_scores_in_float32_on_the_cpu_and_says_so() -> None:
    """It can be tried where it was written; its packed form, which has nothing but rounded weights, refuses."""
    exact, rounded = make({}), make({"precision": "float16"})
    rounded.load_state_dict(exact.state_dict())
    x = torch.randn(50, 24)
    fused._warned.clear()
    with torch.no_grad():
        with pytest.warns(UserWarning, match=r"scores in float32: on this device \(cpu\) .*, not in float16"):
            got = rounded(x)
        torch.testing.assert_close(got.probs, exact(x).probs)
        with pytest.raises(ValueError, match=r"plan precision must be one of float32, bfloat16, int8.* on the CPU"):
            rounded.packed()(x)
    rounded.train()(x).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in rounded.parameters())


def test_an_exported_model_in_eval_mode_holds_the_scoring_op() -> None:
    """Its parameters ask for gradients, which an exported program in eval mode does not compute."""
    model = make({})
    program = torch.export.export(model, (torch.randn(5, 24),))
    called = {str(node.target) for node in program.graph.nodes if "resflow" in str(node.target)}
    assert "resflow.dense_scores.default" in called and not any("train" in name for name in called)
