"""``fuse(model, example_inputs)``: every kind of layer beside eager, and what users do to the result."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resflow_kernels.convert import CannotFuse, fuse
from resflow_kernels.convert.graph import module
from resflow_kernels.convert.graph.module import STATE
from resflow_kernels.convert.graph.source import Other
from tests.support.writes import WRITES

D = 24


def rows(batch: int, width: int = D) -> Tensor:
    return torch.randn(batch, width, generator=torch.Generator().manual_seed(batch))


def drawn(model: nn.Module) -> nn.Module:
    """Weights and statistics that show in the outputs."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.3 if parameter.dim() < 2 else (1.5 / parameter.shape[-1]) ** 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale + (parameter.dim() < 2) * 0.5)
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.2)
    return model.eval()


def regions(model: nn.Module) -> int:
    return len(model.__dict__[STATE].plan.programs)


def check(model: nn.Module, inputs: Callable[[int], tuple], tolerance: float = 1e-5) -> nn.Module:
    """Fuse and compare at several batch sizes; the call must run the programs."""
    fused = fuse(model, inputs(8))
    state = fused.__dict__[STATE]
    with torch.no_grad():
        for batch in (1, 5, 70):
            want, got = model(*inputs(batch)), state(fused, inputs(batch), {})
            assert isinstance(got, type(want))
            want, got = ([x] if isinstance(x, Tensor) else list(x) for x in (want, got))
            for a, b in zip(want, got, strict=True):
                assert a.shape == b.shape and a.dtype == b.dtype
                torch.testing.assert_close(b, a, rtol=tolerance, atol=tolerance)
    return fused


class Layers(nn.Module):
    """A body of some kind between two layers."""

    def __init__(self, body: nn.Module | Callable[[Tensor], Tensor], width: int = 16) -> None:
        super().__init__()
        self.first, self.body, self.last = nn.Linear(D, 16), body, nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.last(self.body(self.first(x))))


class Own(nn.Module):
    """A module of one function and its parameters."""

    def __init__(self, function: Callable[..., Tensor], **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, **dict(self.named_parameters()))


def dice(x: Tensor) -> Tensor:
    mean = x.mean(1, keepdim=True)
    gate = torch.sigmoid((x - mean) / torch.sqrt(((x - mean) ** 2).mean(1, keepdim=True) + 1e-3))
    return gate * x + 0.3 * (1 - gate) * x


def second_order(x: Tensor) -> Tensor:
    fields = x.view(-1, 4, 4)
    return x + 0.5 * (fields.sum(1).pow(2) - fields.pow(2).sum(1)).repeat(1, 4)


def interactions(x: Tensor) -> Tensor:
    fields = x.view(-1, 4, 4)
    first, second = torch.triu_indices(4, 4, 1)
    return torch.cat([x, torch.bmm(fields, fields.transpose(1, 2))[:, first, second]], 1)[:, 6:]


