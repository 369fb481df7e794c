"""The dense, the request and the catalog form against the float64 reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import strategies as st

from resflow_kernels import ops, reference
from resflow_kernels.contract import ACTIVATIONS, TABLE_PRECISIONS
from resflow_kernels.core.plan import Plan, chain
from resflow_kernels.testing import WORKLOADS, assert_exact, random_weights
from tests.support.cases import CALL, CANDIDATE, CatalogCase, RequestCase, TowerCase, activated
from tests.support.comparisons import same_bits
from tests.support.devices import Device
from tests.support.draws import batches_of, drawn, elements, fusions, plans_of, plans_up_to, seeds, weights_per

TREE = Plan(20, (130, 5), (-1, 0, 0, 1), "tanh", non_increasing=True)
NARROW = Plan(33, (64, 16), chain(16), "gelu", precision="bfloat16")
WIDE = Plan(576, (128, 64), chain(16), "gelu")


def sizes(device: Device) -> tuple[int, ...]:
    """Batches of the workloads: each takes another kernel of a GPU."""
    if device.slow:
        return (9,) if device.interpreted else (1, 33)
    return (200,) if device.place == "cpu" else (1, 16, 257, 3000, 40_000)


def row_dtypes(device: Device, precision: str) -> list[torch.dtype]:
    """What rows of the workloads are stored as; on a device that is slow no other than float32 and the precision's."""
    few = (torch.float32,) if device.interpreted else (torch.float32, getattr(torch, precision, torch.float32))
    return [dtype for dtype in device.rows if not device.slow or dtype in few]


def skip_where_interpreted(device: Device, name: str, *kept: str) -> None:
    if device.interpreted and name not in kept:
        pytest.skip(f"interpreted: of the workloads {', '.join(kept)} alone")


@drawn(
    {"plan": Plan(1, (1,), (-1,)), "batch": 1, "fusion": "additive", "per": CALL, "seed": 0},
    {"plan": NARROW, "batch": 49, "fusion": "expected_value", "per": CANDIDATE, "seed": 1},
    {"plan": WIDE, "batch": 49, "fusion": "expected_value", "per": CANDIDATE, "seed": 1},
    {"plan": replace(TREE, precision="float16"), "batch": 33, "fusion": "multiplicative", "per": CALL, "seed": 2},
    plan=plans_of,
    batch=batches_of,
    fusion=fusions,
    per=st.sampled_from([CALL, CANDIDATE]),
    seed=seeds,
)
def test_dense_scores(device: Device, plan: Plan, batch: int, fusion: str, per: str, seed: int) -> None:
    case = TowerCase(plan, batch, fusion, per, seed, ops=device)
    assert_exact(case.run(), case.exact(), case.fusion_weights, plan.precision)


@pytest.mark.parametrize("name", WORKLOADS)
def test_dense_scores_of_workloads(device: Device, name: str, precision: str) -> None:
    """Few rows and many, and rows of every dtype: another kernel each."""
    if precision in ("float16", "tensorfloat32"):
        skip_where_interpreted(device, name, "ecomm2", "prerank3", "video5")
    plan = replace(WORKLOADS[name].plan, precision=precision)
    for batch in sizes(device):
        case = TowerCase(plan, batch, seed=batch, ops=device)
        for dtype in row_dtypes(device, precision):
            x = case.x.to(dtype)
            assert_exact(case.run(x), case.exact(x), case.fusion_weights, precision)


@pytest.mark.devices(slow=False)
@pytest.mark.parametrize("name", WORKLOADS)
def test_bfloat16_probabilities_are_near_the_unrounded_ones(device: Device, name: str) -> None:
    """The bound that users read: 1e-2 of the float64 model, roundings of weights and rows included."""
    case = TowerCase(replace(WORKLOADS[name].plan, precision="bfloat16"), 500, ops=device)
    unrounded = TowerCase(WORKLOADS[name].plan, 500, ops=device)
    assert (case.run().probs.double() - unrounded.exact().probs).abs().max() <= 1e-2


@pytest.mark.devices("cpu", "reference", "emulated", "cuda", row=torch.bfloat16)
@drawn(
    tasks=st.integers(1, 4),
    width=st.sampled_from([8, 40, 64, 72, 200]),
    activation=st.sampled_from(ACTIVATIONS),
    switches=st.tuples(*[st.booleans()] * 3),
    batch=st.sampled_from([1, 60, 127, 128, 129, 200]),
    fusion=fusions,
    precision=lambda device: st.sampled_from([name for name in ("bfloat16", "float16") if name in device.precisions]),
    seed=seeds,
    most=12,
)
def test_towers_of_128_and_64(
    device: Device,
    tasks: int,
    width: int,
    activation: str,
    switches: tuple[bool, bool, bool],
    batch: int,
    fusion: str,
    precision: str,
    seed: int,
) -> None:
    """The paper's widths, rows of the precision: what the kernel for Hopper is for."""
    feature_residual, logit_residual, affine = switches
    plan = Plan(width, (128, 64), chain(tasks), activation, feature_residual, logit_residual, affine=affine)
    case = TowerCase(replace(plan, precision=precision), batch, fusion, seed=seed, ops=device)
    x = case.x.to(getattr(torch, precision))
    assert_exact(case.run(x), case.exact(x), case.fusion_weights, precision)


