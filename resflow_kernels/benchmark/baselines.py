"""One class per implementation, behind one interface: prepared once for a model, a thread count and input shapes.

Ours and PyTorch's take and return torch tensors; ONNX Runtime's and OpenVINO's take and return NumPy arrays over the
same memory. All baselines return probabilities and score; ours returns the logits as well.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from .. import ops, reference
from ..contract import PRECISIONS
from ..core.fusion import Additive, Fusion
from ..core.plan import Plan
from .interleave import Call
from .onnx_graph import dense_graph, split_graph
from .towers import Split, Towers

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Model:
    """The model to implement; ``weights`` are float32 and canonical (``plan.weight_shapes``)."""

    plan: Plan
    weights: Sequence[Floats]
    fusion: Fusion = field(default_factory=Additive)
    user_width: int = 0  # columns of the user's side in the request form


@dataclass(frozen=True)
class Requests:
    """Inputs of the request form: ``user [R, Du]``, ``item [N, Di]``, ``offsets [R + 1]``."""

    user: Floats
    item: Floats
    offsets: NDArray[np.int64]

    @property
    def request(self) -> NDArray[np.int64] | None:
        """The request of each item ``[N]``; ``None`` if there is one request, whose row needs no gather."""
        if len(self.user) == 1:
            return None
        return np.repeat(np.arange(len(self.user)), np.diff(self.offsets))

    def joined(self, most: int | None = None) -> Floats:
        """Rows ``[N, D]`` of the dense form, or the first ``most`` of them."""
        item = self.item[:most]
        request = np.zeros(len(item), np.int64) if self.request is None else self.request[:most]
        return np.concatenate((self.user[request], item), axis=1)


class Implementation(ABC):
    """One way to score a model's candidates with ``threads`` threads.

    Build it and run its calls inside :func:`threads_of`, as PyTorch's thread count is the process's.
    """

    name: ClassVar[str]
    precision: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, model: Model, threads: int) -> None:
        self.model, self.threads = model, threads

    @classmethod
    def missing(cls) -> str | None:
        """The reason it cannot run here; ``None`` if it can."""
        for library in cls.needs:
            if find_spec(library) is None:
                return f"{library} is not installed"
            try:
                import_module(library)
            except Exception as error:  # a broken installation may raise anything, and must not stop the others
                return f"{library} cannot be imported: {error}"
        return None

    @classmethod
    def versions(cls) -> dict[str, str]:
        """The versions of its libraries."""
        return {library: version(library) for library in cls.needs}

    @abstractmethod
    def dense(self, x: Floats) -> Call:
        """A call that scores rows ``[B, D]``; compilation for their shape happens here."""

    @abstractmethod
    def split(self, requests: Requests) -> Call:
        """A call that scores requests; it computes the user's part of the first layer once per request."""

    @staticmethod
    def result(output: Any) -> tuple[Floats, Floats]:
        """Probabilities ``[B, K]`` and score ``[B]`` from a call's output."""
        probs, score = output[0], output[1]
        return np.asarray(probs), np.asarray(score)


class Resflow(Implementation):
    """Our torch op, called from Python as a user calls it."""

    name = "resflow"
    precision = "float32"
    needs = ("torch",)

    @classmethod
    def missing(cls) -> str | None:
        return ops.unsupported_reason("cpu")

    def __init__(self, model: Model, threads: int) -> None:
        super().__init__(model, threads)
        self.plan = replace(model.plan, precision=self.precision)
        self.packed = ops.pack_towers([torch.from_numpy(weight) for weight in model.weights], self.plan)
        self.alpha = torch.tensor(model.fusion.weights_for(model.plan.tasks), dtype=torch.float32)

    def dense(self, x: Floats) -> Call:
        rows, kind = torch.from_numpy(x), self.model.fusion.kind
        return lambda: ops.dense_scores(rows, self.packed, self.plan, self.alpha, kind)

    def split(self, requests: Requests) -> Call:
        user, item, offsets = map(torch.from_numpy, (requests.user, requests.item, requests.offsets))
        kind = self.model.fusion.kind
        return lambda: ops.request_scores(user, item, offsets, self.packed, self.plan, self.alpha, kind)

    @staticmethod
    def result(output: Any) -> tuple[Floats, Floats]:
        return output.probs.numpy(), output.score.numpy()


class Eager(Implementation):
    """PyTorch without compilation, operator by operator."""

    name = "eager"
    precision = "float32"
    needs = ("torch",)
    dtype: ClassVar[torch.dtype] = torch.float32

    def __init__(self, model: Model, threads: int) -> None:
        super().__init__(model, threads)
        towers = Towers(model.plan, model.weights, model.fusion, model.user_width, self.dtype)
        self.towers = towers.eval().requires_grad_(False)

    def compiled(self, module: torch.nn.Module) -> Any:
        """The callable to use in place of the module."""
        return module

    def dense(self, x: Floats) -> Call:
        rows, scorer = torch.from_numpy(x), self.compiled(self.towers)
        return lambda: scorer(rows)

    def split(self, requests: Requests) -> Call:
        user, item = torch.from_numpy(requests.user), torch.from_numpy(requests.item)
        request = None if requests.request is None else torch.from_numpy(requests.request)
        scorer = self.compiled(Split(self.towers))
        return lambda: scorer(user, item, request)


