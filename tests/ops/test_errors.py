"""Bad input is named in the same words on every device; values that make no sense raise, or on a GPU score NaN."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

from resflow_kernels import ops
from resflow_kernels.contract import TABLE_PRECISIONS
from resflow_kernels.core.plan import Plan
from resflow_kernels.ops import library
from resflow_kernels.testing import random_weights
from tests.support.cases import FeatureCase, RequestCase, TowerCase, TwinCase
from tests.support.comparisons import same_bits
from tests.support.devices import Device

PLAN = Plan(6, (5,), (-1, 0))
BAD_OFFSETS = ([0, 5, 3, 9], [1, 2, 3, 9], [0, 3, 6, 8], [0, 3, 6, 10], [0, -5, 2**40, 9], [-(2**62)] * 4, [2**62] * 4)
BAD_IDS = (-1, 9, 1000, 2**40, -(2**63))


def test_bad_input_is_named(device: Device) -> None:
    packed = device.pack_towers(random_weights(PLAN), PLAN)
    good = {"x": torch.zeros(3, 6), "packed": packed, "plan": PLAN, "fusion_weights": torch.ones(2)}
    rows = "float32, bfloat16 or float16" if torch.float16 in device.rows else "float32 or bfloat16"
    for change, text in (
        (("x", torch.zeros(3, 5)), "x must be a matrix with 6 columns, got [3, 5]"),
        (("x", torch.zeros(3, 6).double()), f"x must be {rows}, got float64"),
        (("x", torch.zeros(6, 3).T), "x must be contiguous in its last dimension, got strides [1, 3]"),
        (
            ("packed", packed[:-1]),
            f"packed must be the {PLAN.packed_bytes} bytes of weights packed for this plan, got [{len(packed) - 1}]",
        ),
        (("packed", packed.float()), "packed must be uint8, got float32"),
        (("fusion_weights", torch.ones(3)), "fusion_weights must be a vector of 2, got [3]"),
        (("fusion", "sum"), "fusion must be one of additive, multiplicative, expected_value, got 'sum'"),
    ):
        with pytest.raises(ValueError) as raised:
            device.dense_scores(**(good | dict([change])))
        assert str(raised.value) == f"dense_scores: {text}"
    settings = (packed, PLAN, torch.ones(2))
    with pytest.raises(ValueError, match=r"^dense_topk: k must be at least 1, got 0$"):
        device.dense_topk(torch.zeros(3, 6), torch.tensor([0, 3]), *settings, k=0)


@pytest.mark.devices("cpu", "numpy", "emulated", "cuda", "triton")
def test_a_precision_of_other_devices_is_named(device: Device) -> None:
    known, other = ", ".join(device.precisions), "float16" if device.raises else "int8"
    texts = {
        "triton": f"computes in {known}, not in {other}$",
        "cpu": f"^dense_scores: plan precision must be one of {known} on the CPU, got {other}$",
        "cuda": f"^dense_scores: plan precision must be one of {known} on a GPU, got {other}$",
    }
    case = TowerCase(PLAN, 3, ops=device)
    own = {"numpy": "cpu", "emulated": "cuda"}.get(device.name, device.name)
    with pytest.raises(ValueError, match=texts[own]):
        device.dense_scores(case.x, case.packed, replace(PLAN, precision=other), torch.ones(2))


@pytest.mark.devices(raises=True)
@pytest.mark.parametrize("values", BAD_OFFSETS)
def test_offsets_that_make_no_sense_are_named(device: Device, values: list[int]) -> None:
    case = RequestCase(PLAN, 9, 3, split=2, ops=device)
    offsets = torch.tensor(values)
    table = device.catalog_rows(torch.randn(4, 4), case.packed, PLAN, "float32")
    for name, inputs in {
        "request_scores": (case.user, case.item, offsets),
        "dense_topk": (case.x, offsets),
        "request_topk": (case.user, case.item, offsets),
        "catalog_scores": (case.user, torch.arange(9) % 4, offsets, *table),
        "catalog_topk": (case.user, torch.arange(9) % 4, offsets, *table),
    }.items():
        with pytest.raises(ValueError, match=rf"^{name}: offsets\[\d\] must be offsets that (start|do not|end)"):
            getattr(device, name)(*inputs, *case.settings[:3])


@pytest.mark.devices(raises=False)
@pytest.mark.parametrize("values", BAD_OFFSETS)
def test_offsets_that_make_no_sense_never_crash(device: Device, values: list[int]) -> None:
    """What lies in no request, or in two, scores something or NaN; shapes and other calls are as ever."""
    case = TowerCase(PLAN, 9, ops=device)
    offsets, user = torch.tensor(values), torch.randn(3, 2)
    item, ids = case.x[:, 2:].contiguous(), torch.arange(9) % 4
    rest = (case.packed, PLAN, case.fusion_weights)
    table = device.catalog_rows(torch.randn(4, 4), case.packed, PLAN, "float32")
    assert device.request_scores(user, item, offsets, *rest).logits.shape == (9, 2)
    assert device.catalog_scores(user, ids, offsets, *table, *rest).logits.shape == (9, 2)
    for best in (
        device.dense_topk(case.x, offsets, *rest, k=4),
        device.request_topk(user, item, offsets, *rest, k=4),
        device.catalog_topk(user, ids, offsets, *table, *rest, k=4),
    ):
        assert best.positions.shape == (3, 4) and (best.positions >= -1).all() and (best.positions < 2**41).all()
        if device.name != "triton":  # it ranks by the offsets, wherever they end
            assert (best.positions < 9).all()
    per_request = (case.packed, PLAN, torch.rand(3, 2), "additive", "request")
    assert device.request_scores(user, item, offsets, *per_request).score.shape == (9,)
    assert not device.dense_scores(case.x, *rest).score.isnan().any()


@pytest.mark.devices(raises=False)
def test_candidates_outside_all_requests_score_nan(device: Device) -> None:
    """Offsets are not read back: what they leave out is not scored, what they hold is."""
    case = RequestCase(Plan(8, (5,), (-1, 0)), 20, 2, split=3, ops=device)
    whole = device.request_scores(case.user, case.item, torch.tensor([0, 10, 20]), *case.settings)
    some = device.request_scores(case.user, case.item, torch.tensor([4, 10, 17]), *case.settings)
    inside = (torch.arange(20) >= 4) & (torch.arange(20) < 17)
    assert same_bits(tuple(part[inside] for part in some), tuple(part[inside] for part in whole))
    assert all(part[~inside].isnan().all() for part in some)
    nobody = device.request_scores(case.user[:0], case.item, torch.tensor([0]), *case.settings)
    assert all(part.isnan().all() for part in nobody)


@pytest.mark.devices(raises=True)
@pytest.mark.parametrize("bad", BAD_IDS)
def test_an_id_that_is_no_row_is_named(device: Device, bad: int) -> None:
    case = TowerCase(PLAN, 0, ops=device)
    table, scales = device.catalog_rows(torch.randn(9, 4), case.packed, PLAN, "float32")
    inputs = (torch.zeros(1, 2), torch.tensor([0, 8, bad, 3]), torch.tensor([0, 4]), table, scales)
    for name in ("catalog_scores", "catalog_topk"):
        text = rf"^{name}: ids\[2\] must be rows of the table, 0 to 8, got {bad}$"
        with pytest.raises(ValueError, match=text):
            getattr(device, name)(*inputs, case.packed, PLAN, torch.ones(2))


@pytest.mark.devices(raises=False)
@pytest.mark.parametrize("bad", BAD_IDS)
@pytest.mark.parametrize("dtype", TABLE_PRECISIONS)
def test_an_id_that_is_no_row_scores_nan_alone(device: Device, dtype: str, bad: int) -> None:
    case = TowerCase(PLAN, 0, ops=device)
    items, user, offsets = torch.randn(4, 4), torch.randn(1, 2), torch.tensor([0, 9])
    rest = (case.packed, PLAN, case.fusion_weights)
    ids, others = torch.arange(9) % 4, torch.arange(9) != 5
    wrong = torch.where(others, ids, bad)
    table = device.catalog_rows(items, case.packed, PLAN, dtype)
    good = device.catalog_scores(user, ids, offsets, *table, *rest)
    got = device.catalog_scores(user, wrong, offsets, *table, *rest)
    assert all(part[5].isnan().all() for part in got)
    assert same_bits(tuple(part[others] for part in got), tuple(part[others] for part in good))
    best = device.catalog_topk(user, wrong, offsets, *table, *rest, k=9)
    assert best.positions[0, -1] == 5 and best.scores[0, -1].isnan()


@pytest.mark.devices(form="twin_ids", raises=True)
@pytest.mark.parametrize("bad", BAD_IDS)
def test_an_id_that_is_no_row_of_twins_is_named(device: Device, bad: int) -> None:
    case = TwinCase(2, 3, 9, 1, ops=device)
    ids = torch.tensor([0, 8, bad, 3])
    inputs = (case.user, ids, torch.tensor([0, 4]), case.table, case.scales, torch.ones(2), case.parents)
    for name in ("twin_ids_scores", "twin_ids_topk"):
        with pytest.raises(ValueError, match=rf"{name}: ids\[2\] must be rows of the table, 0 to 8, got {bad}$"):
            getattr(device, name)(*inputs)


@pytest.mark.devices(form="twin_ids", raises=False)
@pytest.mark.parametrize("bad", BAD_IDS)
@pytest.mark.parametrize("dtype", TABLE_PRECISIONS)
def test_an_id_that_is_no_row_of_twins_scores_nan_alone(device: Device, dtype: str, bad: int) -> None:
    ids, others = torch.arange(9) % 4, torch.arange(9) != 5
    rows, scales = device.twin_rows(torch.randn(4, 6), 2, dtype)
    rest = (torch.tensor([0, 9]), rows, scales, torch.ones(2), [-1, 0])
    user = torch.randn(1, 6)
    good = device.twin_ids_scores(user, ids, *rest)
    got = device.twin_ids_scores(user, torch.where(others, ids, bad), *rest)
    assert all(part[5].isnan().all() for part in got)
    assert same_bits(tuple(part[others] for part in got), tuple(part[others] for part in good))


@pytest.mark.devices(form="feature", raises=False)
@pytest.mark.parametrize("bad", BAD_IDS)
@pytest.mark.parametrize("ragged", [False, True])
def test_a_feature_id_that_is_no_row_scores_nan_alone(device: Device, bad: int, ragged: bool) -> None:
    case = FeatureCase(Plan(1, (20, 5), (-1, 0)), [9, 4], ["float32", "int8"], [ragged, False], 12, 3, ops=device)
    bad = len(case.tables.tables[0]) if bad == 9 else bad
    good, (ids, values, offsets) = case.run(), case.ids
    owner = 5
    if ragged:
        owner = int(offsets[: 12 + 1].diff().argmax())
        values = values.clone()
        values[offsets[owner]] = bad
    else:
        ids = ids.clone()
        ids[owner, 0] = bad
    got = case.run(case.ids._replace(ids=ids, values=values))
    others = torch.arange(12) != owner
    assert all(part[owner].isnan().all() for part in got)
    assert same_bits(tuple(part[others] for part in got), tuple(part[others] for part in good))


@pytest.mark.devices("cpu", "numpy", "emulated", "cuda", "triton")
def test_weights_packed_for_another_plan(device: Device, precision: str) -> None:
    """Of the same size, so that the header alone tells."""
    for plan, other in (
        (Plan(6, (5, 4), (-1, 0), affine=True), Plan(6, (5, 4), (-1, -1), affine=True)),
        (Plan(6, (8,), (-1, 0), "relu"), Plan(6, (8,), (-1, 0), "tanh")),
    ):
        plan, other = (replace(one, precision=precision) for one in (plan, other))
        case = TowerCase(plan, 20, ops=device)
        assert other.packed_bytes == plan.packed_bytes
        for name, arguments in {
            "dense_scores": (case.x, case.packed, other, case.fusion_weights),
            "catalog_rows": (case.x, case.packed, other, "float32"),
        }.items():
            if device.raises:
                with pytest.raises(ValueError, match=f"^{name}: packed must be packed for this plan by pack_towers"):
                    getattr(device, name)(*arguments)
            elif name == "dense_scores":
                assert all(part.isnan().all() for part in device.dense_scores(*arguments))
            else:
                assert device.catalog_rows(*arguments)[0][:, : plan.hidden[0]].isnan().all()


@pytest.mark.parametrize("place", [1, 8])
@pytest.mark.devices("cpu", "numpy", "emulated", "cuda", "triton")
def test_weights_at_an_odd_address(device: Device, place: int) -> None:
    """GPU kernels refuse them; the CPU's and Triton's read them all the same."""
    case = TowerCase(PLAN, 3, ops=device)
    packed = device.tensor(torch.cat((torch.zeros(place, dtype=torch.uint8), case.packed)))[place:]
    for op, inputs, settings in (
        ("dense_scores", (case.x,), (case.fusion_weights,)),
        ("catalog_rows", (case.x[:, 2:],), ("float32",)),
    ):
        call = getattr(device, op)
        if device.name in ("emulated", "cuda"):
            with pytest.raises(ValueError, match=f"{op}: packed must be at an address that 16 divides"):
                call(*inputs, packed, PLAN, *settings)
        else:
            assert same_bits(call(*inputs, packed, PLAN, *settings), call(*inputs, case.packed, PLAN, *settings))


CHECKED = """
import sys, torch
from resflow_kernels import ops
from resflow_kernels.core.plan import Plan
from resflow_kernels.ops import library
from resflow_kernels.testing import random_weights
from tests.support.devices import Device
device, plan = Device(sys.argv[1]), Plan(6, (5, 4), (-1, 0), affine=True)
packed = ops.pack_towers(random_weights(plan), plan)
x, user, item, ids = torch.randn(9, 6), torch.randn(1, 2), torch.randn(9, 4), torch.arange(9) % 4
weights, offsets = torch.ones(2), torch.tensor([0, 9])
table = device.catalog_rows(torch.randn(4, 4), packed, plan, "float32")
other = Plan(6, (5, 4), (-1, -1), affine=True)
features = ops.FeatureTables([torch.randn(3, 6)])
wrong = torch.where(ids == 3, 4, ids)
for name, arguments in {
    "dense_scores": (x, packed, other, weights),
    "request_scores": (user, item, offsets - 1, packed, plan, weights),
    "request_topk": (user, item, torch.tensor([0, 8]), packed, plan, weights),
    "catalog_scores": (user, wrong, offsets, *table, packed, plan, weights),
    "feature_scores": (ops.one_id_each(ids[:, None]), features, packed, plan, weights),
    "twin_ids_scores": (user, wrong, offsets, torch.randn(4, 2), torch.zeros(0, 2), weights, [-1, 0]),
}.items():
    if name.rsplit("_", 1)[0] not in device.forms or (name == "dense_scores" and device.name == "triton"):
        continue  # Triton's kernels read no header on the CPU
    for where in (device, Device("cpu")):
        try:
            getattr(where, name)(*arguments)
        except ValueError as error:
            print(error)
        else:
            print(name, "raised nothing")