ACTIVATIONS = [
    *(nn.ReLU(), nn.PReLU(16), nn.PReLU(), nn.LeakyReLU(0.2), nn.SiLU(), nn.GELU(), nn.GELU("tanh"), nn.Tanh()),
    *(nn.Sigmoid(), nn.ELU(), nn.ELU(0.5), nn.SELU(), nn.CELU(0.7), nn.Mish(), nn.Hardswish(), nn.Hardsigmoid()),
    *(nn.Hardtanh(), nn.ReLU6(), nn.Softplus(), nn.Softplus(2.0), nn.LogSigmoid(), nn.Softmax(1)),
]
BODIES: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: nn.BatchNorm1d(16),
    "batch norm twice": lambda: nn.Sequential(nn.BatchNorm1d(16), nn.ReLU(), nn.BatchNorm1d(16)),
    "layer norm": lambda: nn.Sequential(nn.LayerNorm(16), nn.ReLU()),
    "layer norm without weights": lambda: nn.LayerNorm(16, elementwise_affine=False),
    "rms norm": lambda: nn.RMSNorm(16),
    "group norm": lambda: nn.GroupNorm(4, 16),
    "dropout": lambda: nn.Sequential(nn.Dropout(0.5), nn.ReLU(), nn.Dropout(0.2)),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(16, 16)),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(16, 16)),
    "l2 norm": lambda: Own(lambda x: F.normalize(x)),
    "dice by rows": lambda: Own(dice),
    "rms norm by hand": lambda: Own(lambda x: x / torch.sqrt(x.pow(2).mean(1, keepdim=True) + 1e-5)),
    "dice": lambda: Own(lambda x, alpha: alpha * (1 - torch.sigmoid(x)) * x + torch.sigmoid(x) * x, alpha=(16,)),
    "cross": lambda: Own(lambda x, w: x * (x @ w) + x, w=(16, 16)),
    "cross by a vector": lambda: Own(lambda x, w, b: x * (x @ w) + b + x, w=(16, 1), b=(16,)),
    "glu": lambda: Own(lambda x: torch.cat([F.glu(x), x[:, :8]], 1)),
    "glu by hand": lambda: Own(lambda x, w: F.silu(x @ w) * x, w=(16, 16)),
    "second order": lambda: Own(second_order),
    "interactions": lambda: Own(interactions),
    "constant before rows": lambda: Own(lambda x, w: (w @ x.unsqueeze(2)).squeeze(2), w=(16, 16)),
    "einsum": lambda: Own(lambda x, w: torch.einsum("bd,kdh->bkh", x, w).relu().flatten(1), w=(2, 16, 8)),
    "einsum, towers first": lambda: Own(lambda x, w: torch.einsum("bd,kdh->kbh", x, w).sum(0), w=(2, 16, 16)),
    "einsum by field": lambda: Own(
        lambda x, w: torch.einsum("bkd,kdh->bkh", x.view(-1, 2, 8), w).reshape(-1, 16), w=(2, 8, 8)
    ),
    "bmm by expert": lambda: Own(
        lambda x, w: torch.bmm(x.expand(2, -1, -1), w).permute(1, 0, 2).reshape(-1, 16), w=(2, 16, 8)
    ),
    "gates": lambda: Own(
        lambda x, w: torch.bmm(x[:, :4].softmax(1).unsqueeze(1), (x @ w).view(-1, 4, 16)).squeeze(1), w=(16, 64)
    ),
    "gates, product and sum": lambda: Own(
        lambda x, w: (x[:, :4].softmax(1).unsqueeze(-1) * (x @ w).view(-1, 4, 16)).sum(1), w=(16, 64)
    ),
    "positions": lambda: Own(lambda x, w: F.relu(x.view(-1, 8, 2) @ w).flatten(1), w=(2, 2)),
    "addmm": lambda: Own(lambda x, w, b: torch.addmm(b, x, w, beta=2, alpha=0.5), w=(16, 16), b=(16,)),
    "in place": lambda: Own(lambda x: x.mul(2).add_(1).relu_()),
    "clamp": lambda: Own(lambda x: x.clamp(-0.5, 0.7) + x.clamp(min=0.1) - x.clamp(max=0.2)),
    "arithmetic": lambda: Own(lambda x: (1 - x) / 3 + -x * 0.5 - (2 + x) ** 2),
    "lists": lambda: Own(lambda x: torch.cat([x.chunk(2, 1)[1], *x[:, :8].split([3, 5], 1)], 1)),
    "stack and unbind": lambda: Own(lambda x: torch.stack(x.view(-1, 4, 4).unbind(1)[::-1], 1).flatten(1)),
    "transposed": lambda: Own(lambda x: x.view(-1, 2, 8).transpose(1, 2).reshape(-1, 16)),
    "means": lambda: Own(lambda x: x - x.mean(1, keepdim=True) + x.view(-1, 4, 4).mean(1).repeat(1, 4)),
}


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_activations(activation: nn.Module) -> None:
    assert regions(check(drawn(Layers(activation)), lambda batch: (rows(batch),))) == 1


@pytest.mark.parametrize("name", BODIES)
def test_layers_and_idioms(name: str) -> None:
    width = 16
    assert regions(check(drawn(Layers(BODIES[name](), width)), lambda batch: (rows(batch),))) == 1


