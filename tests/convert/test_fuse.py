"""Users' own models and their replacements: the same outputs, the same structure, the same parameters."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree

from resflow_kernels.convert import CannotFuse, fuse, towers
from resflow_kernels.convert.graph.module import is_fused
from resflow_kernels.serving.bundle import BundleError, save_model

D = 12


def mlp(*widths: int, norm: bool = True, dropout: float = 0.0) -> nn.Sequential:
    parts: list[nn.Module] = []
    for a, b in pairwise(widths):
        parts += [nn.Linear(a, b), nn.PReLU(b), *([nn.BatchNorm1d(b, eps=1e-4)] if norm else []), nn.Dropout(dropout)]
    return nn.Sequential(*parts)


class Chain(nn.Module):
    """Both residuals, layer by layer, a tuple of probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ModuleList(nn.ModuleList([mlp(D, 10), mlp(10, 6)]) for _ in range(3))
        self.heads = nn.ModuleList(nn.Linear(6, 1) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        below, logit, probs = None, None, []
        for layers, head in zip(self.first, self.heads, strict=True):
            hidden, outputs = x, []
            for level, layer in enumerate(layers):
                hidden = layer(hidden)
                if below is not None:
                    hidden = hidden + below[level]
                outputs.append(hidden)
            own = head(hidden)
            logit = own if logit is None else own + logit
            below = outputs
            probs.append(torch.sigmoid(logit))
        return tuple(probs)


class TreeDict(nn.Module):
    """Two children of one parent, the children defined first, a dictionary out; squeezed logits."""

    def __init__(self) -> None:
        super().__init__()
        self.like, self.share, self.view = (mlp(D, 7, norm=False) for _ in range(3))
        self.like_out, self.share_out, self.view_out = (nn.Linear(7, 1) for _ in range(3))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        view = self.view(x)
        like, share = view + self.like(x), self.share(x) + view
        z = self.view_out(view).squeeze(-1)
        return {
            "like": (self.like_out(like).squeeze(-1) + z).sigmoid(),
            "share": torch.sigmoid(torch.add(z, self.share_out(share).squeeze(1))),
            "view": z,
        }


class Nse(nn.Module):
    """No residuals; BatchNorm on the input; a stack out."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(D)
        self.towers = nn.ModuleList(nn.Sequential(mlp(D, 9, 5), nn.Linear(5, 1)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return torch.stack([torch.sigmoid(tower(x))[:, 0] for tower in self.towers], dim=1)


class Embedded(nn.Module):
    """Embeddings and a concatenation in front, BatchNorm before functional activations, logits residual alone."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(20, 5), nn.EmbeddingBag(30, 7, mode="sum")
        self.layers = nn.ModuleList(nn.Linear(D, 8) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm1d(8) for _ in range(2))
        self.outs = nn.ModuleList(nn.Linear(8, 1) for _ in range(2))

    def forward(self, user: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat((self.user(user), self.item(items)), dim=1)
        click = F.gelu(self.norms[0](self.layers[0](x)), approximate="tanh")
        order = F.gelu(self.norms[1](self.layers[1](x)), approximate="tanh")
        z = self.outs[0](click)
        both = z + self.outs[1](order)
        return z, both * 2 + 1


class NonIncreasing(nn.Module):
    """The constraint, in a form of choice; one Linear a layer and no activation in the last."""

    def __init__(self, form: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.form = form
        self.a, self.b = (nn.Sequential(nn.Linear(D, 6), nn.LeakyReLU(0.2), nn.Linear(6, 4)) for _ in range(2))
        self.a_out, self.b_out = nn.Linear(4, 1), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        z = self.a_out(self.a(x))
        return [z.sigmoid(), torch.sigmoid(self.form(self.b_out(self.b(x))) + z)]


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "chain": (Chain, 3),
    "tree": (TreeDict, 3),
    "nse": (Nse, 2),
    "embedded": (Embedded, 2),
    "clamp": (lambda: NonIncreasing(lambda r: torch.clamp(r, max=0)), 2),
    "clamp method": (lambda: NonIncreasing(lambda r: r.clamp(max=0.0)), 2),
    "clamp_max": (lambda: NonIncreasing(lambda r: r.clamp_max(0)), 2),
    "negated relu": (lambda: NonIncreasing(lambda r: -F.relu(-r)), 2),
}


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[name][0]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.weight, 1, 0.2)
    return model.eval()


def inputs(name: str, rows: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(rows)
    if name == "embedded":
        users = torch.randint(0, 20, (rows,), generator=generator)
        return users, torch.randint(0, 30, (rows, 3), generator=generator)
    return (torch.randn(rows, D, generator=generator).to(dtype),)


def assert_same(got: object, expected: object, tolerance: float) -> None:
    got_leaves, got_structure = _pytree.tree_flatten(got)
    leaves, structure = _pytree.tree_flatten(expected)
    assert got_structure == structure
    for a, b in zip(got_leaves, leaves, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


class WithSwitches(nn.Module):
    """Arguments that are usually left out decide what is returned."""

    def __init__(self) -> None:
        super().__init__()
        self.towers = nn.ModuleList(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1)) for _ in range(2))

    def forward(
        self, x: Tensor, as_logits: object = None, twice: bool = False, sign: str = "+", temperature: float = 1.0
    ) -> Tensor:
        logits = torch.cat([tower(x) for tower in self.towers], dim=1) / temperature
        if as_logits is not None:
            return logits
        probs = logits.sigmoid() if sign == "+" else -logits.sigmoid()
        return 2 * probs if twice else probs


def test_arguments_left_out_have_their_defaults_and_no_other_value() -> None:
    model, x = WithSwitches().eval(), torch.randn(3, 6)
    fused = fuse(model)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), model(x))
        torch.testing.assert_close(fused(x, None, sign="+", temperature=2.0), model(x, temperature=2.0))
        for other in ({"as_logits": True}, {"twice": True}, {"sign": "-"}):
            with pytest.raises(AssertionError, match="has been specialized to have value"):
                fused(x, **other)


