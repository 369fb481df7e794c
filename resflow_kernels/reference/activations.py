"""The contract's activations for PyTorch, ONNX and Triton: one row per name, followed by Triton's formulas.

To add an activation: its name in ``contract/enums.def``, its formula in ``csrc/core/activations-inl.h``, and here its
row and its cases in :func:`activate` and :func:`derivative`. Only :func:`triton_functions` imports Triton.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..contract import ACTIVATIONS, complete

if TYPE_CHECKING:
    import triton.language as tl

    from ..triton.functions import at_least, at_most, log_sigmoid, sigmoid, tanh


class Activation(NamedTuple):
    """An activation's counterparts in PyTorch and ONNX."""

    formula: Callable[[Tensor, Tensor | None], Tensor]  # of pre-activations and PReLU's slopes [H]
    modules: Mapping[str, Callable[..., nn.Module]]  # constructors of its modules, by the names that settings may use
    matches: Callable[[nn.Module], bool]  # whether a module is this activation
    functions: Mapping[Any, Callable[..., nn.Module]]  # constructors by the functions that a traced model calls
    onnx: Callable[[Any, str, Mapping[str, Any]], str]  # appends to a benchmark.onnx_graph; maps a name to a name


def _is(kind: type[nn.Module]) -> Callable[[nn.Module], bool]:
    return lambda module: type(module) is kind


def _called(module: Callable[..., nn.Module], *functions: Any) -> dict[Any, Callable[..., nn.Module]]:
    return dict.fromkeys(functions, module)


def _operator(kind: str, **attributes: str) -> Callable[[Any, str, Mapping[str, Any]], str]:
    return lambda graph, value, weights: graph.node(kind, value, **attributes)


def _prelu(value: Tensor, slope: Tensor | None) -> Tensor:
    assert slope is not None
    return torch.where(value > 0, value, value * slope)


def _leaky_relu(negative_slope: float = 0.01, inplace: bool = False) -> nn.Module:
    return nn.LeakyReLU(negative_slope)


def _tanh_gelu() -> nn.Module:
    return nn.GELU(approximate="tanh")


def _any_gelu(approximate: str = "none") -> nn.Module:
    return nn.GELU(approximate)


ROWS: dict[str, Activation] = complete(
    "activation",
    ACTIVATIONS,
    {
        "identity": Activation(
            formula=lambda value, slope: value,
            modules={"identity": nn.Identity},
            matches=_is(nn.Identity),
            functions={},
            onnx=lambda graph, value, weights: value,
        ),
        "relu": Activation(
            formula=lambda value, slope: F.relu(value),
            modules={"relu": nn.ReLU},
            matches=_is(nn.ReLU),
            functions=_called(nn.ReLU, F.relu, torch.relu, "relu"),
            onnx=_operator("Relu"),
        ),
        "prelu": Activation(
            formula=_prelu,
            modules={"prelu": nn.PReLU, "leaky_relu": nn.LeakyReLU},
            matches=lambda module: isinstance(module, (nn.PReLU, nn.LeakyReLU)),
            functions=_called(_leaky_relu, F.leaky_relu),
            onnx=lambda graph, value, weights: graph.node("PRelu", value, graph.constant(weights["slope"])),
        ),
        "silu": Activation(
            formula=lambda value, slope: F.silu(value),
            modules={"silu": nn.SiLU},
            matches=_is(nn.SiLU),
            functions=_called(nn.SiLU, F.silu),
            onnx=lambda graph, value, weights: graph.node("Mul", value, graph.node("Sigmoid", value)),
        ),
        "gelu": Activation(
            formula=lambda value, slope: F.gelu(value),
            modules={"gelu": nn.GELU},
            matches=lambda module: isinstance(module, nn.GELU) and module.approximate == "none",
            functions=_called(_any_gelu, F.gelu),
            onnx=_operator("Gelu"),
        ),
        "gelu_tanh": Activation(
            formula=lambda value, slope: F.gelu(value, approximate="tanh"),
            modules={"gelu_tanh": _tanh_gelu},
            matches=lambda module: isinstance(module, nn.GELU) and module.approximate != "none",
            functions={},  # those of F.gelu are in the row "gelu"
            onnx=_operator("Gelu", approximate="tanh"),
        ),
        "tanh": Activation(
            formula=lambda value, slope: torch.tanh(value),
            modules={"tanh": nn.Tanh},
            matches=_is(nn.Tanh),
            functions=_called(nn.Tanh, torch.tanh, F.tanh, "tanh"),
            onnx=_operator("Tanh"),
        ),
        "sigmoid": Activation(
            formula=lambda value, slope: torch.sigmoid(value),
            modules={"sigmoid": nn.Sigmoid},
            matches=_is(nn.Sigmoid),
            functions=_called(nn.Sigmoid, torch.sigmoid, F.sigmoid, "sigmoid"),
            onnx=_operator("Sigmoid"),
        ),
        "elu": Activation(
            formula=lambda value, slope: F.elu(value),
            modules={"elu": nn.ELU},
            matches=lambda module: type(module) is nn.ELU and module.alpha == 1,
            functions=_called(nn.ELU, F.elu),
            onnx=_operator("Elu"),
        ),
        "softplus": Activation(
            formula=lambda value, slope: F.softplus(value),
            modules={"softplus": nn.Softplus},
            matches=lambda module: type(module) is nn.Softplus and (module.beta, module.threshold) == (1, 20),
            functions=_called(nn.Softplus, F.softplus),
            onnx=_operator("Softplus"),
        ),
    },
)

