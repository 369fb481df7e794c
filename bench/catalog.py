"""Inputs of the catalog form: a table of items, and lists of ids whose rows are not in any cache."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import numpy as np
import torch

from resflow_kernels import ops
from resflow_kernels.benchmark.baselines import OURS, Implementation, Model, Resflow, exact_scores
from resflow_kernels.benchmark.interleave import Call
from resflow_kernels.benchmark.suite import TOLERANCES, Entry, Floats, check
from resflow_kernels.contract import TABLE_PRECISIONS

# Each call takes the next list of ids: together the lists touch more rows than caches can hold.
_LISTS = 32
_BLOCK = 50_000

WAYS = tuple(f"{element} table" for element in TABLE_PRECISIONS)


class CatalogInputs:
    """``items`` random items, one user, and lists of ``candidates`` random ids.

    Args:
        model: the model; its tables are computed in float32.
        items: number of items.
        candidates: ids per list.
    """

    def __init__(self, model: Model, items: int, candidates: int) -> None:
        self.model = model
        plan, rng = model.plan, np.random.default_rng(0)
        self.user = rng.standard_normal((1, model.user_width), dtype=np.float32)
        self.ids = [torch.from_numpy(rng.integers(0, items, candidates)) for _ in range(_LISTS)]
        packed = ops.pack_towers([torch.from_numpy(weight) for weight in model.weights], plan)
        self.tables = {element: _empty(plan.table_width, items, element) for element in TABLE_PRECISIONS}
        first = self.ids[0].numpy()
        self.rows = np.empty((candidates, plan.in_features), np.float32)
        self.rows[:, : model.user_width] = self.user
        for start in range(0, items, _BLOCK):
            count = min(_BLOCK, items - start)
            block = rng.standard_normal((count, plan.in_features - model.user_width), dtype=np.float32)
            for element, (table, scales) in self.tables.items():
                made = ops.catalog_rows(torch.from_numpy(block), packed, plan, element)
                table[start : start + count] = made[0]
                scales[start : start + count] = made[1]
            here = np.flatnonzero((first >= start) & (first < start + count))
            self.rows[here, model.user_width :] = block[first[here] - start]

    def entries(self, threads: int) -> list[Entry]:
        """Our implementations, in every precision on every table, checked on the first list of ids."""
        exact = exact_scores(self.model, self.rows[:512])
        made = []
        for implementation in OURS:
            for way in WAYS:
                entry = Entry(implementation, way)
                entry.call = self._call(implementation(self.model, threads), way.split()[0])
                # The coarser of the table's and the kernels' precision sets the bound.
                coarsest = max(implementation.precision, way.split()[0], key=TOLERANCES.__getitem__)
                check(entry, *Resflow.result(entry.call()), *exact, precision=coarsest)
                made.append(entry)
        return made

    def _call(self, scorer: Implementation, element: str) -> Call:
        assert isinstance(scorer, Resflow)
        table, scales = self.tables[element]
        user, offsets = torch.from_numpy(self.user), torch.tensor([0, len(self.ids[0])])
        lists, code = cycle(self.ids), self.model.fusion.code
        rest = (scorer.packed, scorer.plan, scorer.alpha, code)
        return lambda: ops.catalog_scores(user, next(lists), offsets, table, scales, *rest)

    def dense_rows(self) -> Floats:
        """The first list's candidates as rows of the dense form, which the baselines score."""
        return self.rows


def _empty(width: int, items: int, element: str) -> tuple[Any, Any]:
    """An empty table and its scales, in NumPy's memory: huge pages, as with ``Catalog.open(path, in_memory=True)``."""
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}[element]
    table = torch.from_numpy(np.empty((items, width * dtype.itemsize), np.uint8)).view(dtype)
    return table, torch.empty(items if element == "int8" else 0)
