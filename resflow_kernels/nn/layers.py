"""A tower's hidden layer as a module, and its canonical weights with BatchNorms folded. Needs torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..core import fold
from ..reference import activations

ACTIVATION_MODULES = activations.MODULES


class TowerLayer(nn.Module):
    """One hidden layer of a tower: Linear, activation, and a BatchNorm before or after the activation.

    ``f_k^l`` of the README, without the residual. It accepts any ``nn.Linear``, activation of
    :data:`ACTIVATION_MODULES` and ``nn.BatchNorm1d``, so that a user's own layers can be used as they are.
    """

    def __init__(
        self,
        linear: nn.Linear,
        activation: nn.Module,
        norm: nn.BatchNorm1d | None = None,
        norm_after_activation: bool = True,
        dropout: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.linear = linear
        self.activation = activation
        self.norm = norm
        self.norm_after_activation = norm_after_activation
        self.dropout = dropout

    def forward(self, value: Tensor) -> Tensor:
        """Map ``[B, H_{l-1}]`` to ``[B, H_l]``."""
        value = self.linear(value)
        if self.norm is not None and not self.norm_after_activation:
            value = self.norm(value)
        value = self.activation(value)
        if self.norm is not None and self.norm_after_activation:
            value = self.norm(value)
        return value if self.dropout is None else self.dropout(value)

    @property
    def activation_name(self) -> str:
        """The activation's name in the plan (LeakyReLU is a PReLU there)."""
        return activation_name(self.activation)

    def canonical_weights(self, input_affine: fold.Affine | None) -> dict[str, Tensor]:
        """The layer's canonical weights by kind, in float64; scale and shift are 1 and 0 if the layer has none."""
        weight = self.linear.weight.double().T
        bias = linear_bias(self.linear, weight)
        if input_affine is not None:
            weight, bias = fold.before_linear(input_affine, weight, bias)
        norm = None if self.norm is None else norm_affine(self.norm)
        if norm is not None and not self.norm_after_activation:
            weight, bias = fold.after_linear(weight, bias, norm)
            norm = None
        if norm is None:
            norm = fold.Affine(torch.ones_like(bias), torch.zeros_like(bias))
        slope = {"slope": slope_of(self.activation, bias).double()} if self.activation_name == "prelu" else {}
        return {"weight": weight, "bias": bias, **slope, "scale": norm.scale, "shift": norm.shift}


def check_layer_settings(activation: str, norm: str | None) -> None:
    """Refuse settings that :func:`make_layer` does not support."""
    if activation not in ACTIVATION_MODULES:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATION_MODULES)}, got {activation!r}")
    if norm not in (None, "batch"):
        raise ValueError(f"norm must be None or 'batch', got {norm!r}")


def make_layer(
    inputs: int, width: int, activation: str, norm: str | None, norm_after_activation: bool, norm_eps: float
) -> TowerLayer:
    """A new layer from ``[B, inputs]`` to ``[B, width]``."""
    act = nn.PReLU(width) if activation == "prelu" else ACTIVATION_MODULES[activation]()
    batch_norm = nn.BatchNorm1d(width, eps=norm_eps) if norm else None
    return TowerLayer(nn.Linear(inputs, width), act, batch_norm, norm_after_activation)


def activation_name(module: nn.Module) -> str:
    """A PyTorch activation module's name in the plan.

    Raises:
        ValueError: the module is none of :data:`ACTIVATION_MODULES`.
    """
    name = activations.name_of(module)
    if name is None:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATION_MODULES)}, got {module}")
    return name


def norm_affine(norm: nn.BatchNorm1d) -> fold.Affine:
    """An eval-mode BatchNorm as a scale and shift, in float64."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("BatchNorm1d must keep running statistics (track_running_stats=True) to be scored with")
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    gamma = torch.ones_like(mean) if norm.weight is None else norm.weight.double()
    beta = torch.zeros_like(mean) if norm.bias is None else norm.bias.double()
    return fold.batch_norm(gamma, beta, mean, variance, norm.eps)


def linear_bias(linear: nn.Linear, weight: Tensor) -> Tensor:
    """A Linear's bias in float64; if it has none, zeros for the columns of ``weight [in, out]``."""
    return weight.new_zeros(weight.shape[1]) if linear.bias is None else linear.bias.double()


def slope_of(activation: nn.Module, like: Tensor) -> Tensor:
    """A PReLU's or LeakyReLU's slope per channel, with the length of ``like [H]``."""
    if isinstance(activation, nn.LeakyReLU):
        return torch.full_like(like, activation.negative_slope)
    assert isinstance(activation, nn.PReLU)
    return activation.weight.expand_as(like)