def test_rows_of_16_bits(device: Device, precision: str) -> None:
    """Read as they are: the scores are bitwise those of the same rows in float32."""
    for width in (8, 37):  # aligned to 16 bytes, and not
        case = TowerCase(Plan(width, (40, 8), (-1, 0), precision=precision), 21, ops=device)
        for dtype in device.rows:
            x = case.x.to(dtype)
            got = case.run(x)
            assert same_bits(got, case.run(x.float()))
            assert_exact(got, case.exact(x), case.fusion_weights, precision)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_over_their_range(device: Device, activation: str) -> None:
    """From -200 to 200, and near 0."""
    count = 401 if device.slow else 4001
    near_zero = 10.0 ** torch.arange(-38, 0)
    values = torch.cat((torch.linspace(-200, 200, count), torch.linspace(-4, 4, count), near_zero, -near_zero))
    got = activated(activation, values, device).double()
    exact = reference.activate(activation, values.double(), torch.tensor(0.25, dtype=torch.float64))
    bound = 1e-6 if device.name == "reference" else 3e-7  # PyTorch's float32 loses digits of gelu below 0
    assert ((got - exact).abs() <= bound * (1 + exact.abs())).all()


@pytest.mark.devices("numpy", "emulated", "cuda")
def test_packing_is_that_of_the_cpu(device: Device, precision: str) -> None:
    plan = Plan(37, (130, 5), chain(3), affine=True, precision=precision)
    weights = random_weights(plan)
    assert torch.equal(device.pack_towers(weights, plan), ops.pack_towers(weights, plan))


@pytest.mark.parametrize(("tasks", "layers"), [(64, 1), (17, 1), (64, 16), (2, 16)])
def test_plans_at_their_limits(device: Device, tasks: int, layers: int) -> None:
    if device.interpreted and tasks * layers > 64:
        pytest.skip("interpreted: takes minutes")
    parents = (-1,) * tasks if tasks > 2 and layers > 1 else chain(tasks)
    case = TowerCase(Plan(5, (3,) * layers, parents, "relu"), 3, ops=device)
    assert_exact(case.run(), case.exact(), case.fusion_weights)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("inputs", "hidden"), [(20_000, (3,)), (5, (2000, 3)), (2000, (2000,)), (130, (300,))])
def test_widths_beyond_shared_memory(device: Device, inputs: int, hidden: tuple[int, ...], precision: str) -> None:
    if device.interpreted:  # fewer of them, in a hundredth of the time
        if hidden == (2000,):
            pytest.skip("interpreted: takes minutes")
        inputs, hidden = min(inputs, 2000), tuple(min(width, 600) for width in hidden)
    case = TowerCase(Plan(inputs, hidden, (-1, 0), "relu", precision=precision), 3, ops=device)
    assert_exact(case.run(), case.exact(), case.fusion_weights, precision)


@drawn(
    {
        "plan": replace(NARROW, parents=(-1, 0)),
        "batch": 65,
        "requests": 1,
        "fusion": "additive",
        "per": CALL,
        "seed": 3,
    },
    {
        "plan": Plan(150, (130, 8), (-1, 0, 0)),
        "batch": 20,
        "requests": 7,
        "fusion": "multiplicative",
        "per": "request",
        "seed": 4,
    },
    plan=plans_up_to(6),
    batch=batches_of,
    requests=st.integers(1, 9),
    fusion=fusions,
    per=weights_per,
    seed=seeds,
)
def test_request_scores(
    device: Device, plan: Plan, batch: int, requests: int, fusion: str, per: str, seed: int
) -> None:
    """However the input row is cut: at odd places, at its ends."""
    case = RequestCase(plan, batch, requests, fusion, per, seed, ops=device)
    got = case.scores()
    assert_exact(got, case.exact_scores(), case.fusion_weights, plan.precision)
    if device.name in ("cpu", "numpy") and plan.precision == "float32":
        assert same_bits(got, case.dense_scores())


