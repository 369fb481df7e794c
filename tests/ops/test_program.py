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
from resflow_kernels.ops import FeatureIds, FeatureTables
from resflow_kernels.reference import finish, topk
from resflow_kernels.reference.program import program_outputs
from resflow_kernels.testing import assert_exact
from tests.support.comparisons import same_bits
from tests.support.devices import Device
from tests.support.draws import drawn, weights_per
from tests.support.programs import program_weights, programs

X = (Segment(0, 0, 6),)
on_all = pytest.mark.devices(programs=True)


def rows_of(program: Program, count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, program.in_features, generator=torch.Generator().manual_seed(seed))


def programs_of(device: Device, tasks: int = 0) -> st.SearchStrategy[Program]:
    """Of the device's precisions; int8's products round whole rows."""
    precisions = st.sampled_from([name for name in device.precisions if name != "int8"])
    return precisions.flatmap(lambda precision: programs(tasks=tasks, precision=precision))


def exact(program: Program, x: Tensor, weights: list[Tensor]) -> Tensor:
    return program_outputs(x.double(), [weight.double() for weight in weights], program)


def run(device: Device, program: Program, x: Tensor, weights: list[Tensor]) -> Tensor:
    outputs: Tensor = device.program_outputs(x, device.pack_towers(weights, program), program)
    return outputs


def assert_near(got: Tensor, x: Tensor, weights: list[Tensor], program: Program) -> None:
    """Within a few times what eager float32 errs of the float64 reference, and what the precision's rounding changes.

    Drawn programs square and divide values as no ranker does, so that a bound on the numbers themselves means nothing.
    A value beside the middle of two rounded ones may be rounded to the other of them.
    """
    want = exact(program, x, weights)
    eager = program_outputs(x, weights, program).double()
    rounding = exact(replace(program, precision="float32"), x, weights) - want
    spread = 20 * (eager - want).abs().amax(0) + 2e-5 * want.abs().amax(0).clamp_min(1) + 2 * rounding.abs().amax(0)
    error = (got.double() - want).abs()
    finite = want.isfinite() & eager.isfinite()
    assert got.shape == want.shape
    assert bool((error <= spread)[finite].all()), f"error {error[finite].max():.2e}"


@on_all
@drawn(program=programs_of, count=lambda device: st.integers(1, 40 if device.slow else 60), times=4)
def test_outputs_are_exact(device: Device, program: Program, count: int) -> None:
    x, weights = rows_of(program, count), program_weights(program)
    if weights:
        assert_near(run(device, program, x, weights), x, weights, program)


@on_all
@drawn(program=programs_of, count=lambda device: st.integers(2, 70 if device.slow else 130))
def test_a_row_depends_on_no_other(device: Device, program: Program, count: int) -> None:
    x, weights = rows_of(program, count), program_weights(program)
    if not weights:
        return
    whole = run(device, program, x, weights)
    assert same_bits(torch.cat([run(device, program, x[:1], weights), run(device, program, x[1:], weights)]), whole)
    poisoned = x.clone()
    poisoned[0] = float("nan")
    assert same_bits(run(device, program, poisoned, weights)[1:], whole[1:])
    wide = torch.full((count, program.in_features + 9), float("nan"))
    wide[:, 4:-5] = x
    assert same_bits(run(device, program, wide[:, 4:-5], weights), whole)


@on_all
@pytest.mark.parametrize("kind", STEPS)
def test_precisions_round_linear_steps_alone(device: Device, kind: str, precision: str) -> None:
    builder = ProgramBuilder(12)
    width = {"sum": 3, "fm": 4, "dot": 3, "mix": 4}.get(kind, 12)
    groups = 1 if kind in ("copy", "mix", "linear") else 3
    inputs = (Segment(0, 0, 2), Segment(0, 2, 4), Segment(0, 6, 4)) if kind == "mix" else builder.x
    step = Step(kind, width, inputs, "silu", True, groups, 1e-5)
    hidden = builder.add(step, (None,) * len(list(step.weights())))
    program = builder.build(builder.add(Step("linear", 5, hidden + builder.x), (None, None)), precision=precision)
    x, weights = rows_of(program, 40), program_weights(program)
    want = exact(program, x, weights)
    got = run(device, program, x, weights)
    tolerance = {"float32": 1e-5, "bfloat16": 2e-2, "int8": 5e-2, "float16": 3e-3, "tensorfloat32": 3e-3}
    assert float((got - want).abs().max()) < tolerance[precision]
    unrounded = exact(replace(program, precision="float32"), x, weights)
    assert (float((got - unrounded).abs().max()) > 1e-5) == (precision != "float32")


