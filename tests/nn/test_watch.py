"""Changes of modules and of what tensors hold: none is missed, and reading is none."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from resflow_kernels.nn import watch
from resflow_kernels.nn.watch import Contents, Watch
from tests.support.writes import WRITES


def tensors_of(device: str) -> list[Tensor]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(4, 4, device=device)), nn.Parameter(torch.randn(7, device=device))]


@pytest.mark.parametrize("lazily", [True, False], ids=["lazy clones", "copies"])
@pytest.mark.parametrize("write", WRITES)
@torch.no_grad()
def test_a_write_is_seen(write: str, lazily: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not lazily:
        monkeypatch.setattr(watch, "_lazy_clone", lambda tensor: None)
    for at in (0, 1):
        tensors = tensors_of("cpu")
        contents = Contents(tensors)
        assert contents.unchanged() and contents.unchanged()
        WRITES[write](tensors[at])
        assert not contents.unchanged()
        assert Contents(tensors).unchanged()


@torch.no_grad()
def test_memory_that_was_shared_before_is_compared() -> None:
    """An array of NumPy's knows an address: what it writes is seen, and PyTorch's writes reach it."""
    tensors = tensors_of("cpu")
    array = tensors[0].detach().numpy()
    for _ in range(2):
        contents = Contents(tensors)
        assert contents.unchanged()
        array[1, 2] += 1
        assert not contents.unchanged()
    contents = Contents(tensors)
    tensors[0].zero_()
    assert not contents.unchanged() and not array.any()
    contents = Contents(tensors)
    assert contents._copied
    del array
    assert contents.unchanged() and not contents._copied  # nobody else knows the address now
    tensors[0].data.add_(1)
    assert not contents.unchanged()


@torch.no_grad()
def test_other_strides_at_the_same_address_are_a_change() -> None:
    tensors = tensors_of("cpu")
    contents = Contents(tensors)
    tensors[0].data = tensors[0].data.t()
    assert not contents.unchanged()


def test_reading_is_no_change() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.PReLU(8), nn.Linear(8, 1)).eval()
    tensors = Watch(model).tensors
    contents = Contents(tensors)
    model(torch.randn(3, 4)).sum().backward()
    with torch.inference_mode():
        model(torch.randn(300, 4))
    copy.deepcopy(model)
    torch.optim.Adam(model.parameters())
    sum(float(one.sum()) for one in model.state_dict().values())
    assert contents.unchanged()


def test_tensors_of_inference_mode() -> None:
    with torch.inference_mode():
        tensor = torch.randn(5)
        contents = Contents([tensor])
        assert contents.unchanged()
        tensor.add_(1)
        assert not contents.unchanged()


@torch.no_grad()
def test_a_tensor_that_was_moved_in_vain_is_unchanged() -> None:
    """Some ops ask for memory to write and only read: the memory moves, and after the second time it is compared."""
    tensors = tensors_of("cpu")
    contents = Contents(tensors)
    for moves in range(1, 4):
        tensors[0].data_ptr()
        assert contents.unchanged() and len(contents._copied) == (moves > 1)
    tensors[0].data[0, 0] += 1
    assert not contents.unchanged()
    contents = Contents(tensors)
    tensors[0].data_ptr()
    tensors[1].data[0] += 1
    assert not contents.unchanged() and not contents.unchanged()


@pytest.mark.parametrize("other", [{"dtype": torch.float64}, {"device": "meta"}], ids=["dtype", "device"])
@torch.no_grad()
def test_the_same_numbers_in_another_dtype_or_place_are_a_change(other: dict[str, object]) -> None:
    model = nn.Linear(3, 2)
    seen, contents = Watch(model), Contents(list(model.parameters()))
    model.to(**other)
    assert not (seen.unchanged() and contents.unchanged())


def test_nothing_is_kept_alive() -> None:
    tensors = tensors_of("cpu")
    contents = Contents(tensors)
    left = weakref.ref(tensors[0])
    del tensors, contents
    gc.collect()
    assert left() is None


@torch.no_grad()
def test_on_other_devices_versions_and_addresses_tell() -> None:
    tensors = tensors_of("meta")
    contents = Contents(tensors)
    assert contents.unchanged()
    tensors[1].add_(1)
    assert not contents.unchanged()


def model_of_layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.Sequential(nn.BatchNorm1d(8), nn.ReLU()), nn.Linear(8, 1, bias=False))


CHANGES: dict[str, Callable[[nn.Sequential], object]] = {
    "a layer replaced": lambda m: m.__setitem__(0, nn.Linear(4, 8)),
    "a layer inside replaced": lambda m: m[1].__setitem__(1, nn.Tanh()),
    "a layer added": lambda m: m.append(nn.ReLU()),
    "a layer removed": lambda m: m.pop(2),
    "a parameter replaced": lambda m: setattr(m[0], "weight", nn.Parameter(torch.ones(8, 4))),
    "a bias given": lambda m: setattr(m[2], "bias", nn.Parameter(torch.ones(1))),
    "a buffer replaced": lambda m: setattr(m[1][0], "running_mean", torch.ones(8)),
    "a hook": lambda m: m[0].register_forward_hook(lambda *_: None),
    "a forward of its own": lambda m: setattr(m[1][1], "forward", torch.sin),
    "a parametrization": lambda m: parametrize.register_parametrization(m[0], "weight", nn.Identity()),
}


@pytest.mark.parametrize("python", [False, True], ids=["compiled", "python"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_tree_is_seen(change: str, python: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if python:
        monkeypatch.setattr(watch, "same_entries", watch._same_entries)
        monkeypatch.setattr(watch, "same_sizes", watch._same_sizes)
    model = model_of_layers()
    seen = Watch(model)
    assert seen.unchanged()
    nn.Linear(2, 2).register_forward_hook(lambda *_: None)  # elsewhere
    assert seen.unchanged() and seen.unchanged()
    CHANGES[change](model)
    assert not seen.unchanged() and not seen.unchanged()
    assert Watch(model).unchanged()


def test_a_removed_hook_is_seen() -> None:
    model = model_of_layers()
    handle = model[0].register_forward_hook(lambda *_: None)
    seen = Watch(model)
    assert seen.unchanged()
    handle.remove()
    assert not seen.unchanged()


def test_tensors_are_listed_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model.append(model[0])
    assert list(map(id, Watch(model).tensors)) == [id(one) for one in (*model.parameters(), *model[1].buffers())]


def test_the_compiled_comparison_refuses_what_is_no_list() -> None:
    for function in (watch.same_entries, watch.same_sizes):
        if function.__module__ != watch.__name__:
            with pytest.raises(TypeError, match="must be two lists"):
                function({}, [])
            with pytest.raises(TypeError, match="must be dictionaries"):
                function([1], [1])
