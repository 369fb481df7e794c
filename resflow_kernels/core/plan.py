"""The plan: everything about a tower network except its numbers. Imports neither torch nor numpy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from ..contract import (
    ACTIVATIONS,
    HEADS,
    PACKED,
    PLAN_FIELDS,
    PLAN_LIMITS,
    PRECISION_ROWS,
    precision_of_code,
)
from .packed_layout import PackedLayout, layout_of
from .weights import iter_weights


class LogitJoin:
    """What a plan and a tile program have in common: how own logits become the tasks', and the precision."""

    head: str
    logit_residual: bool
    non_increasing: bool
    precision: str

    @property
    def join(self) -> str:
        """How a task's own logit joins its parent's: conditional, own (not at all), non_increasing or residual."""
        if self.head == "conditional":
            return "conditional"
        if not self.logit_residual:
            return "own"
        return "non_increasing" if self.non_increasing else "residual"

    def _check_join(self, require: Callable[[bool, str, str, object], None]) -> None:
        require(self.head in HEADS, "head", f"one of {', '.join(HEADS)}", repr(self.head))
        names = ", ".join(PRECISION_ROWS)
        require(self.precision in PRECISION_ROWS, "precision", f"one of {names}", repr(self.precision))
        conditional = self.head == "conditional"
        require(not (conditional and self.logit_residual), "logit_residual", "False with a conditional head", True)
        require(
            not self.non_increasing or self.logit_residual, "non_increasing", "False without a logit residual", True
        )