class MixtureOfExperts(nn.Module):
    """Shared experts, a gate a task, towers of unequal shapes, a product of probabilities, a dict out."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleDict({name: nn.Embedding(20, 8) for name in ("user", "item")})
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(D, 12), nn.ReLU()) for _ in range(3))
        self.gates = nn.ModuleList(nn.Linear(D, 3) for _ in range(2))
        self.towers = nn.ModuleList([nn.Linear(12, 1), nn.Sequential(nn.Linear(12, 6), nn.ELU(), nn.Linear(6, 1))])

    def forward(self, ids: dict[str, Tensor], numbers: Tensor) -> dict[str, Tensor]:
        x = torch.cat([*(table(ids[name]) for name, table in self.tables.items()), numbers], 1)
        experts = torch.stack([expert(x) for expert in self.experts], 1)
        mixed = [(gate(x).softmax(1).unsqueeze(2) * experts).sum(1) for gate in self.gates]
        click, buy = (torch.sigmoid(t(m)).squeeze(1) for t, m in zip(self.towers, mixed, strict=True))
        return {"click": click, "both": click * buy}


def ids_and_numbers(batch: int) -> tuple[dict[str, Tensor], Tensor]:
    ids = {name: torch.arange(batch) * step % 20 for step, name in enumerate(("item", "user", "unread"), 3)}
    return ids, rows(batch, 8)


def test_a_whole_multi_task_model() -> None:
    model = drawn(MixtureOfExperts())
    fused = fuse(model, ids_and_numbers(8))
    assert regions(fused) == 1 and isinstance(fused, MixtureOfExperts)
    assert list(fused.state_dict()) == list(model.state_dict())
    with torch.no_grad():
        for batch in (1, 3, 64):
            ids, numbers = ids_and_numbers(batch)
            want = model(ids, numbers)
            for got in (fused(ids, numbers), fused(ids, numbers=numbers), fused(numbers=numbers, ids=ids)):
                assert list(got) == list(want)
                for name in want:
                    torch.testing.assert_close(got[name], want[name])


class Attention(nn.Module):
    """Attention between two dense parts: the one behind it fuses, and so does the one beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.deep = nn.Sequential(nn.Linear(D, 16), nn.ReLU(), nn.Linear(16, 4), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(D + 4, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        fields = x.view(-1, 3, 8)
        seen = self.attention(fields, fields, fields, need_weights=False)[0].flatten(1)
        return self.head(torch.cat([seen, self.deep(x)], 1))


def test_attention_stays_and_the_rest_fuses() -> None:
    fused = check(drawn(Attention()), lambda batch: (rows(batch),))
    assert regions(fused) == 1
    report = str(fuse.explain(Attention().eval(), rows(8)))
    assert "attention (MultiheadAttention)" in report and "deep.0 (Linear)" in report and "%" in report
    assert "call_function" not in report and "num_users" not in report


def test_padded_requests_and_unusual_rows() -> None:
    model = drawn(nn.Sequential(nn.Linear(D, 16), nn.ReLU(), nn.Linear(16, 3)))
    fused = check(model, lambda batch: (rows(batch),))
    with torch.no_grad():
        for x in (
            rows(12).view(3, 4, D),
            rows(1)[0],
            rows(D).T,
            rows(6, 2 * D)[:, ::2],
            rows(6, 2 * D)[:, :D],
            rows(3)[:0],
        ):
            torch.testing.assert_close(fused(x), model(x))
        with pytest.raises(RuntimeError):
            fused(rows(3).double())
    check(model, lambda batch: (rows(4 * batch).view(batch, 4, D),))


def writes(model: nn.Module) -> dict[str, Callable[[], object]]:
    linear, norm = model[0], model[1]
    return {
        "a statistic": lambda: norm.running_mean.add_(0.3),
        "a new parameter": lambda: setattr(linear, "bias", nn.Parameter(torch.ones(16))),
        "state dict": lambda: model.load_state_dict({k: v * 0.9 for k, v in model.state_dict().items()}),
        "a new module": lambda: setattr(model, "3", nn.Linear(16, 2).eval()),
        **{how: lambda write=write: write(linear.weight) for how, write in WRITES.items()},
    }


@pytest.mark.parametrize("name", writes(nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))))
def test_weights_are_packed_again(name: str) -> None:
    model = drawn(nn.Sequential(nn.Linear(D, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2)))
    fused = fuse(model, rows(8))
    x = rows(9)
    with torch.no_grad():
        before = fused(x)
        writes(fused)[name]()
        plain = nn.Sequential(*fused.children()).eval()
        assert not torch.equal(before, fused(x))
        torch.testing.assert_close(fused(x), plain(x))
        assert name == "a new module" or fused.__dict__[STATE](fused, (x,), {}) is not Other


def test_copies_pickles_and_training() -> None:
    model = drawn(MixtureOfExperts())
    fused = fuse(model, ids_and_numbers(8))
    inputs = ids_and_numbers(7)
    file = io.BytesIO()
    torch.save(fused, file)
    file.seek(0)
    with torch.no_grad():
        want = model(*inputs)["both"]
        for other in (
            copy.deepcopy(fused),
            copy.copy(fused),
            torch.load(file, weights_only=False),
            fuse(fused, inputs),
        ):
            assert isinstance(other, MixtureOfExperts) and STATE in other.__dict__
            torch.testing.assert_close(other(*inputs)["both"], want)
    fused.train()(*inputs)["both"].sum().backward()
    assert model.experts[0][0].weight.grad is not None
    assert fuse(MixtureOfExperts().train(), inputs).training


