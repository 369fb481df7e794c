"""Rounding to int8: one rule at the edges, whoever stores the bytes or rounds rows in a call (csrc/core/quantize.h)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from resflow_kernels import ops, reference
from resflow_kernels.contract import PACKED, PRECISION_ROWS
from resflow_kernels.core.plan import Plan
from resflow_kernels.nn.feature import round_table
from resflow_kernels.reference.unpack import panel_matrix
from tests.support.devices import Device

WIDTH = 48  # three cache lines of floats: tables of first-layer products have no padding
SMALLEST = 2.0**-149  # the smallest subnormal number
LARGEST = np.finfo(np.float32).max
CODE = PRECISION_ROWS["int8"].code

Rounded = tuple[Tensor, Tensor]  # bytes [n, WIDTH] and scales [n]


def _filled(*values: float) -> NDArray[np.float32]:
    row = np.zeros(WIDTH, np.float32)
    row[: len(values)] = np.array(values, np.float64).astype(np.float32)
    return row


_generator = np.random.default_rng(0)
_steps = _generator.integers(-127, 128, WIDTH)

ROWS: dict[str, NDArray[np.float32]] = {
    "ordinary": _generator.standard_normal(WIDTH).astype(np.float32),
    "bfloat16's range": (_generator.standard_normal(WIDTH) * 1e30).astype(np.float32),
    "ties": _filled(127, *(np.arange(-23, 23) + 0.5)),
    "zeros": _filled(),
    "negative zeros": -_filled(),
    "one value": _filled(-3),
    "the largest number": _filled(LARGEST, -LARGEST, 1),
    "NaN": _filled(1, float("nan"), -2),
    "infinity": _filled(float("inf"), 3),
    "negative infinity": _filled(5, float("-inf")),
    "NaN and infinity": _filled(float("nan"), float("inf")),
    "the smallest number": _filled(SMALLEST),  # over 127 it is 0
    "a scale of one subnormal step, too coarse by half": _filled(189 * SMALLEST, -189 * SMALLEST, 95 * SMALLEST),
    "a subnormal scale": _filled(*(_steps[1:] * 1000 * SMALLEST), 127000 * SMALLEST),
    "a scale with no finite reciprocal": _filled(127 * 2.0**-129, -(2.0**-129), 50.4 * 2.0**-129),
    "a subnormal scale with a reciprocal": _filled(127 * 2.0**-127, -(2.0**-127), 50.4 * 2.0**-127),
}  # fmt: skip
NAMES = list(ROWS)
VALUES = torch.from_numpy(np.stack(list(ROWS.values())))


def scale_of(row: NDArray[np.float32]) -> np.float32:
    """By the definition, in float32."""
    largest = np.abs(row).max()
    return np.float32(largest / np.float32(127)) if np.isfinite(largest) else np.float32("nan")


def steps_of(row: NDArray[np.float32], stored: bool) -> NDArray[np.int8]:
    """By division where they are stored, else by the reciprocal."""
    scale = scale_of(row)
    if not scale > 0:
        return np.zeros(WIDTH, np.int8)
    with np.errstate(over="ignore"):
        reciprocal = min(np.float32(1) / scale, LARGEST)
        quotients = row / scale if stored else row * reciprocal
    steps = np.rint(quotients)
    if not stored:  # what vectors rely on: they have no bounds
        assert (np.abs(steps) <= 127).all()
    return steps.clip(-127, 127).astype(np.int8)


def _device(name: str) -> Device:
    reason = Device.why_missing(name)
    if reason is not None:
        pytest.skip(reason)
    return Device(name)


def _runtime() -> Any:
    return pytest.importorskip("resflow_kernels._runtime")


def _tensors(arrays: Any) -> tuple[Tensor, ...]:
    return tuple(map(torch.from_numpy, arrays))


IDENTITY = Plan(WIDTH, (WIDTH,), (-1,), "identity")
IDENTITY_WEIGHTS = [torch.eye(WIDTH), torch.zeros(WIDTH), torch.zeros(WIDTH), torch.zeros(1)]


def catalog_by(functions: Any, **settings: Any) -> Callable[[Tensor], Rounded]:
    """Rows of a catalog whose first layer changes nothing. (NaN or infinity times 0 is NaN: so is the whole row.)"""
    packed = ops.pack_towers(IDENTITY_WEIGHTS, IDENTITY)
    return lambda rows: functions.catalog_rows(rows, packed, IDENTITY, "int8", **settings)


def weights(columns: Tensor) -> Rounded:
    """Packed weights, whose columns the rows become."""
    plan = Plan(WIDTH, (len(columns),), (-1,), "identity", precision="int8")
    vectors = [torch.zeros(len(columns)), torch.zeros(len(columns)), torch.zeros(1)]
    packed = ops.pack_towers([columns.T.contiguous(), *vectors], plan)
    block, layer = packed[PACKED["header_bytes"] :].view(torch.float32), plan.packed_layout.layers[0]
    stored = panel_matrix(block, layer, "int8")[:WIDTH, : len(columns)]
    return (stored.short() - 128).to(torch.int8).T, block[layer.column_scale :][: len(columns)]


def twins(table: tuple[Tensor, Tensor]) -> Rounded:
    return table[0], table[1].flatten()


STORED: dict[str, Callable[[Tensor], Rounded]] = {
    "reference": reference.int8_rows,
    "embedding table": lambda rows: round_table(rows, "int8"),  # type: ignore[dict-item,return-value]
    "weights": weights,
    "cpu twins": lambda rows: twins(ops.twin_rows(rows, 1, "int8")),
    "numpy twins": lambda rows: twins(_tensors(_runtime().twin_rows(rows.numpy(), 1, CODE))),  # type: ignore[arg-type]
    "emulated twins": lambda rows: twins(_device("emulated").twin_rows(rows, 1, "int8")),
    "cuda twins": lambda rows: twins(_device("cuda").twin_rows(rows, 1, "int8")),
    "cpu catalog": lambda rows: catalog_by(ops)(rows),
    "reference catalog": lambda rows: catalog_by(ops, backend="reference")(rows),
    "emulated catalog": lambda rows: catalog_by(_device("emulated"))(rows),
    "cuda catalog": lambda rows: catalog_by(_device("cuda"))(rows),
    "triton catalog": lambda rows: catalog_by(_device("triton"))(rows),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # Triton's interpreter is NumPy
@pytest.mark.parametrize("way", STORED)
def test_what_is_stored(way: str) -> None:
    got, scales = STORED[way](VALUES)
    assert got.dtype == torch.int8 and got.shape == VALUES.shape and scales.shape == (len(ROWS),)
    for at, (name, row) in enumerate(ROWS.items()):
        scale = scale_of(row)
        assert np.array_equal(scales[at].numpy(), scale, equal_nan=True), name
        assert got[at].tolist() == steps_of(row, stored=True).tolist(), name


@pytest.mark.parametrize("way", ["cpu", "numpy", "emulated", "cuda"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_a_call_rounds(way: str, dtype: torch.dtype) -> None:
    """A table of unit vectors shows each of a user's bytes: its logit is the byte times the scale."""
    values = VALUES.to(dtype)
    unit, ones, weight = torch.eye(WIDTH, dtype=torch.int8), torch.ones(WIDTH, 1), torch.ones(1)
    if way == "numpy":
        if dtype == torch.bfloat16:
            pytest.skip("NumPy has no bfloat16")
        arrays = (values.numpy(), unit.numpy(), ones.numpy(), weight.numpy(), [-1], False, 0, 0)
        logits = torch.from_numpy(_runtime().twin_scores(*arrays)[0])
    else:
        functions = ops if way == "cpu" else _device(way)
        logits = functions.twin_scores(values, unit, ones, weight, [-1]).logits
    for name, got, row in zip(NAMES, logits.view(len(ROWS), WIDTH), values.float().numpy(), strict=True):
        scale = scale_of(row)
        with np.errstate(over="ignore"):  # 127 times the largest number over 127
            expected = steps_of(row, stored=False).astype(np.float32) * scale
        assert np.array_equal(got.numpy(), expected, equal_nan=True), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_towers(dtype: torch.dtype) -> None:
    """Columns of one weight each pass the row's bytes on; whoever stands beside a row changes nothing."""
    plan = Plan(WIDTH, (WIDTH, WIDTH), (-1,), "identity", precision="int8")
    matrices = [torch.eye(WIDTH), torch.zeros(WIDTH), torch.eye(WIDTH), torch.zeros(WIDTH)]
    packed = ops.pack_towers([*matrices, torch.ones(WIDTH), torch.zeros(1)], plan)
    values = VALUES.to(dtype)
    together = ops.dense_scores(values, packed, plan, torch.ones(1)).logits
    for at, row in enumerate(values.float().numpy()):
        alone = ops.dense_scores(values[at : at + 1], packed, plan, torch.ones(1)).logits
        assert np.array_equal(alone[0].numpy(), together[at].numpy(), equal_nan=True), NAMES[at]
        scale = scale_of(row)
        if np.isnan(scale):
            assert together[at].isnan().all(), NAMES[at]
        else:
            # A step and a half per value and layer; scales of subnormal numbers times those of columns are 0.
            bound = WIDTH * 3 * float(scale) + 1e-36
            assert abs(together[at].item() - row.astype(np.float64).sum()) <= bound, NAMES[at]