@dataclass(frozen=True)
class Plan(LogitJoin):
    """Widths, topology, activations and switches of a tower network (the README defines the model).

    Args:
        in_features: ``D``, the width of one candidate's input row.
        hidden: widths ``H_1..H_L`` of a tower's hidden layers, at least one.
        parents: for each of the ``K`` tasks the task it inherits from, -1 for a root. A parent comes
            before its children.
        activations: one name of :data:`resflow_kernels.contract.ACTIVATIONS` per layer, or one for all.
        feature_residual: add the parent's hidden output to each layer's output.
        logit_residual: add the parent's logit to the task's own.
        non_increasing: pass a child's own logit through ``min(., 0)`` so that ``p_k <= p_parent(k)``.
        affine: each layer ends in a scale and shift per channel (a BatchNorm after the activation).
        precision: the precision to which the fused kernels round weights and the rows they are multiplied with:
            ``"float32"``, ``"bfloat16"`` or ``"int8"`` (one scale per column and per candidate); GPUs also support
            ``"float16"`` and ``"tensorfloat32"``, but not ``"int8"``. Sums, activations, residuals and heads are
            always float32.
        head: ``"residual"``, or ``"conditional"`` for ESMM's ``p_k = p_parent(k) * sigmoid(r_k)``.

    Raises:
        ValueError: a field is out of range or two of them contradict each other.

    Example:
        >>> plan = Plan(in_features=576, hidden=(128, 64), parents=(-1, 0, 1))
        >>> plan.tasks
        3
    """

    in_features: int
    hidden: tuple[int, ...] = (128, 64)
    parents: tuple[int, ...] = (-1, 0)
    activations: tuple[str, ...] | str = "prelu"
    feature_residual: bool = True
    logit_residual: bool = True
    non_increasing: bool = False
    affine: bool = False
    head: str = "residual"
    precision: str = "float32"

    # Derived fields. They are plain attributes, because torch.compile cannot trace a cached property's lock.
    encoded: tuple[int, ...] = field(init=False, repr=False, compare=False)
    """The plan as passed to the ops: the fields of ``contract/plan.def``, then the three lists."""
    weight_shapes: tuple[tuple[str, tuple[int, ...]], ...] = field(init=False, repr=False, compare=False)
    """Names and shapes of the canonical weights, in the order in which ``pack_towers`` takes them.

    Per task: for each layer ``weight [H_{l-1}, H_l]``, ``bias [H_l]``, then ``slope [H_l]`` if the activation is PReLU,
    then ``scale [H_l]`` and ``shift [H_l]`` if :attr:`affine`; finally the head's ``weight [H_L]`` and ``bias [1]``.
    Other BatchNorms are folded into these (:mod:`resflow_kernels.core.fold`).
    """

    def __post_init__(self) -> None:
        activations = self.activations
        if isinstance(activations, str):
            activations = (activations,) * len(self.hidden)
        object.__setattr__(self, "hidden", tuple(int(width) for width in self.hidden))
        object.__setattr__(self, "parents", tuple(int(parent) for parent in self.parents))
        object.__setattr__(self, "activations", tuple(activations))
        self._validate()
        object.__setattr__(self, "encoded", self._encode())
        object.__setattr__(self, "weight_shapes", tuple((weight.name, weight.shape) for weight in iter_weights(self)))

    def _validate(self) -> None:
        width_limit = PLAN_LIMITS["max_width"]
        _require(1 <= self.in_features <= width_limit, "in_features", f"1 to {width_limit}", self.in_features)
        layers = PLAN_LIMITS["max_layers"]
        _require(1 <= len(self.hidden) <= layers, "hidden", f"1 to {layers} widths", self.hidden)
        _require(
            all(1 <= w <= width_limit for w in self.hidden), "hidden", f"widths of 1 to {width_limit}", self.hidden
        )
        tasks = PLAN_LIMITS["max_tasks"]
        _require(1 <= self.tasks <= tasks, "parents", f"1 to {tasks} tasks", self.parents)
        for task, parent in enumerate(self.parents):
            _require(-1 <= parent < task, f"parents[{task}]", "-1 or an earlier task", parent)
        _require(
            len(self.activations) == len(self.hidden), "activations", "one name per hidden layer", self.activations
        )
        for name in self.activations:
            _require(name in ACTIVATIONS, "activations", f"one of {', '.join(ACTIVATIONS)}", repr(name))
        self._check_join(_require)
        most = PLAN_LIMITS["max_int8_inputs"]
        inputs = max(self.in_features, *self.hidden[:-1], 0)
        _require(self.precision != "int8" or inputs <= most, "precision", f"another for over {most} inputs", "int8")

    @property
    def tasks(self) -> int:
        """``K``, the number of tasks."""
        return len(self.parents)

    @property
    def layers(self) -> int:
        """``L``, the number of hidden layers."""
        return len(self.hidden)

    def _encode(self) -> tuple[int, ...]:
        fields = {
            "version": PLAN_LIMITS["version"],
            "in_features": self.in_features,
            "tasks": self.tasks,
            "layers": self.layers,
            "head": HEADS.index(self.head),
            "feature_residual": int(self.feature_residual),
            "logit_residual": int(self.logit_residual),
            "non_increasing": int(self.non_increasing),
            "affine": int(self.affine),
            "precision": PRECISION_ROWS[self.precision].code,
        }
        codes = [ACTIVATIONS.index(name) for name in self.activations]
        return (*(fields[name] for name in PLAN_FIELDS), *self.hidden, *codes, *self.parents)

    @classmethod
    def decode(cls, encoded: Sequence[int]) -> Plan:
        """The inverse of :attr:`encoded`."""
        fields = dict(zip(PLAN_FIELDS, encoded, strict=False))
        _require(len(fields) == len(PLAN_FIELDS), "plan", f"at least {len(PLAN_FIELDS)} numbers", len(encoded))
        version, layers, tasks = fields["version"], fields["layers"], fields["tasks"]
        _require(version == PLAN_LIMITS["version"], "plan version", str(PLAN_LIMITS["version"]), version)
        rest = [int(value) for value in encoded[len(PLAN_FIELDS) :]]
        _require(len(rest) == 2 * layers + tasks, "plan", f"{2 * layers + tasks} numbers after its fields", len(rest))
        codes = rest[layers : 2 * layers]
        _require(all(0 <= code < len(ACTIVATIONS) for code in codes), "plan activations", "known codes", codes)
        _require(0 <= fields["head"] < len(HEADS), "plan head", "a known code", fields["head"])
        precision = precision_of_code(fields["precision"])
        _require(precision is not None, "plan precision", "a known code", fields["precision"])
        assert precision is not None
        return cls(
            in_features=fields["in_features"],
            hidden=tuple(rest[:layers]),
            parents=tuple(rest[2 * layers :]),
            activations=tuple(ACTIVATIONS[code] for code in codes),
            head=HEADS[fields["head"]],
            precision=precision,
            **{n: bool(fields[n]) for n in ("feature_residual", "logit_residual", "non_increasing", "affine")},
        )

    @property
    def packed_layout(self) -> PackedLayout:
        """The offset of each number in the packed weights (``csrc/core/plan.h``). Calls the compiled library."""
        return layout_of(self.encoded)

    @property
    def packed_bytes(self) -> int:
        """Size of the packed weights. Calls the compiled library."""
        return self.packed_layout.packed_bytes

    @property
    def table_width(self) -> int:
        """Columns of a catalog's table: the first layers of all tasks, each padded to a cache line of floats."""
        return self.tasks * padded(self.hidden[0])

    def table_width_of(self, item_columns: int) -> int:
        """:attr:`table_width`, however many columns of the input row are the items'."""
        return self.table_width

    @property
    def flops_per_candidate(self) -> int:
        """Number of multiplications and additions in one candidate's matrix products."""
        widths = (self.in_features, *self.hidden, 1)
        return 2 * self.tasks * sum(a * b for a, b in pairwise(widths))


