"""Tile programs: the plan of a ranker that is not a forest of equal towers. Imports neither torch nor numpy.

A program is a list of steps over values; ``contract/program.def`` says what each computes. The ops take it wherever
they take a :class:`~resflow_kernels.Plan`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from ..contract import (
    ACTIVATIONS,
    HEADS,
    PLAN_FIELDS,
    PLAN_LIMITS,
    PRECISION_ROWS,
    PROGRAM_LIMITS,
    SEGMENT_FIELDS,
    STEP_FIELDS,
    STEPS,
    precision_of_code,
)
from .packed_layout import PackedLayout, layout_of
from .plan import LogitJoin, Plan, padded


class Segment(NamedTuple):
    """Consecutive columns of a value: 0 is the input row, ``s + 1`` the result of step ``s``."""

    value: int
    column: int
    width: int

    def encode(self) -> list[int]:
        return _pack(SEGMENT_FIELDS, self._asdict(), 1)


Row = tuple[Segment, ...]
"""Segments one after another, which read like one row."""


def width_of(row: Row) -> int:
    """Columns of a row."""
    return sum(segment.width for segment in row)


def columns_of(row: Row, first: int, count: int) -> Row:
    """Some consecutive columns of a row.

    >>> columns_of((Segment(0, 4, 3), Segment(2, 0, 5)), 2, 3)
    (Segment(value=0, column=6, width=1), Segment(value=2, column=0, width=2))
    """
    chosen: list[Segment] = []
    for value, column, width in row:
        begin, end = max(first, 0), min(first + count, width)
        if begin < end:
            chosen.append(Segment(value, column + begin, end - begin))
        first -= width
    return joined(chosen)


def joined(segments: Sequence[Segment]) -> Row:
    """Segments one after another, with neighbors of one value made one."""
    row: list[Segment] = []
    for segment in segments:
        last = row[-1] if row else None
        if last and last.value == segment.value and last.column + last.width == segment.column:
            row[-1] = Segment(last.value, last.column, last.width + segment.width)
        else:
            row.append(segment)
    return tuple(row)


@dataclass(frozen=True)
class Step:
    """One step: ``out = affine(activation(core(inputs))) * factors + addends``."""

    kind: str
    width: int
    inputs: Row
    activation: str = "identity"
    affine: bool = False
    groups: int = 1
    epsilon: float = 0.0
    factors: Row = ()
    addends: Row = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "epsilon", struct.unpack("<f", struct.pack("<f", self.epsilon))[0])

    @property
    def columns(self) -> int:
        """Columns of the inputs."""
        return width_of(self.inputs)

    def weights(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Kinds and shapes of the step's weights, in order."""
        if self.kind == "linear":
            yield "weight", (self.columns, self.width)
            yield "bias", (self.width,)
        if self.activation == "prelu":
            yield "slope", (self.width,)
        if self.affine:
            yield "scale", (self.width,)
            yield "shift", (self.width,)

    def encode(self) -> Iterator[int]:
        fields = {
            "kind": STEPS.index(self.kind),
            "activation": ACTIVATIONS.index(self.activation),
            "affine": int(self.affine),
            "inputs": len(self.inputs),
            "factors": len(self.factors),
            "addends": len(self.addends),
            "width": self.width,
            "groups": self.groups,
            "epsilon": struct.unpack("<I", struct.pack("<f", self.epsilon))[0],
        }
        yield from _pack(STEP_FIELDS, fields, PROGRAM_LIMITS["step_words"])
        for segment in (*self.inputs, *self.factors, *self.addends):
            yield from segment.encode()

    def problem(self) -> str | None:
        """Why the step makes no sense by itself; ``None`` if it does."""
        columns, groups = self.columns, self.groups
        if not self.inputs:
            return "has no inputs"
        if groups < 1 or (self.kind != "mix" and columns % groups):
            return f"has {columns} input columns in {groups} groups"
        if not 0 <= self.epsilon < float("inf"):
            return f"has epsilon {self.epsilon}"
        if self.kind == "mix":
            gates, *values = self.inputs
            if gates.width != len(values) or any(value.width != self.width for value in values):
                return f"mixes {len(values)} values of {[v.width for v in values]} columns with {gates.width} gates"
        elif self.kind != "linear":
            width = {"sum": groups, "fm": columns // groups, "dot": groups * (groups - 1) // 2}.get(self.kind, columns)
            if self.width != width:
                return f"is of width {self.width}, its inputs make {width}"
        if any(self.width % factor.width for factor in self.factors):
            return f"is of width {self.width}, its factors of {[factor.width for factor in self.factors]}"
        if any(addend.width != self.width for addend in self.addends):
            return f"is of width {self.width}, its addends of {[addend.width for addend in self.addends]}"
        return None


@dataclass(frozen=True)
class Program(LogitJoin):
    """A ranker as a list of steps, with everything but its numbers.

    Args:
        in_features: ``D``, the width of one candidate's input row, which is value 0.
        steps: in order; each reads values that are made before it.
        outputs: for a program that is scored the own logit of each task, one column after another; for one that is
            not (no ``parents``) columns of any meaning.
        parents: for each task the task it inherits from, -1 for a root; ``()``: the program is not scored.
        logit_residual, non_increasing, head, precision: as in :class:`~resflow_kernels.Plan`; only linear steps
            are rounded to the precision.

    Raises:
        ValueError: a step or a field makes no sense; the message names it.

    Example:
        >>> x = (Segment(0, 0, 8),)
        >>> hidden = Step("linear", 4, x, "relu")
        >>> Program(8, (hidden, Step("linear", 1, (Segment(1, 0, 4),))), (Segment(2, 0, 1),), (-1,)).tasks
        1
    """

    in_features: int
    steps: tuple[Step, ...]
    outputs: Row
    parents: tuple[int, ...] = ()
    logit_residual: bool = False
    non_increasing: bool = False
    head: str = "residual"
    precision: str = "float32"

    # Derived, as in Plan.
    encoded: tuple[int, ...] = field(init=False, repr=False, compare=False)
    weight_shapes: tuple[tuple[str, tuple[int, ...]], ...] = field(init=False, repr=False, compare=False)
    """Names and shapes of the weights, step by step, in the order ``pack_towers`` takes them."""

    def __post_init__(self) -> None:
        for name, kind in (("steps", tuple), ("outputs", joined), ("parents", tuple)):
            object.__setattr__(self, name, kind(getattr(self, name)))
        self._validate()
        object.__setattr__(self, "encoded", tuple(self._encode()))
        shapes = ((f"step {at}, {kind}", shape) for at, step in enumerate(self.steps) for kind, shape in step.weights())
        object.__setattr__(self, "weight_shapes", tuple(shapes))

    def _validate(self) -> None:
        _require(1 <= self.in_features <= PROGRAM_LIMITS["max_columns"], "in_features", "at least 1", self.in_features)
        _require(len(self.steps) <= PROGRAM_LIMITS["max_steps"], "steps", "fewer", len(self.steps))
        widths = [self.in_features]
        for at, step in enumerate(self.steps):
            name = f"steps[{at}]"
            _require(step.kind in STEPS, f"{name}.kind", f"one of {', '.join(STEPS)}", repr(step.kind))
            known = step.activation in ACTIVATIONS
            _require(known, f"{name}.activation", f"one of {', '.join(ACTIVATIONS)}", repr(step.activation))
            for segment in (*step.inputs, *step.factors, *step.addends):
                _check_segment(name, segment, widths)
            problem = step.problem()
            _require(problem is None, name, "a step that makes sense", f"one that {problem}")
            _require(step.width >= 1, f"{name}.width", "at least 1", step.width)
            int8 = self.precision == "int8" and step.kind == "linear"
            most = PLAN_LIMITS["max_int8_inputs"]
            _require(not int8 or step.columns <= most, "precision", f"another for over {most} inputs", "int8")
            widths.append(step.width)
        _require(sum(widths) <= PROGRAM_LIMITS["max_columns"], "steps", "fewer columns", sum(widths))
        most = PROGRAM_LIMITS["max_outputs"]
        _require(len(self.outputs) <= most, "outputs", f"at most {most} segments", len(self.outputs))
        for segment in self.outputs:
            _check_segment("outputs", segment, widths)
        _require(bool(self.outputs), "outputs", "at least one segment", self.outputs)
        for task, parent in enumerate(self.parents):
            _require(-1 <= parent < task, f"parents[{task}]", "-1 or an earlier task", parent)
        tasks, columns = len(self.parents), width_of(self.outputs)
        _require(tasks <= PLAN_LIMITS["max_tasks"], "parents", f"at most {PLAN_LIMITS['max_tasks']} tasks", tasks)
        _require(tasks in (0, columns), "outputs", f"a column per task ({tasks})", columns)
        self._check_join(_require)

    def _encode(self) -> Iterator[int]:
        fields = dict.fromkeys(PLAN_FIELDS, 0) | {
            "version": PLAN_LIMITS["version"],
            "in_features": self.in_features,
            "tasks": self.tasks,
            "head": HEADS.index(self.head),
            "logit_residual": int(self.logit_residual),
            "non_increasing": int(self.non_increasing),
            "precision": PRECISION_ROWS[self.precision].code,
        }
        yield from (fields[name] for name in PLAN_FIELDS)
        yield from self.parents
        yield from (len(self.steps), len(self.outputs))
        for step in self.steps:
            yield from step.encode()
        for segment in self.outputs:
            yield from segment.encode()

    @classmethod
    def decode(cls, encoded: Sequence[int]) -> Program:
        """The inverse of :attr:`encoded`."""
        numbers = iter([int(number) for number in encoded])
        try:
            fields = {name: next(numbers) for name in PLAN_FIELDS}
            _require(fields["layers"] == 0, "plan layers", "0", fields["layers"])
            parents = tuple(next(numbers) for _ in range(fields["tasks"]))
            steps, outputs = next(numbers), next(numbers)
            made = tuple(_decode_step(numbers) for _ in range(steps))
            row = _decode_row(numbers, outputs)
        except (StopIteration, RuntimeError):
            raise ValueError(f"Program: plan must be longer, got {len(encoded)} numbers") from None
        left = sum(1 for _ in numbers)
        _require(left == 0, "plan", "no longer than its steps", f"{left} more numbers")
        precision = precision_of_code(fields["precision"])
        _require(precision is not None, "plan precision", "a known code", fields["precision"])
        assert precision is not None
        flags = {name: bool(fields[name]) for name in ("logit_residual", "non_increasing")}
        return cls(fields["in_features"], made, row, parents, head=HEADS[fields["head"]], precision=precision, **flags)

    @property
    def tasks(self) -> int:
        """``K``; 0: the program is not scored."""
        return len(self.parents)

    @property
    def output_columns(self) -> int:
        """Columns of the outputs."""
        return width_of(self.outputs)

    def table_width_of(self, item_columns: int) -> int:
        """Columns of a catalog's table of items with so many columns of the input row.

        They are the items' sums of all linear steps over consecutive columns of the input row, each padded to a cache
        line of floats; then, if anything else reads the row, the items' own columns.
        """
        first = [step for step in self.steps if step.kind == "linear" and _is_first(step.inputs)]
        rows = [step.inputs for step in self.steps if step not in first]
        rows += [self.outputs, *(row for step in self.steps for row in (step.factors, step.addends))]
        reads_row = any(segment.value == 0 for row in rows for segment in row)
        return sum(padded(step.width) for step in first) + (item_columns if reads_row else 0)

    @property
    def packed_bytes(self) -> int:
        """Size of the packed weights. Asks the compiled library."""
        return self.packed_layout.packed_bytes

    @property
    def packed_layout(self) -> PackedLayout:
        """The offset of each number in the packed weights; its layers are the steps. Asks the compiled library."""
        return layout_of(self.encoded)

    @property
    def flops_per_candidate(self) -> int:
        """Multiplications and additions of one candidate's matrix products."""
        return 2 * sum(step.columns * step.width for step in self.steps if step.kind == "linear")


def _is_first(inputs: Row) -> bool:
    return len(inputs) == 1 and inputs[0].value == 0


AnyPlan = Plan | Program
"""What the ops take: a forest of equal towers, or a tile program."""


class ProgramBuilder:
    """Collects steps and what their weights are made from.

    Rows are tuples of segments: what is concatenated or cut costs nothing until a step reads it.

    Example:
        >>> builder = ProgramBuilder(8)
        >>> hidden = builder.add(Step("linear", 4, builder.x, "relu"), ("w", "b"))
        >>> builder.build(hidden).output_columns, builder.weights
        (4, ['w', 'b'])
    """

    def __init__(self, in_features: int) -> None:
        self.in_features = in_features
        self.x: Row = (Segment(0, 0, in_features),)
        self.steps: list[Step] = []
        self.weights: list[Any] = []
        """One per weight of :attr:`Program.weight_shapes`, whatever the builder's user gave."""

    def add(self, step: Step, weights: Sequence[Any] = ()) -> Row:
        """Append a step.

        Args:
            step: it reads the input row and results of earlier steps.
            weights: one for each of ``step.weights()``, in their order.

        Returns:
            The step's result, ``step.width`` columns.

        Raises:
            ValueError: the step makes no sense, or has another number of weights.
        """
        wanted = [kind for kind, _ in step.weights()]
        if len(weights) != len(wanted):
            raise ValueError(f"weights must be {', '.join(wanted) or 'none'} for this step, got {len(weights)}")
        problem = step.problem()
        if problem:
            raise ValueError(f"{step.kind} step {problem}")
        self.steps.append(step)
        self.weights.extend(weights)
        return (Segment(len(self.steps), 0, step.width),)

    def one(self, row: Row) -> Segment:
        """A row as one segment, which factors, addends and mixed values must be; copied where it is several."""
        row = joined(row)
        return row[0] if len(row) == 1 else self.add(Step("copy", width_of(row), row))[0]

    def build(self, outputs: Row, parents: Sequence[int] = (), **settings: Any) -> Program:
        """The program."""
        return Program(self.in_features, tuple(self.steps), outputs, tuple(parents), **settings)


def with_precision(program: Program, precision: str) -> Program:
    """The same steps in another precision."""
    return replace(program, precision=precision)


def decode_plan(encoded: Sequence[int]) -> AnyPlan:
    """What an op's list of integers is: a plan of no layers is a program.

    >>> decode_plan(Plan(8, (4,), (-1,)).encoded).tasks
    1
    """
    layers = PLAN_FIELDS.index("layers")
    return Program.decode(encoded) if len(encoded) > layers and encoded[layers] == 0 else Plan.decode(encoded)


def _pack(places: Mapping[str, tuple[int, ...]], fields: Mapping[str, int], words: int) -> list[int]:
    numbers = [0] * words
    for name, (word, shift, bits) in places.items():
        _require(0 <= fields[name] < 1 << bits, name, f"of {bits} bits", fields[name])
        numbers[word] |= fields[name] << shift
    return numbers


def _unpack(places: Mapping[str, tuple[int, ...]], numbers: Sequence[int]) -> dict[str, int]:
    return {name: numbers[word] >> shift & ((1 << bits) - 1) for name, (word, shift, bits) in places.items()}


def _decode_step(numbers: Iterator[int]) -> Step:
    fields = _unpack(STEP_FIELDS, [next(numbers) for _ in range(PROGRAM_LIMITS["step_words"])])
    kind, activation = fields["kind"], fields["activation"]
    _require(kind < len(STEPS), "step kind", "a known code", kind)
    _require(activation < len(ACTIVATIONS), "step activation", "a known code", activation)
    return Step(
        STEPS[kind],
        fields["width"],
        _decode_row(numbers, fields["inputs"]),
        ACTIVATIONS[activation],
        bool(fields["affine"]),
        fields["groups"],
        struct.unpack("<f", struct.pack("<I", fields["epsilon"]))[0],
        _decode_row(numbers, fields["factors"]),
        _decode_row(numbers, fields["addends"]),
    )


def _decode_row(numbers: Iterator[int], segments: int) -> Row:
    return tuple(Segment(**_unpack(SEGMENT_FIELDS, [next(numbers)])) for _ in range(segments))


def _check_segment(name: str, segment: Segment, widths: Sequence[int]) -> None:
    value, column, width = segment
    _require(0 <= value < len(widths), name, f"of values 0 to {len(widths) - 1}", value)
    inside = width >= 1 and 0 <= column <= widths[value] - width
    _require(inside, name, f"of columns 0 to {widths[value]} of value {value}", f"{width} from {column}")


def _require(holds: bool, field: str, expected: str, got: object) -> None:
    if not holds:
        raise ValueError(f"Program: {field} must be {expected}, got {got}")
