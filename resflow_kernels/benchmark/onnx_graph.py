"""A ranker as an ONNX graph of plain operators, which ONNX Runtime and OpenVINO both load.

Its outputs are ``probs [B, K]`` and ``score [B]``; its inputs are ``x [B, D]``, or ``user [R, Du]``, ``item [N, Di]``
and, for several requests, ``request [N]``, the request of each item. Needs onnx.

The first layers of all tasks are either one product or one product per task. Measured on two cores of Zen 5 with three
tasks of 576-128-64: one per task is up to a seventh faster with 1 to 16 rows (ONNX Runtime and OpenVINO) and, at any
size, in OpenVINO's float32 split; otherwise the times are equal. (PyTorch eager is faster with one for all.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..core.fusion import Fusion
from ..core.plan import Plan
from ..core.weights import towers_of
from ..reference.activations import ROWS

OPSET = 20  # the first opset with Gelu
IR_VERSION = 10  # readable by every ONNX Runtime since 1.18


def dense_graph(plan: Plan, weights: Sequence[np.ndarray], fusion: Fusion, joined: bool = False) -> bytes:
    """The serialized ONNX graph of the dense form.

    Args:
        plan: the network.
        weights: float32 canonical weights, as ``plan.weight_shapes`` lists them.
        fusion: how probabilities become a score.
        joined: the first layers of all tasks are one matrix product, instead of one per task.
    """
    graph, own = _Graph(), _Weights(plan, weights)
    parts = []
    for group in own.groups(joined):
        product = graph.node("MatMul", "x", graph.constant(group["weight"]))
        parts += _first_outputs(graph, plan, graph.node("Add", product, graph.constant(group["bias"])), group)
    _finish(graph, own, parts, fusion)
    return graph.serialize({"x": (np.float32, ["B", plan.in_features])}, plan.tasks)


def split_graph(
    plan: Plan,
    weights: Sequence[np.ndarray],
    fusion: Fusion,
    user_width: int,
    several_requests: bool,
    joined: bool = False,
) -> bytes:
    """The request form, split by hand: the user's part is computed once per request. Arguments as in dense_graph."""
    graph, own = _Graph(), _Weights(plan, weights)
    parts = []
    for group in own.groups(joined):
        shared = graph.node("MatMul", "user", graph.constant(group["weight"][:user_width]))
        shared = graph.node("Add", shared, graph.constant(group["bias"]))
        if several_requests:
            shared = graph.node("Gather", shared, "request", axis=0)
        items = graph.node("MatMul", "item", graph.constant(group["weight"][user_width:]))
        parts += _first_outputs(graph, plan, graph.node("Add", items, shared), group)
    _finish(graph, own, parts, fusion)
    inputs: dict[str, tuple[type, list[str | int]]] = {
        "user": (np.float32, ["R", user_width]),
        "item": (np.float32, ["B", plan.in_features - user_width]),
    }
    if several_requests:
        inputs["request"] = (np.int64, ["B"])
    return graph.serialize(inputs, plan.tasks)


class _Weights:
    """Canonical weights by name: first layers, later layers and heads of every task."""

    def __init__(self, plan: Plan, weights: Sequence[np.ndarray]) -> None:
        self.plan = plan
        towers = towers_of(plan, weights)
        self._firsts: list[dict[str, np.ndarray]] = [tower.layers[0] for tower in towers]
        self.later: list[tuple[dict[str, np.ndarray], ...]] = [tower.layers[1:] for tower in towers]
        self.heads = [(tower.head["weight"][:, None], tower.head["bias"]) for tower in towers]

    def groups(self, joined: bool) -> list[dict[str, np.ndarray]]:
        """The first layers' weights by matrix product: one group joined over all tasks, or one group per task."""
        if not joined:
            return self._firsts
        names = self._firsts[0]
        return [{name: np.concatenate([first[name] for first in self._firsts], axis=-1) for name in names}]


