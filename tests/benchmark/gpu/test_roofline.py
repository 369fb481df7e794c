"""The floors of a GPU against a table that was worked out by hand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.gpu.roofline import H100, Call, call_of, table
from resflow_kernels.core.plan import Plan, chain

# Microseconds, memory and tensor, of 576-128-64-1 in bfloat16 without logits, half of the width the user's.
KNOWN = {
    (2, 65536): ((25.5, 26.9), (13.0, 14.9), (11.7, 2.7)),
    (3, 8192): ((3.4, 5.1), (1.8, 2.8), (2.3, 0.5)),
    (3, 65536): ((25.7, 40.4), (13.2, 22.3), (17.4, 4.1)),
    (3, 1 << 20): ((408, 646), (208, 356), (277, 66)),
    (9, 65536): ((26.5, 121), (14.0, 66.8), (51.7, 12.3)),
}


@pytest.mark.parametrize(("tasks", "batch"), KNOWN)
def test_floors_are_those_worked_out_by_hand(tasks: int, batch: int) -> None:
    plan = Plan(576, (128, 64), chain(tasks), precision="bfloat16")
    for form, known in zip(("dense", "request", "catalog"), KNOWN[tasks, batch], strict=True):
        call = Call(plan, 288, batch, form, logits=False)
        got = (call.memory_seconds() * 1e6, call.tensor_seconds() * 1e6)
        assert got == pytest.approx(known, rel=0.015, abs=0.05)
        assert call.floor_seconds() * 1e6 == max(got)


def test_a_task_row_and_a_tile_of_prerank3() -> None:
    call = call_of("prerank3", 64)
    assert call.flops == 3 * 64 * 163_968
    assert call.weights_from_l2(64) == 491_520 == call.weights_from_l2(128)
    assert call_of("prerank3", 65).weights_from_l2(64) == 2 * 491_520
    assert H100.flops_per_second / H100.bytes_per_second == 266


def test_the_document_has_this_table() -> None:
    text = (Path(__file__).parents[3] / "bench" / "ROOFLINE.md").read_text(encoding="utf-8")
    rows = {tuple(cells[:-1]): cells[-1] for cells in map(_cells, re.findall(r"^\|.*\|$", text, re.MULTILINE))}
    for line in table().splitlines():
        assert tuple(_cells(line)[:-1]) in rows, line


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]