@pytest.mark.parametrize("name", WORKLOADS)
def test_request_scores_of_workloads(device: Device, name: str, precision: str) -> None:
    skip_where_interpreted(device, name, "prerank3", "progressive9")
    plan, split = replace(WORKLOADS[name].plan, precision=precision), WORKLOADS[name].user_features
    dtype = getattr(torch, precision, torch.float32)  # what Hopper's kernel takes, where the device takes it
    for batch in sizes(device)[-1:] if device.slow else sizes(device):
        offsets = [0, batch // 3, batch // 3, batch]
        case = RequestCase(plan, batch, 3, split=split, offsets=offsets, ops=device)
        case.item = case.item.contiguous()
        for rows in {torch.float32, dtype} & set(device.rows) if not device.slow else {dtype}:
            case.user, case.item = case.user.to(rows), case.item.to(rows)
            assert_exact(case.scores(), case.exact_scores(), case.fusion_weights, precision)


@drawn(
    plan=plans_up_to(6),
    batch=batches_of,
    requests=st.integers(1, 5),
    dtype=elements,
    fusion=fusions,
    per=weights_per,
    seed=seeds,
)
def test_catalog_scores(
    device: Device, plan: Plan, batch: int, requests: int, dtype: str, fusion: str, per: str, seed: int
) -> None:
    case = CatalogCase(plan, batch, requests, fusion, per, seed, dtype=dtype, ops=device)
    held, exact = case.held, case.exact_rows()
    step = {"float32": 1e-5, "bfloat16": 2**-8, "int8": 1 / 120}[dtype]
    # A float32 at a rounding's edge, see testing; a GPU's kernels need no allowance for it.
    slack = 0.02 if device.raises and plan.precision != "float32" else 0.0
    assert ((held - exact).abs() <= (step + slack) * (exact.abs().amax((1, 2), keepdim=True) + 1)).all()

    got = case.scores()
    assert_exact(got, case.exact_scores(), case.fusion_weights, plan.precision)
    assert same_bits(case.topk(7), reference.topk(got.score, case.offsets, 7))


@pytest.mark.parametrize("dtype", TABLE_PRECISIONS)
@pytest.mark.parametrize("name", WORKLOADS)
def test_catalog_scores_of_workloads(device: Device, name: str, dtype: str) -> None:
    skip_where_interpreted(device, name, "prerank3")
    workload, batch = WORKLOADS[name], 20 if device.place == "cpu" else 20_000
    for precision in ("float32", "bfloat16") if device.slow else device.precisions:
        plan = replace(workload.plan, precision=precision)
        options = {"split": workload.user_features, "offsets": [0, batch // 4, batch]}
        case = CatalogCase(plan, batch, 2, dtype=dtype, rows=40, ops=device, **options)
        assert_exact(case.scores(), case.exact_scores(), case.fusion_weights, precision)


@pytest.mark.parametrize("dtype", TABLE_PRECISIONS)
def test_a_table_of_the_cpu_scores_alike(device: Device, dtype: str) -> None:
    """Tables move between devices: their layout is the same, and so are the values to a step of the dtype."""
    plan = Plan(20, (33, 5), (-1, 0))
    case = CatalogCase(plan, 11, 1, dtype=dtype, rows=11, split=8, ops=device)
    table, scales = ops.catalog_rows(case.items, case.packed, plan, dtype)
    assert case.table.shape == table.shape and case.table.dtype == table.dtype
    torch.testing.assert_close(case.scales, scales, rtol=1e-5, atol=0)
    assert (case.table.float() - table.float()).abs().max() <= {"float32": 1e-5, "bfloat16": 2e-2, "int8": 1}[dtype]
    case.table, case.scales = table, scales
    there = case.scores()
    case.ops = ops
    here = case.scores()
    assert_exact(there, type(here)(*(part.double() for part in here)), case.fusion_weights)


def test_int8_rows_that_are_not_finite(device: Device) -> None:
    """Such an item's scale is NaN, and zeros are zeros."""
    case = CatalogCase(Plan(6, (5,), (-1, 0)), 0, 1, dtype="int8", split=2, ops=device)
    items = torch.randn(4, 4)
    clean, clean_scales = device.catalog_rows(items, case.packed, case.plan, "int8")
    items[1, 0], items[2] = float("inf"), 0.0
    table, scales = device.catalog_rows(items, case.packed, case.plan, "int8")
    assert scales.isnan().tolist() == [False, True, False, False] and table[2].eq(0).all()
    assert torch.equal(table[[0, 3]], clean[[0, 3]]) and torch.equal(scales[[0, 3]], clean_scales[[0, 3]])


@pytest.mark.devices(slow=False, bitwise=True)
def test_catalogs_beyond_one_turn_of_products(device: Device) -> None:
    """A GPU multiplies items 64 MiB of float32 products at a time."""
    plan = Plan(20, (128, 8), (-1, 0, 1))
    case = TowerCase(plan, 0, ops=device)
    items = torch.randn(100_000, 12)
    table, _ = device.catalog_rows(items, case.packed, plan, "float32")
    some = torch.tensor([0, 43_689, 43_690, 43_691, 87_381, 99_999])
    assert same_bits((table[some],), device.catalog_rows(items[some], case.packed, plan, "float32")[:1])