@pytest.mark.parametrize("name", MODELS)
def test_a_replacement_scores_like_the_model(name: str) -> None:
    model = make(name)
    fused = fuse(model)
    assert fused.resflow.plan.tasks == MODELS[name][1] and not fused.training
    for rows in (1, 37):
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("error")  # a fall back to the reference would warn
            assert_same(fused(*inputs(name, rows)), model(*inputs(name, rows)), 5e-6)
    double, fused_double = copy.deepcopy(model).double(), copy.deepcopy(fused).double()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = inputs(name, 9, torch.float64)
        assert_same(fused_double(*arguments), double(*arguments), 1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_a_replacement_trains_like_the_model(name: str) -> None:
    model = make(name).train()
    twin = copy.deepcopy(model)
    fused = fuse(twin)  # shares the twin's parameters
    assert fused.training
    for module in (model, fused):
        torch.manual_seed(3)
        outputs = _pytree.tree_leaves(module(*inputs(name, 20)))
        sum(output.sum() for output in outputs).backward()
    for own, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(other.grad, own.grad, rtol=1e-3, atol=1e-5)


def test_parameters_are_shared() -> None:
    model = make("chain")
    fused = fuse(model)
    x = torch.randn(4, D)
    with torch.no_grad():
        before = fused(x)[1].clone()
        model.heads[1].bias += 2
        assert not torch.equal(fused(x)[1], before)
        assert_same(fused(x), model(x), 2e-6)
    assert {id(p) for p in fused.parameters()} == {id(p) for p in model.parameters()}


def test_topologies_are_read() -> None:
    assert fuse(make("chain")).resflow.plan.parents == (-1, 0, 1)
    tree = fuse(make("tree")).resflow
    assert tree.plan.parents == (-1, 0, 0) and tree.tasks[0] == "view_out"
    nse = fuse(make("nse")).resflow.plan
    assert nse.parents == (-1, -1) and not nse.feature_residual and not nse.logit_residual
    assert fuse(make("clamp")).resflow.plan.non_increasing
    embedded = fuse(make("embedded")).resflow.plan
    assert embedded.logit_residual and not embedded.feature_residual and not embedded.affine


class Bad(nn.Module):
    """A two-task model with one thing changed."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.a, self.b = mlp(D, 6, norm=False), mlp(D, 7 if fault == "widths" else 6, norm=False)
        if fault == "activations":
            self.b[1] = nn.Tanh()
        if fault == "unknown activation":
            self.a = nn.Sequential(nn.Linear(D, 6), nn.Hardtanh())
        if fault == "dropout before norm":
            self.a = nn.Sequential(nn.Linear(D, 6), nn.PReLU(), nn.Dropout(0.5), nn.BatchNorm1d(6))
        if fault == "two norms":
            self.a = nn.Sequential(nn.Linear(D, 6), nn.BatchNorm1d(6), nn.PReLU(), nn.BatchNorm1d(6))
        if fault == "two activations":
            self.a = nn.Sequential(nn.Linear(D, 6), nn.ReLU(), nn.Tanh())
        self.a2, self.b2 = mlp(6, 5, norm=False), mlp(6, 5, norm=False)
        out = 2 if fault == "no head" else 1
        self.a_out = nn.Linear(5 if fault in ("partial residual", "shared bottom") else 6, out)
        self.b_out = nn.Linear(5 if fault in ("partial residual", "shared bottom") else self.b[0].out_features, out)

    def forward(self, x: Tensor) -> object:
        if self.fault == "untraceable" and x.sum() > 0:
            return x
        a = self.a(x)
        if self.fault == "shared bottom":
            return self.a_out(self.a2(a)), self.b_out(self.b2(a))
        b = self.b(2 * x if self.fault == "other input" else x)
        if self.fault == "partial residual":
            a2, b2 = self.a2(a), self.b2(b + a)
            return self.a_out(a2), self.b_out(b2)
        if self.fault == "hidden returned":
            return self.a_out(a), self.b_out(b), a
        if self.fault == "own logit returned":
            own, z = self.b_out(b), self.a_out(a)
            return z, torch.clamp(own, max=0) + z, own * 3
        return self.a_out(a), self.b_out(b)


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("untraceable", "Bad: torch.fx cannot trace it"),
        ("no head", "no head: no nn.Linear with out_features=1"),
        ("shared bottom", "a_0: the towers of heads|a.0: the towers of heads a_out and b_out share"),
        ("other input", "b_out: its tower starts at mul"),
        ("widths", r"b_out: its tower has widths \[7\], that of a_out \[6\]"),
        ("activations", r"b_out: its tower has activations \['tanh'\], that of a_out \['prelu'\]"),
        ("unknown activation", "a_out: the head reads .*, which is no tower layer"),
        ("partial residual", "b_out: its layers add different parents"),
        ("hidden returned", "output: reads the hidden output"),
        ("own logit returned", "reads the own logit b_out"),
        ("dropout before norm", "a.3: stands after a Dropout"),
        ("two norms", "a.3: a second BatchNorm"),
        ("two activations", "a.2: a second activation"),
    ],
)
def test_what_cannot_be_fused_is_named(fault: str, text: str) -> None:
    with pytest.raises(CannotFuse, match=text):
        towers.fuse(Bad(fault))


class Product(nn.Module):
    """ESMM, whose product stays in the user's graph."""

    def __init__(self) -> None:
        super().__init__()
        self.input_norm = nn.BatchNorm1d(6)
        self.first, self.second = (nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU()) for _ in range(2))
        self.heads = nn.ModuleList(nn.Linear(8, 1) for _ in range(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.input_norm(x)
        click, order = self.heads[0](self.first(x)).sigmoid(), self.heads[1](self.second(x)).sigmoid()
        return click, click * order


class Apart(Product):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.input_norm(x)
        return self.heads[0](self.first(x)).sigmoid(), self.heads[1](self.second(x)).sigmoid()


def test_a_state_dict_of_the_original_loads() -> None:
    torch.manual_seed(0)
    model, other = Product().eval(), Product().eval()
    other.input_norm.running_mean.fill_(0.5)
    fused = fuse(model)
    fused.load_state_dict(other.state_dict())
    x = torch.randn(5, 6)
    with torch.no_grad():
        for ours, theirs in zip(fused(x), other(x), strict=True):
            torch.testing.assert_close(ours, theirs)
        fused.load_state_dict(fuse(Product().eval()).state_dict())  # its own names as well
    part = dict(other.state_dict())
    del part["heads.0.bias"]
    with pytest.raises(RuntimeError, match="Missing key"):
        fused.load_state_dict(part)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        fused.load_state_dict({**other.state_dict(), "wide.weight": torch.zeros(1)})


def test_towers_whose_product_stays_outside_are_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"got the towers of a fused model in which mul \(mul\) follows"):
        save_model(tmp_path / "model", fuse(Product().eval()).resflow)
    save_model(tmp_path / "model", fuse(Apart().eval()).resflow)


def test_rows_of_columns_one_after_another() -> None:
    """What torch.from_numpy makes of a pandas frame, with gradients and in training."""
    torch.manual_seed(0)
    columns = torch.randn(6, 9).T
    for training in (False, True):
        model = Apart().train(training)
        expected = model(columns)
        for ours, theirs in zip(fuse(model)(columns), expected, strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("grad", [False, True])
def test_torch_jit_and_onnx_get_the_layers(grad: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither can hold an op that packs weights; ``packed()`` is the form that torch.jit traces as an op."""
    from torch.onnx._internal.exporter import _flags

    fused, x = fuse(Product().eval()), torch.randn(5, 6)
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(fused, (x,))
        for ours, theirs in zip(traced(x[:2]), fused(x[:2]), strict=True):
            torch.testing.assert_close(ours, theirs)
        monkeypatch.setattr(_flags, "_is_onnx_exporting", True)  # what torch.onnx.export sets
        graph = torch.export.export(fused, (x,)).graph
    assert not any("resflow" in str(node.target) for node in graph.nodes if node.op == "call_function")


def test_a_computed_weight_goes_into_a_program() -> None:
    """As plain towers such a model would score in plain PyTorch, slower than before."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1), nn.Sigmoid()).eval()
    nn.utils.weight_norm(model[0])
    fused, x = fuse(model), torch.randn(7, 6)
    assert is_fused(fused) and not hasattr(fused, "resflow")
    with torch.no_grad():
        torch.testing.assert_close(fused(x), model(x))
