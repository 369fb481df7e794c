"""``train_forward`` and ``train_backward`` on Triton kernels, layer by layer, all tasks of a layer in a launch.

Arguments, outputs and errors are those of the ops of the same names; ``sums``, the pre-activations, are
``[layer][rows][task][padded width]``. Products are in float32, or in tensorfloat32 where
``torch.set_float32_matmul_precision`` allows it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from triton import JITFunction

from ...core import checks, outputs
from ...core.plan import Plan
from ..launch import Launch
from . import launches
from .launches import KINDS, ROW_TILES, Network, ceil_div
from .layout import layout_of
from .products import sums_kernel

# Whether kernels run under Triton's interpreter: TRITON_INTERPRET=1 decides it when they are defined.
INTERPRETED = not isinstance(sums_kernel, JITFunction)

Run = Callable[[Launch], None]


def run(launch: Launch) -> None:
    """Launch on the tensors' device, in its current stream."""
    first = next(value for value in launch.arguments.values() if isinstance(value, Tensor))
    options = dict(launch.options)
    if torch.version.hip is not None:
        options.pop("maxnreg", None)  # AMD's compiler does not know it
    with torch.cuda.device_of(first) if first.is_cuda else nullcontext():
        launch.kernel[launch.grid](**launch.arguments, **launch.constants, **options)