@on_all
@drawn(
    program=lambda device: programs_of(device, tasks=3),
    requests=st.integers(0, 4),
    users=st.floats(0, 1),
    per=weights_per,
    sizes=lambda device: st.lists(st.integers(0, 16 if device.slow else 30), min_size=4, max_size=4),
)
def test_forms_score_programs(
    device: Device, program: Program, requests: int, users: float, per: str, sizes: list[int]
) -> None:
    """The request form's bits are those of whole rows, the k best those of the scores."""
    sizes = sizes[:requests]
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    request = torch.repeat_interleave(torch.arange(requests), torch.tensor(sizes, dtype=torch.int64))
    columns = round(users * program.in_features)
    x, user = rows_of(program, sum(sizes)), rows_of(program, requests, 1)[:, :columns]
    x[:, :columns] = user[request]
    weights = program_weights(program)
    rows = {"call": None, "request": requests, "candidate": len(x)}[per]
    fusion = torch.rand(3 if rows is None else (rows, 3), generator=torch.Generator().manual_seed(2))
    packed = device.pack_towers(weights, program)

    settings = (packed, program, fusion, "additive", per)
    split = device.request_scores(user, x[:, columns:], offsets, *settings)
    of_candidates = fusion[request] if per == "request" else fusion
    dense = device.dense_scores(x, packed, program, of_candidates, "additive", "call" if rows is None else "candidate")
    assert same_bits(dense, split)
    own = run(device, replace(program, parents=(), logit_residual=False), x, weights)
    if not program.logit_residual:
        assert same_bits(own, dense.logits)
    logits = own.double().unbind(1)
    for task, parent in enumerate(program.parents):
        if program.logit_residual and parent >= 0:
            logits = (*logits[:task], logits[task] + logits[parent], *logits[task + 1 :])
    fused = finish(torch.stack(logits, 1), of_candidates.double(), "additive")
    assert_exact(dense, fused, of_candidates)
    for best in (
        device.request_topk(user, x[:, columns:], offsets, *settings, k=5),
        device.dense_topk(x, offsets, *settings, k=5),
    ):
        for at in range(requests):
            scores = dense.score[offsets[at] : offsets[at + 1]]
            kept = best.positions[at][best.positions[at] >= 0]
            assert len(kept) == min(5, len(scores))
            assert same_bits(scores[kept], best.scores[at][: len(kept)])
            assert same_bits(
                scores.nan_to_num(-1e30).sort(descending=True).values[:5],
                best.scores[at][: len(kept)].nan_to_num(-1e30),
            )


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


def feature_program(precision: str) -> Program:
    """Reads the row as a whole and column by column."""
    builder = ProgramBuilder(28)
    hidden = builder.add(Step("linear", 20, builder.x, "relu"), (None, None))
    crossed = builder.add(Step("linear", 28, hidden, factors=builder.x, addends=builder.x), (None, None))
    pooled = builder.add(Step("fm", 4, builder.x, groups=7))
    return builder.build(builder.add(Step("linear", 2, crossed + pooled), (None, None)), (-1, 0), precision=precision)


