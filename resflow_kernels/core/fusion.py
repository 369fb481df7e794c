"""Score fusion: combines a candidate's ``K`` probabilities into one score.

To add a fusion: its name in ``contract/enums.def``, its formula in ``csrc/core/fusions-inl.h``, and here its class and
its cases in :func:`add_to_score` and :func:`finish_score`; ``resflow_kernels/__init__.py`` lists what the package
exports. Functions that need torch, numpy or Triton import them: :class:`~resflow_kernels.Scorer` needs none.

The paper proposes :class:`Additive`; :class:`Multiplicative` is the traditional form it improves on, and
:class:`ExpectedValue` turns progressive binary tasks into a regression (ResFlow, arXiv 2411.09705, 3.3). The default
weights are stored here; every scoring call may pass its own instead: one set for the call, one per request, or one per
candidate.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..contract import FUSION_EXTRA_WEIGHTS, FUSIONS, complete

if TYPE_CHECKING:
    import numpy as np
    import triton.language as tl
    from torch import Tensor

    from ..triton.functions import LARGEST, at_least, log_sigmoid, sigmoid


@dataclass(frozen=True)
class Fusion(ABC):
    """A form of fusion and its default weights.

    Args:
        weights: the default weights, or ``None`` for the form's own default.

    Raises:
        ValueError: a wrong number of weights for the tasks (raised by :meth:`weights_for`).
    """

    weights: tuple[float, ...] | None = None
    kind: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if self.weights is not None:
            object.__setattr__(self, "weights", tuple(float(weight) for weight in self.weights))

    @property
    def code(self) -> int:
        """The fusion's code in the ops."""
        return FUSIONS.index(self.kind)

    def weight_count(self, tasks: int) -> int:
        """Number of weights per candidate."""
        return weight_count(self.kind, tasks)

    def weights_for(self, tasks: int) -> tuple[float, ...]:
        """The default weights for ``tasks`` tasks."""
        count = self.weight_count(tasks)
        if self.weights is None:
            return self._default(count)
        if len(self.weights) != count:
            raise ValueError(
                f"{type(self).__name__}: weights must be {count} numbers for {tasks} tasks, got {len(self.weights)}"
            )
        return self.weights

    def _default(self, count: int) -> tuple[float, ...]:
        return (1.0,) * count

    @staticmethod
    @abstractmethod
    def score(logits: Tensor, probs: Tensor, weights: Tensor) -> Tensor:
        """The score ``[B]`` from logits and probabilities ``[B, K]`` and weights of one or of all candidates."""

    @staticmethod
    @abstractmethod
    def onnx(graph: Any, probs: str, weights: np.ndarray) -> None:
        """Append ``score [B]`` from ``probs [B, K]`` and one set of weights to a graph of ``benchmark.onnx_graph``."""


@dataclass(frozen=True)
class Additive(Fusion):
    """``sum_k alpha_k p_k``; weights ``alpha [K]``, by default all 1.

    >>> Additive((1, 20)).weights_for(2)
    (1.0, 20.0)
    """

    kind: ClassVar[str] = "additive"

    @staticmethod
    def score(logits: Tensor, probs: Tensor, weights: Tensor) -> Tensor:
        return (weights * probs).sum(-1)

    @staticmethod
    def onnx(graph: Any, probs: str, weights: np.ndarray) -> None:
        _onnx_dot(graph, probs, weights)


@dataclass(frozen=True)
class Multiplicative(Fusion):
    """``prod_k p_k ** gamma_k``, computed through logs; weights ``gamma [K]``, by default all 1."""

    kind: ClassVar[str] = "multiplicative"

    @staticmethod
    def score(logits: Tensor, probs: Tensor, weights: Tensor) -> Tensor:
        import torch

        # The logarithm of p = 0 is -inf, and -inf * 0 would be NaN: the bound makes p ** 0 = 1 and keeps NaN.
        logs = torch.nn.functional.logsigmoid(logits)
        lowest = torch.finfo(logs.dtype).min
        return torch.exp((weights * torch.where(logs < lowest, lowest, logs)).sum(-1))

    @staticmethod
    def onnx(graph: Any, probs: str, weights: np.ndarray) -> None:
        import numpy as np

        powers = graph.node("Pow", probs, graph.constant(weights))
        graph.node("ReduceProd", powers, graph.constant(np.array([1])), keepdims=0, output="score")


