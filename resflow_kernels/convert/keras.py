"""Converts the paper authors' TensorFlow weights, identified by name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from ..core.fusion import Fusion
from ..core.plan import Plan, chain
from ..nn import ResFlow
from ..nn.layers import TowerLayer

EPS = 1e-3  # Keras' BatchNormalization default, which the authors use

# The e-commerce chain: <task>_dense<l>.kernel, <task>_dense<l>.<task>_prelu<l>.alpha.
_NAMED = re.compile(r"(?P<task>\w+)_dense(?P<layer>\d+)\.(?P<part>kernel|bias|(?P=task)_prelu(?P=layer)\.alpha)")
# Progressive regression: dense<l>_<k>.kernel, dense<l>_<k>.prelu<l>_<k>.alpha.
_NUMBERED = re.compile(r"dense(?P<layer>\d+)_(?P<task>\d+)\.(?P<part>kernel|bias|prelu(?P=layer)_(?P=task)\.alpha)")
_NORM = re.compile(r"batch_normalization(?:_(?P<number>\d+))?\.(?P<part>gamma|beta|moving_mean|moving_variance)")
# What a checkpoint holds beside the towers: an optimizer's slots and counters, tables.
_BESIDE = re.compile(
    r"(.*\.)?(Adam(_\d+)?|Adagrad|Adadelta(_\d+)?|Momentum|RMSProp(_\d+)?|Ftrl(_\d+)?|embeddings)"
    r"|(.*\.)?(global_step|beta[12]_power|learning_rate|iter|decay)|(.*\.)?optimizer\..*"
)
_NORM_PARTS = {"gamma", "beta", "moving_mean", "moving_variance"}

Parts = dict[str, np.ndarray]


def from_keras(
    weights: Mapping[str, np.ndarray], fusion: Fusion | None = None, tasks: Sequence[str] | None = None
) -> ResFlow:
    """The authors' model as a :class:`ResFlow` in eval mode.

    Two naming schemes are known. ``<task>_dense<l>`` with ``batch_normalization[_n]`` is the e-commerce chain: both
    residuals, PReLU, a BatchNorm after each activation and optionally one on the input, numbered in the order of their
    creation. ``dense<l>_<k>`` is progressive regression: the logit residual only, no BatchNorm. Widths and layers
    follow from the names and shapes.

    Args:
        weights: arrays by name, kernels ``[in, out]``, as a checkpoint has them: ``ctr_dense1/kernel`` or
            ``ctr_dense1.kernel``, with or without ``:0`` behind or ``w.`` in front. Tables (``embeddings``), an
            optimizer's slots and counters are left out.
        fusion: by default :class:`Additive`. (The bucket values of a progressive score are not in the weights.)
        tasks: of the e-commerce chain its tasks in the order in which the model made them, which is that of the chain
            and of its BatchNorms. A checkpoint lists its variables in no such order, so names cannot say it.

    Raises:
        ValueError: an unknown name, a missing part, a shape that does not fit, or several tasks without ``tasks``; the
            message names it.

    Example:
        >>> golden = np.load("tests/data/ecomm_chain_2tasks.npz")  # doctest: +SKIP
        >>> own = {n: golden[n] for n in golden if n.startswith("w.")}         # doctest: +SKIP
        >>> from_keras(own, tasks=("ctr", "cvr")).tasks                         # doctest: +SKIP
        ('ctr', 'cvr')
    """
    named = {_dotted(name): np.asarray(array) for name, array in weights.items()}
    layers, norms, progressive = _sorted({name: array for name, array in named.items() if not _BESIDE.fullmatch(name)})
    tasks = list(layers) if progressive else _in_order(list(layers), tasks)
    counts = {len(parts) for parts in layers.values()}
    if len(counts) != 1 or min(counts) < 2:
        raise ValueError(f"weights must have the same layers, at least 2, for every task, got {sorted(counts)}")
    depth = counts.pop() - 1
    input_norm, hidden_norms = _assign_norms(norms, len(tasks), depth)

    towers, heads = [], []
    for position, task in enumerate(tasks):
        numbers = sorted(layers[task])
        tower = []
        for level, number in enumerate(numbers[:-1]):
            norm = hidden_norms[position * depth + level] if hidden_norms else None
            tower.append(_layer(f"{task}, layer {number}", layers[task][number], norm))
        towers.append(tower)
        heads.append(_linear(f"{task}, layer {numbers[-1]}", layers[task][numbers[-1]], head=True))
    widths = [[layer.linear.out_features for layer in tower] for tower in towers]
    if any(width != widths[0] for width in widths):
        raise ValueError(f"weights must have the same widths for every task, got {widths}")
    plan = Plan(
        in_features=towers[0][0].linear.in_features,
        hidden=tuple(widths[0]),
        parents=chain(len(tasks)),
        activations="prelu",
        feature_residual=not progressive,
        affine=bool(hidden_norms),
    )
    names = [f"task{task}" if progressive else task for task in tasks]
    return ResFlow.from_layers(plan, names, towers, heads, input_norm, fusion).eval()


def _dotted(name: str) -> str:
    return name.removeprefix("w.").removesuffix(":0").replace("/", ".")


def _in_order(found: list[str], tasks: Sequence[str] | None) -> list[str]:
    """The chain's tasks in its order."""
    if tasks is None and len(found) > 1:
        raise ValueError(
            "tasks must be given, in the order of the chain, because a checkpoint's names do not say it: "
            f"{sorted(found)}"
        )
    tasks = found if tasks is None else list(tasks)
    if sorted(tasks) != sorted(found):
        raise ValueError(f"tasks must be those of the weights, {sorted(found)}, got {tasks}")
    return tasks