@pytest.mark.devices(programs=True, form="feature")
def test_features_score_programs(device: Device, precision: str) -> None:
    """Rows pooled from tables have the bits of rows that are there, once per request or per candidate."""
    program, generator = feature_program(precision), torch.Generator().manual_seed(3)
    tables = [torch.randn(9, width, generator=generator) for width in (5, 11, 8, 4)]
    tables[1] = tables[1].bfloat16()
    user_ids, item_ids = (torch.randint(0, 9, (count, 1), generator=generator) for count in (3, 41))
    lists = [torch.randint(0, 9, (length,), generator=generator) for length in (2, 0, 1)]
    offsets = torch.tensor([0, 20, 20, 41])
    request = torch.tensor([0] * 20 + [2] * 21)
    values, ends = torch.cat(lists), torch.tensor([0, *map(len, lists)]).cumsum(0)
    pooled = torch.stack([tables[1][own].float().sum(0) for own in lists])
    item_lists = torch.randint(0, 9, (41, 2), generator=generator)
    x = torch.cat(
        (
            tables[0][user_ids[request, 0]],
            pooled[request],
            tables[2][item_ids[:, 0]],
            tables[3][item_lists].sum(1),
        ),
        dim=1,
    )
    packed = device.pack_towers(program_weights(program), program)
    settings = (packed, program, torch.tensor([1.0, 2.0]))
    dense = device.dense_scores(x, *settings)
    made = FeatureTables(tables, [], [1, 3])
    per_item = torch.arange(0, 83, 2)
    item = FeatureIds(item_ids, item_lists.flatten(), per_item)
    user = FeatureIds(user_ids, values, ends)
    assert same_bits(device.feature_request_scores(user, item, offsets, made, 2, *settings), dense)
    best = device.feature_request_topk(user, item, offsets, made, 2, *settings, k=3)
    assert same_bits(best, device.dense_topk(x, offsets, *settings, k=3))
    whole_lists = [lists[at] for at in request.tolist()]
    both = FeatureIds(
        torch.cat((user_ids[request], item_ids), dim=1),
        torch.cat((*whole_lists, item_lists.flatten())),
        torch.cat((torch.tensor([0, *map(len, whole_lists)]).cumsum(0), sum(map(len, whole_lists)) + per_item[1:])),
    )
    assert same_bits(device.feature_scores(both, made, *settings), dense)
    assert same_bits(device.feature_topk(both, offsets, made, *settings, k=3), best)


@on_all
def test_rows_of_other_types(device: Device) -> None:
    builder = ProgramBuilder(70)
    hidden = builder.add(Step("linear", 33, builder.x, "relu"), (None, None))
    crossed = builder.add(Step("linear", 70, hidden, factors=builder.x, addends=builder.x), (None, None))
    program = builder.build(crossed)
    for dtype in device.rows:
        x, weights = rows_of(program, 50).to(dtype), program_weights(program)
        assert same_bits(run(device, program, x, weights), run(device, program, x.float(), weights))


@on_all
def test_values_wider_than_shared_memory(device: Device) -> None:
    """On a GPU such a tile lies in global memory, with the same steps."""
    builder = ProgramBuilder(40)
    wide = builder.add(Step("linear", 3000, builder.x, "relu"), (None, None))
    normed = builder.add(Step("layer_norm", 6000, wide + wide, groups=2, epsilon=1e-5))
    gates = builder.add(Step("softmax", 2, columns_of(normed, 5, 2)))
    halves = (columns_of(normed, 0, 3000), columns_of(normed, 3000, 3000))
    mixed = builder.add(Step("mix", 3000, gates + halves[0] + halves[1], "tanh"))
    program = builder.build(builder.add(Step("linear", 3, mixed + columns_of(builder.x, 0, 1)), (None, None)))
    x, weights = rows_of(program, 19), program_weights(program)
    got = run(device, program, x, weights)
    assert_near(got, x, weights, program)
    assert same_bits(run(device, program, x[7:8], weights), got[7:8])


@on_all
def test_no_rows(device: Device) -> None:
    program = Program(6, (Step("linear", 2, X),), (Segment(1, 0, 2), Segment(0, 0, 6)))
    x, weights = rows_of(program, 5), program_weights(program)
    assert run(device, program, x[:0], weights).shape == (0, 8)
    assert same_bits(run(device, program, x, weights)[:, 2:], x)


@pytest.mark.devices("emulated", "cuda", "triton")
def test_gpus_refuse_catalogs_of_programs(device: Device) -> None:
    program = Program(6, (Step("linear", 2, X),), (Segment(1, 0, 2),), (-1, 0))
    packed = device.pack_towers(program_weights(program), program)
    refused = r"plan must be a forest of towers, got a tile program|got 'triton': it has no catalogs of tile programs"
    with pytest.raises(ValueError, match=refused):
        device.catalog_rows(torch.zeros(2, 3), packed, program)
    table, ids = (torch.zeros(4, 16), torch.zeros(0)), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match=refused):
        device.catalog_scores(torch.zeros(1, 3), ids, torch.tensor([0, 3]), *table, packed, program, torch.ones(2))


