"""Where training's kernels find weights, gradients and relatives."""

from __future__ import annotations

from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resflow_kernels.contract import STATISTICS
from resflow_kernels.core.plan import Plan, chain
from resflow_kernels.ops import backends

if not backends.has_triton():
    pytest.skip("triton is not installed", allow_module_level=True)

from resflow_kernels.triton.training.layout import ALIGNMENT, layout_of
from tests.support.draws import plans


@given(plan=plans(), statistics=st.sampled_from(range(len(STATISTICS))), alignment=st.sampled_from([1, ALIGNMENT]))
def test_places_are_those_of_the_weights(plan: Plan, statistics: int, alignment: int) -> None:
    layout = layout_of(plan, statistics, alignment)
    begin, begins = 0, {}
    for place, (name, shape) in enumerate(plan.weight_shapes):
        assert begin % alignment == 0
        begins[name] = begin
        begin += prod(shape) + layout.padding[place % len(layout.padding)]
    assert begin == plan.tasks * layout.task_floats
    for name, place in begins.items():
        task, where, kind = name.removeprefix("task ").split(", ")
        if where == "head":
            own = layout.head if kind == "weight" else layout.head_bias
        else:
            own = getattr(layout.layers[int(where.removeprefix("layer "))], kind.replace("weight", "matrix"))
        assert int(task) * layout.task_floats + own == place


@given(plan=plans(max_tasks=12))
def test_relatives(plan: Plan) -> None:
    layout = layout_of(plan, 0)
    if not plan.feature_residual:
        assert layout.ancestors == layout.descendants == layout.in_line == ()
        return
    for task, parent in enumerate(plan.parents):
        above = layout.ancestors[parent] | 1 << parent if parent >= 0 else 0
        assert layout.ancestors[task] == above
        below = {other for other in range(plan.tasks) if layout.descendants[task] >> other & 1}
        assert below == {other for other in range(plan.tasks) if layout.ancestors[other] >> task & 1}
        children = [other for other, above in enumerate(plan.parents) if above == task]
        assert not (layout.in_line[task] and below) or children == [task + 1]


def test_a_bit_for_each_of_64_tasks() -> None:
    layout = layout_of(Plan(2, (3,), chain(64)), 0)
    assert layout.ancestors[63] == (1 << 63) - 1
    assert layout.descendants[0] == -2  # bits 1 to 63 of an int64
    assert all(layout.in_line[:63])
