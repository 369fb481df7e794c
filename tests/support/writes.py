"""Ways in which programs change weights; many of them are counted by no version counter."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def _swap(tensor: Tensor) -> None:
    """As averages of weights are swapped in: the memory of two tensors changes places."""
    average = nn.Parameter(tensor.detach() * 2 + 1)
    tensor.data, average.data = average.data, tensor.data


def _in_inference_mode(tensor: Tensor) -> None:
    with torch.inference_mode():
        tensor.mul_(0.5).add_(1)


def _of_a_flat_buffer(tensor: Tensor) -> None:
    """As optimizers of flat buffers do: the tensor becomes a view, and the buffer is written later."""
    flat = tensor.detach().flatten().clone()
    tensor.data = flat.view(tensor.shape)
    flat.add_(1)


def _fused_adam(tensor: Tensor) -> None:
    tensor.grad = torch.ones_like(tensor)
    torch.optim.Adam([tensor], lr=0.5, fused=True).step()
    tensor.grad = None


def _numpy(tensor: Tensor) -> None:
    tensor.detach().numpy()[..., 0] = 3


# Each changes a float32 parameter of the CPU in place, under no_grad.
WRITES: dict[str, Callable[[Tensor], object]] = {
    "in place": lambda t: t.add_(1),
    "by a view": lambda t: t.view(-1)[-1:].add_(1),
    "data in place": lambda t: t.data.mul_(0.5).add_(1),
    "one element of data": lambda t: t.data.view(-1)[0].add_(1),
    "data replaced": lambda t: setattr(t, "data", t.data + 1),
    "swapped": _swap,
    "set_": lambda t: t.set_(t.detach() + 1),
    "foreach": lambda t: torch._foreach_add_([t.data], 1.0),
    "inference mode": _in_inference_mode,
    "a flat buffer": _of_a_flat_buffer,
    "fused Adam": _fused_adam,
    "NumPy": _numpy,
}