@pytest.mark.devices(programs=True, raises=False)
def test_weights_of_another_program_are_nan(device: Device) -> None:
    program = Program(6, (Step("linear", 2, X),), (Segment(1, 0, 2),), (-1, 0))
    other = replace(program, logit_residual=True)
    x, packed = rows_of(program, 20), device.pack_towers(program_weights(program), program)
    assert not device.dense_scores(x, packed, program, torch.ones(2)).score.isnan().any()
    assert all(part.isnan().all() for part in device.dense_scores(x, packed, other, torch.ones(2)))
    outputs, packed = replace(program, parents=()), device.pack_towers(program_weights(program), program)
    assert device.program_outputs(x, packed, outputs).isnan().all()


@pytest.mark.devices(programs=True, raises=False)
def test_candidates_outside_all_requests_are_nan(device: Device) -> None:
    program = feature_program("float32")
    packed = device.pack_towers(program_weights(program), program)
    x, settings = rows_of(program, 30), (packed, program, torch.ones(2))
    right = device.request_scores(x[:2, :7], x[:, 7:], torch.tensor([0, 10, 30]), *settings)
    wrong = device.request_scores(x[:2, :7], x[:, 7:], torch.tensor([3, 10, 22]), *settings)
    inside = slice(3, 22)
    assert all(same_bits(a[inside], b[inside]) for a, b in zip(right, wrong, strict=True))
    assert all(part[:3].isnan().all() and part[22:].isnan().all() for part in wrong)


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
        ValueError, match="backend must be one that serves this call, got 'reference': tile programs run on the kernels"
    ):
        ops.program_outputs(torch.zeros(2, 6), packed, program, backend="reference")


def test_opcheck_and_compile() -> None:
    program = Program(6, (Step("linear", 2, X, "elu"),), joined((Segment(1, 0, 2), *columns_of(X, 1, 3))))
    packed = ops.pack_towers(program_weights(program), program)
    x = rows_of(program, 5)
    torch.library.opcheck(torch.ops.resflow.program_outputs.default, (x, packed, list(program.encoded)))
    compiled = torch.compile(lambda rows: ops.program_outputs(rows, packed, program), fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), ops.program_outputs(x, packed, program))


@on_all
@pytest.mark.parametrize("users", [0, 1, 16, 21, 39, 40])
@pytest.mark.parametrize("reads_row", [False, True])
def test_users_columns_are_multiplied_once_per_request(
    device: Device, users: int, precision: str, reads_row: bool
) -> None:
    """Steps that begin with the user's columns have the bits of whole rows; in int8 whole rows are rounded."""
    if device.interpreted and users != 21:
        pytest.skip("interpreted: one division of the row")
    builder = ProgramBuilder(40)
    ranges = ((0, 40), (3, 30), (21, 19), (0, 5))
    parts = [builder.add(Step("linear", 20, columns_of(builder.x, *at), "relu"), (None, None)) for at in ranges]
    hidden: tuple[Segment, ...] = joined([segment for part in parts for segment in part])
    if reads_row:
        hidden = builder.add(Step("linear", 40, hidden, factors=builder.x), (None, None))
    outputs = builder.add(Step("linear", 2, hidden), (None, None))
    program = builder.build(outputs, (-1, 0), precision=precision)
    packed, weights = device.pack_towers(program_weights(program), program), torch.ones(2)
    user, item = rows_of(program, 3, 1)[:, :users], rows_of(program, 70)[:, users:]
    offsets = torch.tensor([0, 50, 50, 70])
    x = torch.cat((user[[0] * 50 + [2] * 20], item), dim=1)
    dense = device.dense_scores(x, packed, program, weights)
    for rows in (user, user.bfloat16()) if torch.bfloat16 in device.rows else (user,):
        split = device.request_scores(rows, item, offsets, packed, program, weights)
        if rows is user:
            assert same_bits(dense, split)
        else:
            assert float((dense.probs - split.probs).abs().max()) < 0.05
    if device.name not in ("cpu", "numpy"):  # GPUs have no catalogs of programs
        return
    for dtype, bound in (("float32", 1e-5), ("bfloat16", 0.02), ("int8", 0.05)):
        table = device.catalog_rows(item, packed, program, dtype)
        looked_up = device.catalog_scores(user, torch.arange(70), offsets, *table, packed, program, weights)
        own_bound = max(bound, 0.05) if precision == "int8" else bound  # whole rows have other scales than their parts
        assert float((dense.probs - looked_up.probs).abs().max()) < own_bound