def chain(tasks: int) -> tuple[int, ...]:
    """Parents of a chain of tasks: each inherits from the one before.

    >>> chain(3)
    (-1, 0, 1)
    """
    return tuple(range(-1, tasks - 1))


def topology(spec: Sequence[int] | Mapping[str, str] | str | None, tasks: Sequence[str]) -> tuple[int, ...]:
    """The parents of named tasks.

    Args:
        spec: ``"chain"`` or ``None``: each task inherits from the one before; ``"star"``: all from the first;
            ``"independent"``: none from any; a mapping: the parent of each child by name, such as
            ``{"like": "click"}``, where all other tasks are roots; or the parents themselves, -1 for a root.
        tasks: their names, parents before their children.

    Raises:
        ValueError: an unknown spec or task, or a parent that does not come before its child.

    >>> topology({"like": "click", "follow": "like"}, ("click", "like", "follow"))
    (-1, 0, 1)
    """
    tasks = tuple(tasks)
    twice = sorted({name for name in tasks if tasks.count(name) > 1})
    _require(not twice, "tasks", "different names", twice)
    if spec is None or spec == "chain":
        return chain(len(tasks))
    if spec == "independent":
        return (-1,) * len(tasks)
    if spec == "star":
        return (-1, *(0 for _ in tasks[1:]))
    _require(not isinstance(spec, str), "parents", "chain, star, independent, or given one by one", repr(spec))
    if not isinstance(spec, Mapping):
        parents = tuple(int(parent) for parent in spec)
        _require(len(parents) == len(tasks), "parents", f"one per task ({len(tasks)})", len(parents))
        return parents
    place = {name: at for at, name in enumerate(tasks)}
    for child, parent in spec.items():
        for name in (child, parent):
            _require(name in place, "parents", f"between tasks of {', '.join(tasks)}", repr(name))
        _require(place[parent] < place[child], f"parents[{child!r}]", "a task that stands before it", repr(parent))
    return tuple(place[spec[name]] if name in spec else -1 for name in tasks)


def padded(width: int) -> int:
    """A width rounded up to whole cache lines of floats, as in packed weights and in training's sums."""
    return -(-width // PACKED["lane"]) * PACKED["lane"]


def _require(holds: bool, field: str, expected: str, got: object) -> None:
    if not holds:
        raise ValueError(f"Plan: {field} must be {expected}, got {got}")
