"""A ResFlow in training: gradients, BatchNorm statistics, autocast, accumulation, torch.compile, two processes."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resflow_kernels import ResFlow
from resflow_kernels.nn import fused, training

D, ROWS = 40, 130


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    fused._warned.clear()
    yield


def make(**settings: Any) -> ResFlow:
    torch.manual_seed(0)
    model = ResFlow(D, (24, 10), ("click", "cart", "order"), **settings)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return model.train()


def gradients(model: ResFlow, logits_of: Callable[[Tensor], Tensor], x: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    labels = (torch.arange(x.shape[0] * 3).view(-1, 3) % 3 == 0).to(x.dtype)
    F.binary_cross_entropy_with_logits(logits_of(x), labels).backward()
    return {"x": x.grad} | {name: parameter.grad for name, parameter in model.named_parameters()}


def exact_gradients(model: ResFlow, x: Tensor) -> tuple[dict[str, Tensor], ResFlow]:
    double = copy.deepcopy(model).double()
    return gradients(double, double._reference_logits, x.double()), double


SETTINGS = {
    "no norm": {},
    "after": {"norm": "batch"},
    "before": {"norm": "batch", "norm_after_activation": False, "activation": "gelu"},
    "input norm": {"norm": "batch", "input_norm": True},
    "leaky": {"norm": "batch", "activation": "leaky_relu"},
    "non-increasing": {"norm": "batch", "non_increasing": True},
    "conditional": {"conditional": True, "logit_residual": False, "feature_residual": False},
    "forest": {"norm": "batch", "parents": (-1, 0, 0)},
    "bfloat16 plan": {"norm": "batch", "precision": "bfloat16"},
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_and_statistics_are_the_references(name: str, frozen: bool) -> None:
    model = make(**SETTINGS[name])
    if frozen:  # the running statistics are used and stay, as in the paper authors' own code
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eval()
    x = 0.5 + torch.randn(ROWS, D)
    exact, double = exact_gradients(model, x)
    twin = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a fall back to the reference would warn
        own = gradients(model, lambda rows: model(rows).logits, x)
    eager = gradients(twin, twin._reference_logits, x)
    for key, gradient in own.items():
        error, largest = (gradient.double() - exact[key]).abs().max(), exact[key].abs().max()
        assert error <= max(1e-5 * largest, 2 * (eager[key].double() - exact[key]).abs().max()) + 1e-7, key
    before = dict(make(**SETTINGS[name]).named_buffers())
    for key, buffer in double.named_buffers():
        torch.testing.assert_close(dict(model.named_buffers())[key].double(), buffer.double(), rtol=1e-5, atol=1e-6)
        if "norm" in key and "input" not in key:
            assert frozen == torch.equal(dict(model.named_buffers())[key], before[key])


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("tracked", [True, False])
@pytest.mark.parametrize("momentum", [0.3, None])
def test_running_statistics_over_several_batches(momentum: float | None, tracked: bool, counted: bool) -> None:
    model = make(norm="batch")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.momentum, module.track_running_stats = momentum, tracked
            if not counted:
                module.num_batches_tracked = None
    twin = copy.deepcopy(model)
    for rows in (5, 90, 2):
        x = torch.randn(rows, D)
        model(x)
        twin._reference_logits(x)
    for own, other in zip(model.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="x must be at least 2 rows for a BatchNorm in training, got 1"):
        model(torch.randn(1, D))


def test_the_reference_path_passes_gradcheck() -> None:
    model = ResFlow(5, (4, 3), ("a", "b"), norm="batch", non_increasing=True).double()
    x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    parameters = tuple(model.parameters())

    def logits(x: Tensor, *values: Tensor) -> Tensor:
        named = dict(zip((name for name, _ in model.named_parameters()), values, strict=True))
        return torch.func.functional_call(model, named, (x,)).logits

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a float64 model is not fused
        assert torch.autograd.gradcheck(logits, (x, *parameters))


def test_what_the_ops_do_not_serve_is_said_and_computed_all_the_same() -> None:
    model = make(norm="batch")
    model.towers[1][0].dropout = nn.Dropout(0.5)
    with pytest.warns(UserWarning, match="trains with the slow PyTorch reference: its towers have dropout"):
        model(torch.randn(9, D)).logits.sum().backward()
    model.packed()  # what is saved while it trains
    assert training.untrainable_reason(model.eval()) is None  # dropout rests


class _Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def _doubled(model: ResFlow) -> None:
    model.heads[0].__class__ = _Doubled


def _set(path: str, name: str, value: object) -> Callable[[ResFlow], None]:
    return lambda model: setattr(model.get_submodule(path) if path else model, name, value)


ALTERED: dict[str, Callable[[ResFlow], object]] = {
    "dropout between layers": _set("towers.0.0", "dropout", nn.AlphaDropout(0.5)),
    "some of its layers have a BatchNorm .* and some do not": lambda model: model.towers[0][1].norm.eval(),
    "its towers have a LayerNorm between layers": _set("towers.0.0", "dropout", nn.LayerNorm(24)),
    "different eps": _set("towers.0.1.norm", "eps", 0.5),
    "some of its BatchNorms stand before": _set("towers.0.1", "norm_after_activation", False),
    "Linear has hooks": lambda model: model.towers[1][0].linear.register_forward_hook(lambda *_: None),
    "BatchNorm1d has hooks": lambda model: model.towers[1][0].norm.register_forward_pre_hook(lambda *_: None),
    "_Doubled has a forward of its own": _doubled,
    "a layer's activation is tanh, its plan says prelu": _set("towers.2.1", "activation", nn.Tanh()),
}


@pytest.mark.parametrize("reason", ALTERED)
def test_a_model_that_was_altered_is_not_served_by_the_ops(reason: str) -> None:
    model = make(norm="batch")
    ALTERED[reason](model)
    twin, x = copy.deepcopy(model), torch.randn(9, D)
    torch.manual_seed(1)
    with pytest.warns(UserWarning, match=reason):
        logits = model(x).logits
    torch.manual_seed(1)
    assert torch.equal(logits, twin._reference_logits(x))


@pytest.mark.parametrize(
    "reason",
    [reason for reason in ALTERED if "hooks" in reason or "own" in reason or "plan" in reason or "LayerNorm" in reason],
)
def test_an_altered_model_is_scored_by_its_own_layers(reason: str) -> None:
    model = make(norm="batch").eval()
    ALTERED[reason](model)
    x = torch.randn(9, D)
    with torch.no_grad(), pytest.warns(UserWarning, match=f"scores with the slow PyTorch reference: .*{reason}"):
        logits = model(x).logits
    assert torch.equal(logits, model._reference_logits(x))
    with pytest.raises(ValueError, match=f"layers must be as they were made .*{reason}"):
        model.packed()


def test_synchronised_statistics_are_left_to_pytorch() -> None:
    assert "not SyncBatchNorm" in training.untrainable_reason(
        nn.SyncBatchNorm.convert_sync_batchnorm(make(norm="batch"))
    )


def test_rows_of_other_dtypes() -> None:
    model, x = make(norm="batch"), torch.randn(9, D)
    assert torch.equal(model(x.bfloat16()).logits, model(x.bfloat16().float()).logits)
    with pytest.raises(ValueError, match="ResFlow: x must be float32, got float64"):
        model(x.double())


def test_autocast_computes_in_float32() -> None:
    model = make(norm="batch")
    x = torch.randn(ROWS, D)
    plain = model(x).logits
    with torch.autocast("cpu", torch.bfloat16):
        casted = model(x).logits
        narrow = x.bfloat16().requires_grad_()
        logits = model(narrow).logits
    assert casted.dtype == torch.float32 and torch.equal(casted, plain)
    logits.sum().backward()
    assert narrow.grad is not None and narrow.grad.dtype == torch.bfloat16 and narrow.grad.isfinite().all()


def test_gradients_of_several_batches_add_up() -> None:
    model = make(norm="batch")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eval()
    x = torch.randn(ROWS, D)
    model(x).logits.sum().backward()
    whole = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    for part in x.split(37):
        model(part).logits.sum().backward()
    for own, parameter in zip(whole, model.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, own, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["after", "before", "no norm"])
def test_compiled_training_is_one_graph_with_the_same_gradients(name: str) -> None:
    model = make(**SETTINGS[name])
    twin = copy.deepcopy(model)
    compiled = torch.compile(lambda rows: twin(rows).logits, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (20, 31):
        x = torch.randn(rows, D)
        own = gradients(model, lambda value: model(value).logits, x)
        other = gradients(twin, compiled, x)
        for key in own:
            torch.testing.assert_close(other[key], own[key], msg=key)
    for own_buffer, other_buffer in zip(model.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(own_buffer, other_buffer)


def test_training_is_repeatable_to_the_bit() -> None:
    def trained() -> list[Tensor]:
        model = make(norm="batch")
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for seed in range(5):
            x = torch.randn(ROWS, D, generator=torch.Generator().manual_seed(seed))
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(model(x).logits, (x[:, :3] > 0).float()).backward()
            optimizer.step()
        return list(model.parameters())

    assert all(torch.equal(a, b) for a, b in zip(trained(), trained(), strict=True))


_WORKER = """
import os, sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from resflow_kernels import ResFlow
dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
model = ResFlow(12, (8, 4), ("a", "b"))
x = torch.randn(50, 12)
labels = (torch.rand(50, 2) < 0.4).float()
loss = torch.nn.BCEWithLogitsLoss()
replica = DistributedDataParallel(model)
part = slice(25 * rank, 25 * rank + 25)
loss(replica(x[part]).logits, labels[part]).backward()
shared = [p.grad.clone() for p in model.parameters()]
model.zero_grad()
loss(model(x).logits, labels).backward()
for got, parameter in zip(shared, model.parameters()):
    torch.testing.assert_close(got, parameter.grad, rtol=1e-5, atol=1e-6)
open(sys.argv[1] + str(rank), "w").write("done")
dist.barrier()
dist.destroy_process_group()
os._exit(0)  # gloo's threads abort the interpreter's end now and then
"""


def test_two_processes_share_gradients(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(_WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    root = Path(fused.__file__).parents[2]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    done = subprocess.run([*command, str(tmp_path / "rank")], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "rank0").exists() and (tmp_path / "rank1").exists()