# By every name that a setting may use, and by the functions that a traced model may call.
MODULES: dict[str, Callable[..., nn.Module]] = {k: v for row in ROWS.values() for k, v in row.modules.items()}
FUNCTIONS: dict[Any, Callable[..., nn.Module]] = {k: v for row in ROWS.values() for k, v in row.functions.items()}


_KINDS = tuple(make for make in MODULES.values() if isinstance(make, type))


def resembles(module: nn.Module) -> bool:
    """Whether a module's class is that of a row, or derived from it, even if :func:`name_of` has no name for it."""
    return isinstance(module, _KINDS)


def name_of(module: nn.Module) -> str | None:
    """The name of the activation that a module computes; ``None`` if it is not one."""
    return next((name for name, row in ROWS.items() if row.matches(module)), None)


def triton_functions() -> tuple[Any, Any]:
    """:func:`activate` and :func:`derivative` compiled by Triton, with the names they use set in this module."""
    import triton
    import triton.language

    from ..triton import functions

    used = ("at_least", "at_most", "log_sigmoid", "sigmoid", "tanh")
    globals().update(tl=triton.language, **{name: getattr(functions, name) for name in used})
    return triton.jit(activate), triton.jit(derivative)


def activate(value, slope, ACTIVATION: tl.constexpr):
    """Compute an activation of ``contract/enums.def``; ``slope`` is PReLU's."""
    if ACTIVATION == "relu":
        return at_least(value, 0.0)
    elif ACTIVATION == "prelu":
        return at_most(value, 0.0) * slope + at_least(value, 0.0)
    elif ACTIVATION == "silu":
        return value / (1.0 + tl.exp(-value))
    elif ACTIVATION == "gelu":
        return 0.5 * value * (1.0 + tl.erf(value * 0.707106781))
    elif ACTIVATION == "gelu_tanh":
        return 0.5 * value * (1.0 + tanh(value * (value * value * (0.044715 * 0.797884561) + 0.797884561)))
    elif ACTIVATION == "tanh":
        return tanh(value)
    elif ACTIVATION == "sigmoid":
        return sigmoid(value)
    elif ACTIVATION == "elu":
        return at_least(value, 0.0) + (tl.exp(at_most(value, 0.0)) - 1.0)
    elif ACTIVATION == "softplus":
        return -log_sigmoid(-value)
    else:
        tl.static_assert(ACTIVATION == "identity", "an activation of contract/enums.def without its formula")
        return value


def derivative(value, slope, ACTIVATION: tl.constexpr):
    """Compute d activate(value) / d value; at a kink, or for NaN, that of the negative side."""
    if ACTIVATION == "relu":
        return tl.where(value > 0, 1.0, 0.0)
    elif ACTIVATION == "prelu":
        return tl.where(value > 0, 1.0, slope)
    elif ACTIVATION == "silu":
        share = sigmoid(value)
        return share + value * share * (1.0 - share)
    elif ACTIVATION == "gelu":
        density = 0.398942280 * tl.exp(-0.5 * value * value)
        return value * density + 0.5 * (1.0 + tl.erf(value * 0.707106781))
    elif ACTIVATION == "gelu_tanh":
        square = value * value
        share = tanh(value * (square * (0.044715 * 0.797884561) + 0.797884561))
        inner = 0.797884561 * (square * (3.0 * 0.044715) + 1.0)
        return 0.5 * (value * (1.0 - share * share) * inner + 1.0 + share)
    elif ACTIVATION == "tanh":
        share = tanh(value)
        return 1.0 - share * share
    elif ACTIVATION == "sigmoid":
        share = sigmoid(value)
        return share * (1.0 - share)
    elif ACTIVATION == "elu":
        return tl.where(value > 0, 1.0, tl.exp(at_most(value, 0.0)))
    elif ACTIVATION == "softplus":
        return sigmoid(value)
    else:
        tl.static_assert(ACTIVATION == "identity", "an activation of contract/enums.def without its derivative")
        return tl.full(value.shape, 1.0, tl.float32)