class Compiled(Eager):
    """torch.compile with max-autotune and freezing, compiled separately for each shape."""

    name = "torch.compile"

    def compiled(self, module: torch.nn.Module) -> Any:
        import torch._inductor.config as inductor

        # Every shape and precision is another graph of the same Python code; by default PyTorch compiles at most eight.
        torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 10_000
        scorer = torch.compile(module, mode="max-autotune", dynamic=False, fullgraph=True)
        is_compiled = False

        def call(*arguments: Any) -> Any:
            nonlocal is_compiled
            if is_compiled:
                return scorer(*arguments)
            with inductor.patch(freezing=True):
                result = scorer(*arguments)
            is_compiled = True
            return result

        return call


class CompiledBfloat16(Compiled):
    """torch.compile with weights and hidden layers in bfloat16; input rows are float32."""

    precision = "bfloat16"
    dtype = torch.bfloat16


class OnnxRuntime(Implementation):
    """ONNX Runtime's CPU provider with all graph optimizations."""

    name = "onnxruntime"
    precision = "float32"
    needs = ("onnx", "onnxruntime")

    def dense(self, x: Floats) -> Call:
        return self._call(dense_graph(self.model.plan, self.model.weights, self.model.fusion), {"x": x})

    def split(self, requests: Requests) -> Call:
        return self._call(*_split_inputs(self.model, requests))

    def _call(self, graph: bytes, inputs: dict[str, NDArray[Any]]) -> Call:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, inputs)


class OpenVino(Implementation):
    """OpenVINO's CPU plugin, compiled for each shape, with the latency hint."""

    name = "openvino"
    precision = "float32"
    needs = ("onnx", "openvino")
    hint: ClassVar[str] = "f32"

    def dense(self, x: Floats) -> Call:
        return self._call(dense_graph(self.model.plan, self.model.weights, self.model.fusion), {"x": x})

    def split(self, requests: Requests) -> Call:
        return self._call(*_split_inputs(self.model, requests))

    def _call(self, graph: bytes, inputs: dict[str, NDArray[Any]]) -> Call:
        import openvino

        core = openvino.Core()
        model = core.read_model(graph)
        model.reshape({name: list(value.shape) for name, value in inputs.items()})
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": self.threads,
            "INFERENCE_PRECISION_HINT": self.hint,
        }
        request = core.compile_model(model, "CPU", settings).create_infer_request()
        return lambda: request.infer(inputs, share_inputs=True, share_outputs=True)


class OpenVinoBfloat16(OpenVino):
    """OpenVINO computing in bfloat16."""

    precision = "bfloat16"
    hint = "bf16"


def _in(precision: str) -> type[Resflow]:
    """Our implementation in one of :data:`PRECISIONS`."""
    return Resflow if precision == "float32" else type("Resflow", (Resflow,), {"precision": precision})


OURS: tuple[type[Resflow], ...] = tuple(_in(precision) for precision in PRECISIONS)
BASELINES: tuple[type[Implementation], ...] = (
    Eager,
    Compiled,
    CompiledBfloat16,
    OnnxRuntime,
    OpenVino,
    OpenVinoBfloat16,
)


def label(implementation: type[Implementation]) -> str:
    """Name and precision; float32 is left out.

    >>> label(OpenVinoBfloat16)
    'openvino bfloat16'
    """
    return implementation.name + ("" if implementation.precision == "float32" else f" {implementation.precision}")


@contextmanager
def threads_of(threads: int) -> Iterator[None]:
    """Set PyTorch's thread count (which our op follows) and disable gradients in a block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)


def exact_scores(model: Model, x: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The float64 reference's probabilities ``[B, K]`` and score ``[B]`` of rows ``[B, D]``."""
    weights = [torch.from_numpy(weight).double() for weight in model.weights]
    alpha = torch.tensor(model.fusion.weights_for(model.plan.tasks), dtype=torch.float64)
    exact = reference.dense_scores(torch.from_numpy(x).double(), weights, model.plan, alpha, model.fusion.kind, "call")
    return exact.probs.numpy(), exact.score.numpy()


def _split_inputs(model: Model, requests: Requests) -> tuple[bytes, dict[str, NDArray[Any]]]:
    request = requests.request
    graph = split_graph(model.plan, model.weights, model.fusion, model.user_width, request is not None)
    inputs: dict[str, NDArray[Any]] = {"user": requests.user, "item": requests.item}
    return graph, inputs if request is None else {**inputs, "request": request}