class _Graph:
    """Nodes and constants, named in order of creation."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def node(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Append a node; returns its output's name."""
        return self.nodes(kind, inputs, [f"v{len(self._nodes)}" if output is None else output], **attributes)[0]

    def nodes(self, kind: str, inputs: Sequence[str], outputs: list[str], **attributes: Any) -> list[str]:
        """Append a node with several outputs; returns their names."""
        from onnx import helper

        self._nodes.append(helper.make_node(kind, list(inputs), outputs, **attributes))
        return outputs

    def constant(self, value: np.ndarray) -> str:
        from onnx import numpy_helper

        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def serialize(self, inputs: dict[str, tuple[type, list[str | int]]], tasks: int) -> bytes:
        from onnx import TensorProto, checker, helper

        def info(name: str, dtype: type, shape: list[str | int]) -> Any:
            kind = TensorProto.INT64 if dtype is np.int64 else TensorProto.FLOAT
            return helper.make_tensor_value_info(name, kind, shape)

        outputs = [info("probs", np.float32, ["B", tasks]), info("score", np.float32, ["B"])]
        given = [info(name, *entry) for name, entry in inputs.items()]
        graph = helper.make_graph(self._nodes, "ranker", given, outputs, self._constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        checker.check_model(model)
        return bytes(model.SerializeToString())


def _first_outputs(graph: _Graph, plan: Plan, start: str, group: dict[str, np.ndarray]) -> list[str]:
    """First-layer outputs ``[B, H_1]``, one per task, from a group's matrix product and its weights."""
    output = _after_product(graph, plan.activations[0], start, group)
    tasks = group["bias"].size // plan.hidden[0]
    if tasks == 1:
        return [output]
    return graph.nodes("Split", [output], [f"part{task}" for task in range(tasks)], axis=1, num_outputs=tasks)


def _finish(graph: _Graph, weights: _Weights, parts: list[str], fusion: Fusion) -> None:
    """Append everything after the first layers, whose outputs are one part per task."""
    plan = weights.plan
    outputs: list[list[str]] = []
    own: list[str] = []
    for task, parent in enumerate(plan.parents):
        residual = outputs[parent] if plan.feature_residual and parent >= 0 else None
        outputs.append(_tower(graph, weights, task, parts[task], residual))
        weight, bias = weights.heads[task]
        logit = graph.node("MatMul", outputs[task][-1], graph.constant(weight))
        own.append(graph.node("Add", logit, graph.constant(bias)))
    fusion.onnx(graph, _probabilities(graph, plan, own), np.array(fusion.weights_for(plan.tasks), np.float32))


def _tower(graph: _Graph, weights: _Weights, task: int, first: str, residual: list[str] | None) -> list[str]:
    """A task's hidden outputs; ``residual`` are the parent's."""
    hidden = first if residual is None else graph.node("Add", first, residual[0])
    outputs = [hidden]
    for layer, own in enumerate(weights.later[task], start=1):
        hidden = graph.node("MatMul", hidden, graph.constant(own["weight"]))
        hidden = graph.node("Add", hidden, graph.constant(own["bias"]))
        hidden = _after_product(graph, weights.plan.activations[layer], hidden, own)
        if residual is not None:
            hidden = graph.node("Add", hidden, residual[layer])
        outputs.append(hidden)
    return outputs


def _after_product(graph: _Graph, activation: str, value: str, own: dict[str, np.ndarray]) -> str:
    value = ROWS[activation].onnx(graph, value, own)
    if "scale" in own:
        value = graph.node("Mul", value, graph.constant(own["scale"]))
        value = graph.node("Add", value, graph.constant(own["shift"]))
    return value


def _probabilities(graph: _Graph, plan: Plan, own: list[str]) -> str:
    """``probs [B, K]`` from the task logits ``[B, 1]``, which are without residual."""
    if plan.head == "conditional":
        probs: list[str] = []
        for task, parent in enumerate(plan.parents):
            prob = graph.node("Sigmoid", own[task])
            probs.append(prob if parent < 0 else graph.node("Mul", probs[parent], prob))
        return graph.node("Concat", *probs, axis=1, output="probs")
    logits: list[str] = []
    for task, parent in enumerate(plan.parents):
        logit = own[task]
        if plan.logit_residual and parent >= 0:
            if plan.non_increasing:
                logit = graph.node("Min", logit, graph.constant(np.zeros(1, np.float32)))
            logit = graph.node("Add", logit, logits[parent])
        logits.append(logit)
    return graph.node("Sigmoid", graph.node("Concat", *logits, axis=1), output="probs")
