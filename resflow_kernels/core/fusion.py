"""Score fusion: how a candidate's ``K`` probabilities become one score. Imports neither torch nor numpy.

The paper's proposal is :class:`Additive`; :class:`Multiplicative` is the traditional form it beats, and
:class:`ExpectedValue` turns progressive binary tasks into a regression (ResFlow, arXiv 2411.09705, 3.3).
The default weights live here; every scoring call may bring its own instead, one set for the call, one a
request, or one a candidate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..contract import FUSIONS


@dataclass(frozen=True)
class Fusion:
    """A form of fusion and its default weights.

    Args:
        weights: the default weights, or ``None`` for the form's own default.

    Raises:
        ValueError: weights that are not as many as the tasks need (said by :meth:`weights_for`).
    """

    weights: tuple[float, ...] | None = None
    kind: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if self.weights is not None:
            object.__setattr__(self, "weights", tuple(float(weight) for weight in self.weights))

    @property
    def code(self) -> int:
        """The form's number in the ops."""
        return FUSIONS.index(self.kind)

    def weight_count(self, tasks: int) -> int:
        """How many weights one candidate needs."""
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


@dataclass(frozen=True)
class Additive(Fusion):
    """``sum_k alpha_k p_k``; weights ``alpha [K]``, by default all 1.

    >>> Additive((1, 20)).weights_for(2)
    (1.0, 20.0)
    """

    kind: ClassVar[str] = "additive"


@dataclass(frozen=True)
class Multiplicative(Fusion):
    """``prod_k p_k ** gamma_k``, computed through logs; weights ``gamma [K]``, by default all 1."""

    kind: ClassVar[str] = "multiplicative"


@dataclass(frozen=True)
class ExpectedValue(Fusion):
    """Progressive regression: task ``i`` predicts ``y > t_i``; weights are the ``K + 1`` bucket values ``m``.

    ``m_0 (1 - p_0) + sum_{i<K-1} m_{i+1} max(p_i - p_{i+1}, 0) + m_K p_{K-1}``
    By default bucket ``i`` is worth ``i``.
    """

    kind: ClassVar[str] = "expected_value"

    def _default(self, count: int) -> tuple[float, ...]:
        return tuple(float(bucket) for bucket in range(count))


FORMS: dict[str, type[Fusion]] = {form.kind: form for form in (Additive, Multiplicative, ExpectedValue)}


def weight_count(fusion: str, tasks: int) -> int:
    """Number of weights per candidate of a fusion: ``K``, or ``K + 1`` bucket values."""
    return tasks + (fusion == "expected_value")


def by_name(kind: str, weights: tuple[float, ...] | None = None) -> Fusion:
    """The fusion called ``kind``.

    >>> by_name("additive", (1, 2)).kind
    'additive'
    """
    if kind not in FORMS:
        raise ValueError(f"fusion must be one of {', '.join(FORMS)}, got {kind!r}")
    return FORMS[kind](weights)