def test_hooks_and_other_dtypes_run_the_models_own_forward() -> None:
    model = drawn(nn.Sequential(nn.Linear(D, 16), nn.ReLU(), nn.Linear(16, 2)))
    fused = fuse(model, rows(8))
    seen: list[Tensor] = []
    handle = model[1].register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad(), pytest.warns(UserWarning, match="forward hook"):
        torch.testing.assert_close(fused(rows(3)), model(rows(3)))
    assert len(seen) == 2
    handle.remove()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        half = copy.deepcopy(fused).bfloat16()
        assert half(rows(3).bfloat16()).dtype == torch.bfloat16
        torch.testing.assert_close(copy.deepcopy(fused).double()(rows(3).double()).float(), model(rows(3)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_models(dtype: torch.dtype) -> None:
    model = drawn(nn.Sequential(nn.Linear(D, 16), nn.ReLU(), nn.Linear(16, 2))).to(dtype)
    check(model, lambda batch: (rows(batch).to(dtype),), tolerance=4e-2 if dtype == torch.bfloat16 else 4e-3)


class Branch(nn.Module):
    """Python that looks at the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(D, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        if x.shape[0] == 1:
            x = x * 2
        if x.shape[0] > 40:
            x = x * 3
        return self.last(x)


def test_calls_of_another_shape_run_the_models_own_forward() -> None:
    model = drawn(Branch())
    fused = fuse(model, rows(8))
    with torch.no_grad():
        for batch in (1, 2, 39, 41, 1):
            torch.testing.assert_close(fused(rows(batch)), model(rows(batch)))


class Untraceable(nn.Module):
    """Python on numbers in front of layers that can be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.deep = nn.Sequential(nn.Linear(D, 16), nn.ReLU(), nn.Linear(16, 8))
        self.towers = nn.ModuleList(nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 1)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.deep(x * 2 if float(x.sum()) > 0 else x)
        return torch.cat([tower(hidden) for tower in self.towers], 1)


def test_modules_inside_fuse_where_the_whole_cannot_be_traced() -> None:
    model = drawn(Untraceable())
    fused = fuse(model, rows(8))
    assert type(fused) is Untraceable and list(fused.state_dict()) == list(model.state_dict())
    assert [regions(part) for part in (fused.deep, *fused.towers)] == [1, 1, 1]
    assert "deep.0 (Linear)" in str(fuse.explain(model, rows(8)))
    with torch.no_grad():
        for x in (rows(5), -rows(5)):
            torch.testing.assert_close(fused(x), model(x))
    assert not hasattr(model.deep, STATE) and STATE not in model.deep.__dict__


class Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(0)


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (lambda: Odd(), "Odd"),
        (lambda: nn.Sequential(nn.Linear(D, 4), nn.ReLU()).double(), "float64"),
        (lambda: torch.jit.trace(nn.Linear(D, 4), rows(4)), "TorchScript"),
    ],
)
def test_refusals_say_why(model: Callable[[], nn.Module], text: str) -> None:
    made = model()
    x = rows(8).double() if text == "float64" else rows(8)
    with pytest.raises(CannotFuse, match=text) as caught:
        fuse(made, x)
    assert "num_users" not in str(caught.value) and "call_function" not in str(caught.value)


def test_without_inputs_a_model_of_rows_is_read_too() -> None:
    model = drawn(nn.Sequential(nn.Linear(D, 16), nn.Mish(), nn.Linear(16, 3)))
    assert regions(fuse(model)) == 1
    with pytest.raises(CannotFuse, match="example_inputs"):
        fuse(MixtureOfExperts())


def test_on_another_device_it_runs_its_own_forward_and_says_so() -> None:
    rows = torch.randn(5, 8)
    fused = fuse(nn.Sequential(nn.Linear(8, 4), nn.Mish(), nn.Linear(4, 2)).eval(), rows).to("meta")
    module._warned.clear()
    with torch.no_grad(), pytest.warns(UserWarning, match="its own forward: tile programs run on the CPU"):
        assert fused(rows.to("meta")).device.type == "meta"


def test_an_example_may_hold_one_tensor_twice() -> None:
    """torch.export takes the same tensor for one argument; the other one was then ignored."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 16), nn.Linear(8, 16)
            self.head = nn.Linear(32, 1)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            made: Tensor = self.head(torch.relu(torch.cat([self.first(a), self.second(b)], 1)))
            return made

    model = Pair().eval()
    same, a, b = torch.randn(3, 5, 8)
    fused = fuse(model, (same, same))
    with torch.no_grad():
        torch.testing.assert_close(fused(a, b), model(a, b))