def _sorted(named: Mapping[str, np.ndarray]) -> tuple[dict[str, dict[int, Parts]], dict[int, Parts], bool]:
    """Arrays by task, layer and part; BatchNorms by number; whether the names are progressive regression's."""
    layers: dict[str, dict[int, Parts]] = {}
    norms: dict[int, Parts] = {}
    schemes = set()
    for name, array in named.items():
        if norm := _NORM.fullmatch(name):
            norms.setdefault(int(norm["number"] or 0), {})[norm["part"]] = array
            continue
        layer = _NUMBERED.fullmatch(name) or _NAMED.fullmatch(name)
        if layer is None:
            raise ValueError(f"weights must be named as the authors name them, got {name!r}")
        schemes.add(layer.re is _NUMBERED)
        part = "alpha" if layer["part"].endswith("alpha") else layer["part"]
        layers.setdefault(layer["task"], {}).setdefault(int(layer["layer"]), {})[part] = array
    if len(schemes) != 1:
        raise ValueError(f"weights must be of one naming scheme, got {len(schemes)}")
    progressive = schemes.pop()
    if progressive:
        layers = {task: layers[task] for task in sorted(layers, key=int)}
    return layers, norms, progressive


def _assign_norms(
    norms: dict[int, Parts], tasks: int, depth: int
) -> tuple[nn.BatchNorm1d | None, list[nn.BatchNorm1d]]:
    """Assign BatchNorms in the order in which Keras numbered them: the input's, if it has one, and the layers'."""
    for number, parts in norms.items():
        if set(parts) != _NORM_PARTS:
            raise ValueError(f"batch_normalization_{number} must have {sorted(_NORM_PARTS)}, got {sorted(parts)}")
    made = [_norm(norms[number]) for number in sorted(norms)]
    hidden = tasks * depth
    if len(made) == hidden + 1:
        return made[0], made[1:]
    if len(made) in (0, hidden):
        return None, made
    raise ValueError(
        f"weights must have 0, {hidden} (one per layer) or {hidden + 1} (and the input's) BatchNorms, got {len(made)}"
    )


def _tensor(array: np.ndarray) -> nn.Parameter:
    return nn.Parameter(torch.tensor(array, dtype=torch.float32))


def _norm(parts: Parts) -> nn.BatchNorm1d:
    norm = nn.BatchNorm1d(len(parts["gamma"]), eps=EPS)
    norm.weight, norm.bias = _tensor(parts["gamma"]), _tensor(parts["beta"])
    norm.running_mean, norm.running_var = _tensor(parts["moving_mean"]).data, _tensor(parts["moving_variance"]).data
    return norm


def _linear(place: str, parts: Parts, head: bool = False) -> nn.Linear:
    expected = {"kernel", "bias"} | (set() if head else {"alpha"})
    if set(parts) != expected:
        raise ValueError(f"{place} must have {sorted(expected)}, got {sorted(parts)}")
    kernel, bias = parts["kernel"], parts["bias"]
    if kernel.ndim != 2 or bias.shape != kernel.shape[1:] or (head and kernel.shape[1] != 1):
        raise ValueError(
            f"{place} must have a kernel [in, {'1' if head else 'out'}] and a bias to match, "
            f"got {list(kernel.shape)} and {list(bias.shape)}"
        )
    linear = nn.Linear(*kernel.shape)
    linear.weight, linear.bias = _tensor(kernel.T), _tensor(bias)
    return linear


def _layer(place: str, parts: Parts, norm: nn.BatchNorm1d | None) -> TowerLayer:
    linear = _linear(place, parts)
    if parts["alpha"].shape != (linear.out_features,):
        raise ValueError(f"{place} must have an alpha [{linear.out_features}], got {list(parts['alpha'].shape)}")
    activation = nn.PReLU(linear.out_features)
    activation.weight = _tensor(parts["alpha"])
    if norm is not None and norm.num_features != linear.out_features:
        raise ValueError(f"{place} must have a BatchNorm of {linear.out_features}, got {norm.num_features}")
    return TowerLayer(linear, activation, norm)
