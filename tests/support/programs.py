"""Tile programs of drawn steps, with weights on the scale of a trained network."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from resflow_kernels.contract import ACTIVATIONS, STEPS
from resflow_kernels.core.program import Program, ProgramBuilder, Row, Segment, Step, columns_of, width_of

WIDTHS = st.one_of(st.integers(1, 40), st.sampled_from((64, 65, 128, 150)))


@st.composite
def programs(draw: Any, tasks: int = 0, precision: str = "float32") -> Program:
    """A program of up to twelve steps, each of any kind over any earlier values."""
    builder = ProgramBuilder(draw(st.integers(2, 90)))
    values: list[Row] = [builder.x]
    for _ in range(draw(st.integers(1, 12))):
        kind = draw(st.sampled_from(STEPS))
        values.append(builder.add(*_step(draw, builder, kind, values)))
    if tasks:
        heads = [_step(draw, builder, "linear", values, width=1) for _ in range(tasks)]
        outputs = tuple(segment for head in heads for segment in builder.add(*head))
        parents = [draw(st.integers(-1, task - 1)) for task in range(tasks)]
        return builder.build(outputs, parents, logit_residual=draw(st.booleans()), precision=precision)
    return builder.build(_row(draw, values), precision=precision)


def program_weights(program: Program, seed: int = 0) -> list[Tensor]:
    """Weights that keep values of order 1."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for name, shape in program.weight_shapes:
        values = torch.randn(shape, generator=generator)
        if name.endswith("weight"):
            made.append(values * shape[0] ** -0.5)
        elif name.endswith("scale"):
            made.append(1 + 0.1 * values)
        else:
            made.append(0.1 * values)
    return made


def _row(draw: Any, values: list[Row], most: int = 3) -> Row:
    """Some columns of some values."""
    row: list[Segment] = []
    for _ in range(draw(st.integers(1, most))):
        value = draw(st.sampled_from(values))
        first = draw(st.integers(0, width_of(value) - 1))
        row += columns_of(value, first, draw(st.integers(1, width_of(value) - first)))
    return tuple(row)


def _of_width(draw: Any, values: list[Row], width: int) -> Segment | None:
    """Some columns of one value, if there is one that wide."""
    wide = [value for value in values if len(value) == 1 and width_of(value) >= width]
    if not wide:
        return None
    value = draw(st.sampled_from(wide))
    return columns_of(value, draw(st.integers(0, width_of(value) - width)), width)[0]


def _step(
    draw: Any, builder: ProgramBuilder, kind: str, values: list[Row], width: int | None = None
) -> tuple[Step, tuple[None, ...]]:
    inputs, groups = _row(draw, values), 1
    columns = width_of(inputs)
    if kind == "linear":
        width = width or draw(WIDTHS)
    elif kind == "mix":
        width = draw(st.integers(1, min(width_of(value) for value in values)))
        chosen = [_of_width(draw, values, width) for _ in range(draw(st.integers(1, 5)))]
        gates = _of_width(draw, values, len(chosen))
        if gates is None:
            chosen, gates = chosen[:1], _of_width(draw, values, 1)
        inputs = tuple(segment for segment in (gates, *chosen) if segment is not None)
    else:
        groups = draw(st.sampled_from([count for count in range(1, columns + 1) if columns % count == 0]))
        if kind == "dot":
            groups = max((count for count in range(2, 13) if columns % count == 0), default=0)
        if groups == 0:  # no two fields of one width
            return _step(draw, builder, "copy", values)
        width = {"sum": groups, "fm": columns // groups, "dot": groups * (groups - 1) // 2}.get(kind, columns)
    step = Step(
        kind,
        width,
        inputs,
        draw(st.sampled_from(ACTIVATIONS)),
        draw(st.booleans()),
        groups,
        1e-5 if "norm" in kind else 0.0,
        _maybe(draw, values, [count for count in (1, width) if width % count == 0]),
        _maybe(draw, values, [width]),
    )
    return step, (None,) * len(list(step.weights()))


def _maybe(draw: Any, values: list[Row], widths: list[int]) -> Row:
    found = [_of_width(draw, values, draw(st.sampled_from(widths))) for _ in range(draw(st.integers(0, 2)))]
    return tuple(segment for segment in found if segment is not None)


def every_step(tasks: int = 0, precision: str = "float32") -> Program:
    """A step of every kind: over one segment and several, with factors of one column, of a few and of all."""
    builder = ProgramBuilder(40)

    def add(kind: str, width: int, inputs: Row, *settings: Any, **more: Any) -> Row:
        step = Step(kind, width, inputs, *settings, **more)
        return builder.add(step, (None,) * len(list(step.weights())))

    hidden = add("linear", 33, builder.x, "prelu", True)
    crossed = add("linear", 40, hidden, factors=builder.x, addends=builder.x)
    gates = add("softmax", 6, columns_of(builder.x, 1, 6), groups=2)
    mixed = add("mix", 16, columns_of(gates, 0, 2) + columns_of(crossed, 0, 16) + columns_of(crossed, 20, 16))
    layer = add("layer_norm", 32, mixed + columns_of(hidden, 3, 16), "identity", True, 2, 1e-5)
    rms = add("rms_norm", 40, crossed, epsilon=1e-5)
    unit = add("l2_norm", 40, crossed, groups=8, epsilon=1e-5)
    fm = add("fm", 8, layer, groups=4)
    dots = add("dot", 10, columns_of(crossed, 0, 20) + columns_of(unit, 0, 20), groups=5)
    sums = add("sum", 4, rms, "silu", groups=4)
    factors = sums + columns_of(gates, 4, 1)
    joined_ = add("copy", 20, fm + dots + columns_of(builder.x, 3, 2), "gelu", True, factors=factors)
    wide = add("linear", 70, joined_ + columns_of(unit, 1, 39) + sums, "tanh", factors=columns_of(sums, 1, 1))
    last = add("linear", 3, wide, addends=columns_of(joined_, 0, 3))
    return builder.build(last, (-1, 0, 0)[:tasks], logit_residual=tasks > 0, precision=precision)