def train_forward(
    x: Tensor, weights: list[Tensor], plan: Sequence[int], statistics: int, eps: float, keep: bool, run: Run = run
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Logits, and the state for the backward pass: own logits, ``sums`` (empty unless ``keep``), mean and variance."""
    _check_devices("train_forward", x, weights)
    made = outputs.forward_outputs(x, weights, plan, statistics, eps, keep)
    logits, own, sums, mean, variance = made
    rows = x.shape[0]
    if rows == 0:
        mean.zero_()
        variance.fill_(float("nan"))
        return made
    network = _network(x, weights, plan, statistics, eps, mean, variance)
    last = _forward_layers(network, x, sums if keep else None, run)
    run(launches.heads_launch(network, last, own, logits))
    return made


def train_backward(
    logit_gradients: Tensor,
    x: Tensor,
    weights: list[Tensor],
    own: Tensor,
    sums: Tensor,
    mean: Tensor,
    variance: Tensor,
    plan: Sequence[int],
    statistics: int,
    eps: float,
    x_needed: bool,
    run: Run = run,
) -> tuple[Tensor, Tensor]:
    """The gradients of x (no rows unless ``x_needed``) and of all weights, concatenated."""
    _check_devices("train_backward", x, weights)
    for name, tensor in {
        "logit_gradients": logit_gradients,
        "task_logits": own,
        "pre_activations": sums,
        "mean": mean,
        "variance": variance,
    }.items():
        checks.device("train_backward", name, tensor, x.device)
    made = outputs.backward_outputs(
        logit_gradients, x, weights, own, sums, mean, variance, plan, statistics, eps, x_needed
    )
    x_gradients, flat = made
    if x.shape[0] == 0:
        flat.zero_()
        return made
    network = _network(x, weights, plan, statistics, eps, mean, variance)
    if sums.shape[0] == 0:
        sums = x.new_empty((outputs.pre_activation_count(network.plan, x.shape[0]),))
        _recompute(network, x, sums, run)
    if network.layout.layers[0].normalisation == "batch_before":
        # A BatchNorm before the activation cancels the bias: its gradient is exactly 0, without rounding errors.
        flat.zero_()
    _Backward(network, x, _of_layers(network, x.shape[0], sums), flat, run).run(
        own, logit_gradients, x_gradients if x_needed else None
    )
    return made


def _check_devices(op: str, x: Tensor, weights: list[Tensor]) -> None:
    for place, weight in enumerate(weights):
        checks.device(op, f"weights[{place}]", weight, x.device)


def _network(
    x: Tensor, weights: list[Tensor], plan: Sequence[int], statistics: int, eps: float, mean: Tensor, variance: Tensor
) -> Network:
    decoded = Plan.decode(plan)
    padding = layout_of(decoded, statistics).padding
    zeros = x.new_zeros((max(padding),))
    parts: list[Tensor] = []
    for place, weight in enumerate(weights):
        parts += [weight.reshape(-1), zeros[: padding[place % len(padding)]]]
    precision = "float32" if torch.get_float32_matmul_precision() == "highest" else "tensorfloat32"
    return Network(decoded, statistics, torch.cat(parts), mean, variance, eps, precision, INTERPRETED)


def _of_layers(network: Network, rows: int, sums: Tensor) -> list[Tensor]:
    sizes = [rows * network.channels(level) for level in range(network.plan.layers)]
    return list(sums.split(sizes))


def _forward_layers(network: Network, x: Tensor, sums: Tensor | None, run: Run) -> Tensor:
    """Compute all layers' pre-activations, in ``sums`` if given, and statistics; returns the last layer's ``sums``."""
    rows, plan = x.shape[0], network.plan
    kept = None if sums is None else _of_layers(network, rows, sums)
    tiles = ceil_div(rows, network.tiles.rows)
    source = x
    for level in range(plan.layers):
        channels = network.channels(level)
        own = x.new_empty((rows * channels,)) if kept is None else kept[level]
        moments = (x.new_empty((tiles * channels,)), x.new_empty((tiles * channels,)))
        by_batch = network.layout.by_batch
        run(launches.sums_launch(network, level, source, rows, own, moments if by_batch else None))
        if by_batch:
            run(launches.statistics_launch(network, level, rows, moments))
        source = own
    return source


def _recompute(network: Network, x: Tensor, sums: Tensor, run: Run) -> None:
    """Recompute the pre-activations, with known statistics."""
    source = x
    for level, own in enumerate(_of_layers(network, x.shape[0], sums)):
        run(launches.sums_launch(network, level, source, x.shape[0], own, None))
        source = own


class _Backward:
    """The backward pass from the last layer to the first: through a layer's outputs, then its two products."""

    def __init__(self, network: Network, x: Tensor, sums: list[Tensor], gradients: Tensor, run: Run) -> None:
        self.network, self.x, self.sums, self.gradients, self._run = network, x, sums, gradients, run
        self.rows, self.tiles = x.shape[0], ceil_div(x.shape[0], ROW_TILES.rows)
        widest = max(network.channels(level) for level in range(network.plan.layers))
        # Gradients of a layer's pre-activations, and of the outputs of the layer before.
        self.of_sums, self.of_outputs = (x.new_empty((self.rows * widest,)) for _ in range(2))
        self.tile_sums = x.new_empty((KINDS * self.tiles * widest,))

    def run(self, own: Tensor, logit_gradients: Tensor, x_gradients: Tensor | None) -> None:
        given = self._heads(own, logit_gradients)
        for level in reversed(range(self.network.plan.layers)):
            self._through(level, given)
            source = self.x if level == 0 else self.sums[level - 1]
            for launch in launches.matrix_gradient_launches(
                self.network, level, self.of_sums, source, self.rows, self.gradients
            ):
                self._run(launch)
            given = self.of_outputs
            to = given if level > 0 else x_gradients
            if to is not None:
                self._run(launches.inputs_gradient_launch(self.network, level, self.of_sums, self.rows, to))

    def _heads(self, own: Tensor, logit_gradients: Tensor) -> Tensor:
        """Compute the heads' gradients; returns those of the tasks' own logits."""
        network, last = self.network, self.network.plan.layers - 1
        tasks, layout = network.plan.tasks, network.gradient_layout
        given = torch.empty_like(own)
        tile_weights = self.tile_sums[: self.tiles * network.channels(last)]
        tile_biases = own.new_empty((self.tiles * tasks,))
        self._run(
            launches.heads_back_launch(network, self.sums[last], own, logit_gradients, given, tile_weights, tile_biases)
        )
        layer = layout.layers[last]
        self._reduce(layer, tile_weights, (layout.head,), None)
        self._reduce(layer._replace(width=1, padded=1), tile_biases, (layout.head_bias,), None)
        return given

    def _through(self, level: int, given: Tensor) -> None:
        """Compute the gradients of a layer's pre-activations and vectors from those of its outputs."""
        network, sums = self.network, self.sums[level]
        layer = network.gradient_layout.layers[level]
        prelu, affine = layer.activation == "prelu", layer.normalisation != "none"
        before = layer.normalisation == "batch_before"
        slope = layer.slope if prelu else -1
        scales = (layer.scale, layer.shift) if affine else (-1, -1)
        self._run(launches.outputs_back_launch(network, level, given, sums, self.rows, self.of_sums, self.tile_sums))
        if not network.layout.by_batch:
            self._reduce(layer, self.tile_sums, (slope, layer.bias, *scales), None)
            return
        means = self.x.new_empty((KINDS * network.channels(level),))
        self._reduce(layer, self.tile_sums, (slope if before else -1, -1, *scales), means)
        self._run(launches.statistics_back_launch(network, level, self.of_sums, sums, self.rows, means, self.tile_sums))
        if not before:
            self._reduce(layer, self.tile_sums, (slope, layer.bias, -1, -1), None)

    def _reduce(self, layer: launches.Layer, tile_sums: Tensor, places: tuple[int, ...], means: Tensor | None) -> None:
        tasks = self.network.plan.tasks
        self._run(launches.channel_sums_launch(layer, tasks, tile_sums, self.rows, self.gradients, means, places))
