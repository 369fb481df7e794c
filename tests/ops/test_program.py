"""Tile programs against their float64 reference, and their guarantees."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from resflow_kernels import ops
from resflow_kernels.contract import STEPS, TABLE_PRECISIONS
from resflow_kernels.core.plan import Plan
from resflow_kernels.core.program import Program, ProgramBuilder, Segment, Step, columns_of, decode_plan, joined
from resflow_kernels.reference import finish, topk
from resflow_kernels.reference.program import program_outputs
from tests.support.programs import program_weights, programs

X = (Segment(0, 0, 6),)


def rows_of(program: Program, count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, program.in_features, generator=torch.Generator().manual_seed(seed))


def exact(program: Program, x: Tensor, weights: list[Tensor]) -> Tensor:
    return program_outputs(x.double(), [weight.double() for weight in weights], program)


def run(program: Program, x: Tensor, weights: list[Tensor]) -> Tensor:
    return ops.program_outputs(x, ops.pack_towers(weights, program), program)


def assert_near(got: Tensor, x: Tensor, weights: list[Tensor], program: Program) -> None:
    """Within a few times what eager float32 errs of the float64 reference.

    Drawn programs square and divide values as no ranker does, so that a bound on the numbers themselves means nothing.
    """
    want = exact(program, x, weights)
    eager = program_outputs(x, weights, program).double()
    spread = (eager - want).abs().amax(0) + 1e-6 * want.abs().amax(0).clamp_min(1)
    error = (got.double() - want).abs()
    finite = want.isfinite() & eager.isfinite()
    assert got.shape == want.shape
    assert bool((error <= 20 * spread)[finite].all()), f"error {error[finite].max():.2e}"


@given(program=programs(), count=st.integers(1, 60))
@settings(max_examples=150)
def test_outputs_are_exact(program: Program, count: int) -> None:
    if not program.weight_shapes:
        return
    x, weights = rows_of(program, count), program_weights(program)
    assert_near(run(program, x, weights), x, weights, program)


@given(program=programs(), count=st.integers(2, 130))
@settings(max_examples=60)
def test_a_row_depends_on_no_other(program: Program, count: int) -> None:
    if not program.weight_shapes:
        return
    x, weights = rows_of(program, count), program_weights(program)
    whole = run(program, x, weights)
    assert torch.equal(torch.cat([run(program, x[:1], weights), run(program, x[1:], weights)]), whole)
    poisoned = x.clone()
    poisoned[0] = float("nan")
    assert torch.equal(run(program, poisoned, weights)[1:], whole[1:])
    wide = torch.full((count, program.in_features + 9), float("nan"))
    wide[:, 4:-5] = x
    assert torch.equal(run(program, wide[:, 4:-5], weights), whole)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
@pytest.mark.parametrize("kind", STEPS)
def test_precisions_round_linear_steps_alone(kind: str, precision: str) -> None:
    builder = ProgramBuilder(12)
    width = {"sum": 3, "fm": 4, "dot": 3, "mix": 4}.get(kind, 12)
    groups = 1 if kind in ("copy", "mix", "linear") else 3
    inputs = (Segment(0, 0, 2), Segment(0, 2, 4), Segment(0, 6, 4)) if kind == "mix" else builder.x
    step = Step(kind, width, inputs, "silu", True, groups, 1e-5)
    hidden = builder.add(step, (None,) * len(list(step.weights())))
    program = builder.build(builder.add(Step("linear", 5, hidden + builder.x), (None, None)), precision=precision)
    x, weights = rows_of(program, 40), program_weights(program)
    want = exact(program, x, weights)
    got = run(program, x, weights)
    assert float((got - want).abs().max()) < {"bfloat16": 2e-2, "int8": 5e-2}[precision]
    assert float((got - exact(replace(program, precision="float32"), x, weights)).abs().max()) > 1e-5


@given(program=programs(tasks=3), requests=st.integers(0, 4), data=st.data())
@settings(max_examples=40)
def test_forms_score_programs(program: Program, requests: int, data: st.DataObject) -> None:
    weights, fusion_weights = program_weights(program), torch.tensor([1.0, 2.0, 0.5])
    packed = ops.pack_towers(weights, program)
    sizes = [data.draw(st.integers(0, 30)) for _ in range(requests)]
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    users = data.draw(st.integers(0, program.in_features))
    x = rows_of(program, sum(sizes))
    request = torch.repeat_interleave(torch.arange(requests), torch.tensor(sizes, dtype=torch.int64))
    user = rows_of(program, requests, 1)[:, :users]
    x[:, :users] = user[request]
    dense = ops.dense_scores(x, packed, program, fusion_weights)
    split = ops.request_scores(user, x[:, users:], offsets, packed, program, fusion_weights)
    assert all(torch.equal(a, b) or a.isnan().any() for a, b in zip(dense, split, strict=True))
    own = run(replace(program, parents=()), x, weights)
    if all(parent < 0 for parent in program.parents) or not program.logit_residual:
        assert torch.equal(own.nan_to_num(0.0), dense.logits.nan_to_num(0.0))
    fused = finish(dense.logits.double(), fusion_weights.double(), "additive")
    assert (dense.score - fused.score).nan_to_num(0.0).abs().sum() <= 1e-5 * (1 + len(x))
    best = ops.request_topk(user, x[:, users:], offsets, packed, program, fusion_weights, k=5)
    for at in range(requests):
        scores = dense.score[offsets[at] : offsets[at + 1]]
        kept = best.positions[at][best.positions[at] >= 0]
        assert len(kept) == min(5, len(scores))
        assert torch.equal(scores[kept].nan_to_num(-1.0), best.scores[at][: len(kept)].nan_to_num(-1.0))


@given(
    program=st.sampled_from(["float32", "bfloat16", "int8"]).flatmap(lambda own: programs(tasks=2, precision=own)),
    dtype=st.sampled_from(TABLE_PRECISIONS),
    data=st.data(),
)
@settings(max_examples=80)
def test_catalogs_of_programs(program: Program, dtype: str, data: st.DataObject) -> None:
    """Scores from a table are those of the joined rows, to within the rounding of its rows, at any place of a batch."""
    weights, fusion_weights = program_weights(program), torch.tensor([1.0, 2.0])
    packed = ops.pack_towers(weights, program)
    users = data.draw(st.integers(0, program.in_features))
    items = rows_of(program, 30)[:, users:]
    user = rows_of(program, 2, 1)[:, :users]
    ids = torch.tensor(data.draw(st.lists(st.integers(0, 29), max_size=60)), dtype=torch.int64)
    first = data.draw(st.integers(0, len(ids)))
    offsets = torch.tensor([0, first, len(ids)])
    table = ops.catalog_rows(items, packed, program, dtype)
    assert table[0].shape == (30, program.table_width_of(items.shape[1]))
    got = ops.catalog_scores(user, ids, offsets, *table, packed, program, fusion_weights)
    request = torch.repeat_interleave(torch.arange(2), offsets.diff())
    joined_rows = torch.cat((user[request], items[ids]), dim=1)
    dense = ops.dense_scores(joined_rows, packed, program, fusion_weights)
    own = program_outputs(joined_rows, weights, program) - exact(program, joined_rows, weights)
    is_tame = bool((own.abs() < 1e-6).all())  # not one that squares its numbers
    bound = 2e-5 if dtype == program.precision == "float32" and is_tame else 1.0
    assert float((got.probs - dense.probs).nan_to_num(0.0).abs().sum(1).max() if len(ids) else 0) <= bound
    half = ops.catalog_scores(user[1:], ids[first:], offsets[1:] - first, *table, packed, program, fusion_weights)
    assert torch.equal(half.logits.nan_to_num(0.0), got.logits[first:].nan_to_num(0.0))
    best = ops.catalog_topk(user, ids, offsets, *table, packed, program, fusion_weights, k=3)
    expected = topk(got.score.nan_to_num(-1.0), offsets, 3)
    assert torch.equal(best.scores.nan_to_num(-1.0), expected.scores.nan_to_num(-1.0))


def test_bfloat16_rows() -> None:
    builder = ProgramBuilder(70)
    hidden = builder.add(Step("linear", 33, builder.x, "relu"), (None, None))
    crossed = builder.add(Step("linear", 70, hidden, factors=builder.x, addends=builder.x), (None, None))
    program = builder.build(crossed)
    x, weights = rows_of(program, 50).bfloat16(), program_weights(program)
    assert torch.equal(run(program, x, weights), run(program, x.float(), weights))


@given(program=programs(tasks=2, precision="bfloat16"))
@settings(max_examples=50)
def test_encoding_is_reversible(program: Program) -> None:
    assert decode_plan(program.encoded) == program
    assert decode_plan(Plan(3, (4,), (-1,)).encoded) == Plan(3, (4,), (-1,))


@given(program=programs(), data=st.data())
@settings(max_examples=100)
def test_damaged_numbers_are_refused_or_harmless(program: Program, data: st.DataObject) -> None:
    """Raw calls of the op with numbers that no program has: an error, or a result, and never a crash."""
    if not program.weight_shapes:
        return
    numbers = list(program.encoded)
    at = data.draw(st.integers(3, len(numbers) - 1))
    bit = data.draw(st.integers(0, 62))
    numbers[at] ^= 1 << bit
    packed = ops.pack_towers(program_weights(program), program)
    with pytest.raises((ValueError, RuntimeError)):
        torch.ops.resflow.program_outputs(rows_of(program, 3), packed, numbers)


@pytest.mark.parametrize(
    ("step", "text"),
    [
        (Step("linear", 4, ()), "steps\\[0\\] must be a step that makes sense, got one that has no inputs"),
        (Step("copy", 5, X), "of width 5, its inputs make 6"),
        (Step("softmax", 6, X, groups=4), "6 input columns in 4 groups"),
        (Step("mix", 2, (Segment(0, 0, 1), Segment(0, 0, 2), Segment(0, 2, 2))), "with 1 gates"),
        (Step("copy", 6, X, factors=(Segment(0, 0, 4),)), "its factors of \\[4\\]"),
        (Step("copy", 6, X, addends=(Segment(0, 0, 4),)), "its addends of \\[4\\]"),
        (Step("copy", 2, (Segment(1, 0, 2),)), "of values 0 to 0, got 1"),
        (Step("copy", 4, (Segment(0, 3, 4),)), "of columns 0 to 6 of value 0, got 4 from 3"),
        (Step("twist", 6, X), "kind must be one of linear"),
        (Step("copy", 6, X, "swish"), "activation must be one of identity"),
    ],
)
def test_a_step_that_makes_no_sense_is_named(step: Step, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Program(6, (step,), X)


def test_what_takes_no_program_says_so() -> None:
    program = Program(6, (Step("linear", 2, X),), (Segment(1, 0, 2),))
    packed = ops.pack_towers(program_weights(program), program)
    with pytest.raises(ValueError, match="dense_scores: plan must be a plan with tasks, got a tile program of none"):
        ops.dense_scores(torch.zeros(2, 6), packed, program, torch.zeros(0))
    with pytest.raises(ValueError, match="program_outputs: x must be a matrix with 6 columns, got \\[2, 5\\]"):
        ops.program_outputs(torch.zeros(2, 5), packed, program)
    with pytest.raises(ValueError, match=r"weights\[0\] \(step 0, weight\) must be of shape \[6, 2\], got \[2, 6\]"):
        ops.pack_towers([torch.zeros(2, 6), torch.zeros(2)], program)
    plan = Plan(6, (4,), (-1,))
    with pytest.raises(ValueError, match="program_outputs: plan must be a tile program, got a forest of towers"):
        torch.ops.resflow.program_outputs(torch.zeros(2, 6), packed, plan.encoded)
    with pytest.raises(
        ValueError, match="backend must be one that serves this call, got 'triton': tile programs run on"
    ):
        ops.dense_scores(torch.zeros(2, 6), packed, program, torch.zeros(2), backend="triton")


def test_opcheck_and_compile() -> None:
    program = Program(6, (Step("linear", 2, X, "elu"),), joined((Segment(1, 0, 2), *columns_of(X, 1, 3))))
    packed = ops.pack_towers(program_weights(program), program)
    x = rows_of(program, 5)
    torch.library.opcheck(torch.ops.resflow.program_outputs.default, (x, packed, list(program.encoded)))
    compiled = torch.compile(lambda rows: ops.program_outputs(rows, packed, program), fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), ops.program_outputs(x, packed, program))


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("users", [0, 1, 16, 21, 39, 40])
@pytest.mark.parametrize("reads_row", [False, True])
def test_users_columns_are_multiplied_once_per_request(users: int, precision: str, reads_row: bool) -> None:
    """Steps that begin with the user's columns have the bits of whole rows; in int8 whole rows are rounded."""
    builder = ProgramBuilder(40)
    ranges = ((0, 40), (3, 30), (21, 19), (0, 5))
    parts = [builder.add(Step("linear", 20, columns_of(builder.x, *at), "relu"), (None, None)) for at in ranges]
    hidden: tuple[Segment, ...] = joined([segment for part in parts for segment in part])
    if reads_row:
        hidden = builder.add(Step("linear", 40, hidden, factors=builder.x), (None, None))
    outputs = builder.add(Step("linear", 2, hidden), (None, None))
    program = builder.build(outputs, (-1, 0), precision=precision)
    packed, weights = ops.pack_towers(program_weights(program), program), torch.ones(2)
    user, item = rows_of(program, 3, 1)[:, :users], rows_of(program, 70)[:, users:]
    offsets = torch.tensor([0, 50, 50, 70])
    x = torch.cat((user[[0] * 50 + [2] * 20], item), dim=1)
    dense = ops.dense_scores(x, packed, program, weights)
    for rows in (user, user.bfloat16()):
        split = ops.request_scores(rows, item, offsets, packed, program, weights)
        if rows is user:
            assert all(torch.equal(a, b) for a, b in zip(dense, split, strict=True))
        else:
            assert float((dense.probs - split.probs).abs().max()) < 0.05
    for dtype, bound in (("float32", 1e-5), ("bfloat16", 0.02), ("int8", 0.05)):
        table = ops.catalog_rows(item, packed, program, dtype)
        looked_up = ops.catalog_scores(user, torch.arange(70), offsets, *table, packed, program, weights)
        own_bound = max(bound, 0.05) if precision == "int8" else bound  # whole rows have other scales than their parts
        assert float((dense.probs - looked_up.probs).abs().max()) < own_bound