@dataclass(frozen=True)
class ExpectedValue(Fusion):
    """Progressive regression: task ``i`` predicts ``y > t_i``; weights are the ``K + 1`` bucket values ``m``.

    ``m_0 (1 - p_0) + sum_{i<K-1} m_{i+1} max(p_i - p_{i+1}, 0) + m_K p_{K-1}``
    The default value of bucket ``i`` is ``i``.
    """

    kind: ClassVar[str] = "expected_value"

    def _default(self, count: int) -> tuple[float, ...]:
        return tuple(float(bucket) for bucket in range(count))

    @staticmethod
    def score(logits: Tensor, probs: Tensor, weights: Tensor) -> Tensor:
        import torch

        drops = probs[..., :-1] - probs[..., 1:]
        drops = torch.where(drops < 0, 0.0, drops)
        shares = torch.cat((1 - probs[..., :1], drops, probs[..., -1:]), dim=-1)
        return (weights * shares).sum(-1)

    @staticmethod
    def onnx(graph: Any, probs: str, weights: np.ndarray) -> None:
        import numpy as np

        # The shares of the K + 1 buckets are the decreases along 1, p_0, ..., p_{K-1}, 0; an increase counts as 0.
        columns = [graph.constant(np.array([value])) for value in (0, 1, 1)]  # Slice's start, end and axis
        first = graph.node("Slice", probs, *columns)
        zero = graph.node("Sub", first, first)
        one = graph.node("Add", zero, graph.constant(np.ones(1, np.float32)))
        higher, lower = graph.node("Concat", one, probs, axis=1), graph.node("Concat", probs, zero, axis=1)
        _onnx_dot(graph, graph.node("Relu", graph.node("Sub", higher, lower)), weights)


_ROWS: dict[str, Any] = {form.kind: form for form in Fusion.__subclasses__()}
FORMS: dict[str, type[Fusion]] = complete("fusion", FUSIONS, _ROWS)


def weight_count(fusion: str, tasks: int) -> int:
    """Number of weights per candidate of a fusion: one per task, plus those that its row in the contract adds."""
    return tasks + FUSION_EXTRA_WEIGHTS[fusion]


def by_name(kind: str, weights: tuple[float, ...] | None = None) -> Fusion:
    """The fusion called ``kind``.

    >>> by_name("additive", (1, 2)).kind
    'additive'
    """
    if kind not in FORMS:
        raise ValueError(f"fusion must be one of {', '.join(FORMS)}, got {kind!r}")
    return FORMS[kind](weights)


def _onnx_dot(graph: Any, shares: str, weights: np.ndarray) -> None:
    """``score [B]``, the product of ``shares [B, K]`` and the weights."""
    import numpy as np

    product = graph.node("MatMul", shares, graph.constant(weights[:, None]))
    graph.node("Squeeze", product, graph.constant(np.array([1])), output="score")


def triton_functions() -> tuple[Any, Any]:
    """:func:`add_to_score` and :func:`finish_score` compiled by Triton, with the names they use set in this module."""
    import triton
    import triton.language

    from ..triton import functions

    used = ("LARGEST", "at_least", "log_sigmoid", "sigmoid")
    globals().update(tl=triton.language, **{name: getattr(functions, name) for name in used})
    return triton.jit(add_to_score), triton.jit(finish_score)


def add_to_score(score, above, task, logit, weights, live, FUSION: tl.constexpr):
    """The score and this task's probability after one more task; both begin as 0."""
    weight = tl.load(weights + task, mask=live, other=0.0)
    prob = sigmoid(logit)
    if FUSION == "multiplicative":
        # The logarithm of p = 0 is -inf, and -inf * 0 would be NaN: the bound makes p ^ 0 = 1.
        score += weight * at_least(log_sigmoid(logit), -LARGEST)
    elif FUSION == "expected_value":
        share = tl.where(task == 0, 1.0 - prob, at_least(above - prob, 0.0))
        score += weight * share
    else:
        tl.static_assert(FUSION == "additive", "a fusion of contract/enums.def without its formula")
        score += weight * prob
    return score, prob


def finish_score(score, above, weights, live, FUSION: tl.constexpr, TASKS: tl.constexpr):
    """The score after the last task."""
    if FUSION == "multiplicative":
        return tl.exp(score)
    elif FUSION == "expected_value":
        return score + tl.load(weights + TASKS, mask=live, other=0.0) * above
    else:
        tl.static_assert(FUSION == "additive", "a fusion of contract/enums.def without its formula")
        return score
