"""Embedding tables in front of a fused model: ids go into the op, rows are not written to memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from resflow_kernels import fuse

ROWS = 30


class Head(nn.Module):
    """A tower over rows, with a second-order term of its fields."""

    def __init__(self, width: int, fields: int) -> None:
        super().__init__()
        self.fields = fields
        self.tower = nn.Sequential(nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, x: Tensor) -> Tensor:
        logit: Tensor = self.tower(x)
        return torch.sigmoid(logit)


class ByName(nn.Module):
    """A dict of ids, a table that two features share, lists of a fixed length, and numeric columns between them."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleDict({name: nn.Embedding(ROWS, 4) for name in ("user", "item", "seen")})
        self.head = Head(4 + 4 + 3 + 4 + 3 * 4, 3)

    def forward(self, ids: dict[str, Tensor], numeric: Tensor) -> Tensor:
        item = self.tables["item"]
        parts = [self.tables["user"](ids["user"]), item(ids["item"]), numeric, item(ids["last"])]
        return self.head(torch.cat([*parts, self.tables["seen"](ids["seen"]).flatten(1)], dim=1))


class ByColumn(nn.Module):
    """Ids as columns of one float matrix, numeric columns among them."""

    def __init__(self, columns: tuple[int, ...] = (0, 3, 4)) -> None:
        super().__init__()
        self.columns = columns
        self.tables = nn.ModuleList(nn.Embedding(ROWS, 5) for _ in columns)
        self.head = Head(5 * len(columns) + 2, len(columns))

    def forward(self, x: Tensor) -> Tensor:
        rows = [table(x[:, at : at + 1].long()).squeeze(1) for table, at in zip(self.tables, self.columns, strict=True)]
        return self.head(torch.cat([*rows[:1], x[:, 1:3], *rows[1:]], dim=1))


def inputs_of(model: nn.Module, batch: int) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(batch)

    def ids(*shape: int) -> Tensor:
        return torch.randint(0, ROWS, shape, generator=generator)

    if isinstance(model, ByName):
        named = {"user": ids(batch), "item": ids(batch), "last": ids(batch), "seen": ids(batch, 3)}
        return named, torch.randn(batch, 3, generator=generator)
    x = ids(batch, 6).float()
    x[:, 1:3] = torch.randn(batch, 2, generator=generator)
    return (x,)


@pytest.mark.parametrize("make", [ByName, ByColumn, lambda: ByColumn((0, 4, 5)), lambda: ByColumn((3, 0, 0))])
def test_tables_are_inside(make: Any) -> None:
    torch.manual_seed(0)
    model = make().eval()
    fused = fuse(model, inputs_of(model, 9))
    report = str(fuse.explain(model, inputs_of(model, 9)))
    assert " 3 tables " in report and "look-up" not in report, report
    with torch.inference_mode():
        for batch in (1, 2, 9, 100):
            given = inputs_of(model, batch)
            torch.testing.assert_close(fused(*given), model(*given), atol=1e-6, rtol=1e-6)


def test_a_table_that_was_written_to_is_read_as_it_is() -> None:
    torch.manual_seed(0)
    model = ByName().eval()
    fused, given = fuse(model, inputs_of(model, 9)), inputs_of(model, 5)
    with torch.no_grad():
        fused(*given)
        model.tables["item"].weight.mul_(2.0)
        torch.testing.assert_close(fused(*given), model(*given), atol=1e-6, rtol=1e-6)
        model.tables["item"].weight = nn.Parameter(torch.randn(ROWS, 4))
        fused.tables["item"].weight = model.tables["item"].weight
        torch.testing.assert_close(fused(*given), model(*given), atol=1e-6, rtol=1e-6)


def test_an_id_that_is_no_row_is_named() -> None:
    model = ByName().eval()
    fused, given = fuse(model, inputs_of(model, 9)), inputs_of(model, 5)
    given[0]["item"][3] = ROWS
    with (
        torch.inference_mode(),
        pytest.raises(ValueError, match=r"ids\[3, \d\] must be a row of tables\[\d\], 0 to 29, got 30"),
    ):
        fused(*given)


def test_column_major_numbers_and_int32_ids() -> None:
    torch.manual_seed(0)
    model = ByName().eval()
    named, numeric = inputs_of(model, 9)
    given = ({name: one.int() for name, one in named.items()}, numeric.T.contiguous().T)
    fused = fuse(model, given)
    with torch.inference_mode():
        torch.testing.assert_close(fused(*given), model(*given), atol=1e-6, rtol=1e-6)