"""


@pytest.mark.devices(raises=False)
def test_values_are_checked_where_that_is_asked_for(device: Device) -> None:
    """In the words of the CPU's ops."""
    result = subprocess.run(
        [sys.executable, "-c", CHECKED, device.name],
        capture_output=True,
        text=True,
        env={**os.environ, "RESFLOW_CHECK_IDS": "1"},
    )
    lines = result.stdout.splitlines()
    assert len(lines) == (6 if device.name == "triton" else 12), result.stderr
    assert lines[::2] == lines[1::2] and not any("nothing" in line for line in lines), result.stdout
    assert all(re.match(r"\w+: .+ must be .+, got .+", line) for line in lines)


class _Raising:
    """A namespace whose ops raise as PyTorch's dispatcher does from 2.15 on."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __getattr__(self, name: str) -> Any:
        def op(*arguments: Any) -> Any:
            raise self._error

        return op


def test_refused_input_is_a_value_error_on_every_torch() -> None:
    plan = Plan(3, (4,), (-1,))
    arguments = (torch.zeros(2, 3), torch.zeros(plan.packed_bytes, dtype=torch.uint8), plan, torch.ones(1))
    text = "dense_scores: x must be a matrix with 3 columns, got [2, 4]"
    with library.use(_Raising(RuntimeError(text))), pytest.raises(ValueError) as raised:
        ops.dense_scores(*arguments)
    assert str(raised.value) == text
    for other in (RuntimeError("out of memory"), NotImplementedError("dense_scores: no kernel")):
        with library.use(_Raising(other)), pytest.raises(type(other)) as kept:
            ops.dense_scores(*arguments)
        assert kept.value is other
