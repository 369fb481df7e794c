"""Models with inputs drawn for them, and their float64 answers: one class per family of forms.

A case computes through ``ops``: :mod:`resflow_kernels.ops`, or a :class:`~tests.support.devices.Device`, which has the
same functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from resflow_kernels import ops, reference
from resflow_kernels.contract import POOLING
from resflow_kernels.core.fusion import weight_count
from resflow_kernels.core.plan import Plan
from resflow_kernels.ops import FeatureIds, FeatureTables
from resflow_kernels.reference import Scores, TopK
from resflow_kernels.testing import random_weights
from tests.support.draws import fusion_weights, random_offsets

CALL, REQUEST, CANDIDATE = "call", "request", "candidate"

# A table's values are what they are; a user's in int8 lie at a rounding's edge now and then.
BUDGET = {"float32": "float32", "bfloat16": "float32", "int8": "int8"}


class TowerCase:
    """A packed model, inputs of ``batch`` candidates, and the float64 answer."""

    def __init__(
        self,
        plan: Plan,
        batch: int,
        fusion: str = "additive",
        weights_per: str = CALL,
        seed: int = 0,
        *,
        ops: Any = ops,
    ) -> None:
        self.ops = ops
        self.plan, self.fusion, self.weights_per = plan, fusion, weights_per
        self.generator = torch.Generator().manual_seed(seed)
        self.weights = random_weights(plan, seed)
        self.packed = self.ops.pack_towers(self.weights, plan)
        self.x = torch.randn(batch, plan.in_features, generator=self.generator)
        rows = batch if weights_per == CANDIDATE else None
        self.fusion_weights = fusion_weights(plan, fusion, rows, self.generator)

    def run(self, x: Tensor | None = None) -> Scores:
        x = self.x if x is None else x
        return self.ops.dense_scores(x, self.packed, self.plan, self.fusion_weights, self.fusion, self.weights_per)

    def exact(self, x: Tensor | None = None) -> Scores:
        x = self.x if x is None else x
        weights = [weight.double() for weight in self.weights]
        arguments = (self.plan, self.fusion_weights.double(), self.fusion, self.weights_per)
        return reference.dense_scores(x.double(), weights, *arguments)


class RequestCase(TowerCase):
    """Candidates of requests: user rows, and item rows that are the last columns of ``x``.

    Args:
        split: how many columns are the user's; ``None``: any number, all and none of them too.
    """

    def __init__(
        self,
        plan: Plan,
        batch: int,
        requests: int,
        fusion: str = "additive",
        weights_per: str = CALL,
        seed: int = 0,
        *,
        split: int | None = None,
        offsets: Sequence[int] | None = None,
        ops: Any = ops,
    ) -> None:
        super().__init__(plan, batch, fusion, CALL, seed, ops=ops)
        drawn = int(torch.randint(0, plan.in_features + 1, (), generator=self.generator))
        self.split = drawn if split is None else split
        self.offsets = random_offsets(batch, requests, self.generator) if offsets is None else torch.tensor(offsets)
        self.user = torch.randn(requests, self.split, generator=self.generator)
        self.item = self.x[:, self.split :]
        rows = {CALL: None, REQUEST: requests, CANDIDATE: batch}[weights_per]
        self.weights_per, self.fusion_weights = weights_per, fusion_weights(plan, fusion, rows, self.generator)

    @property
    def settings(self) -> tuple[Tensor, Plan, Tensor, str, str]:
        return self.packed, self.plan, self.fusion_weights, self.fusion, self.weights_per

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return self.user, self.item, self.offsets

    @property
    def request(self) -> Tensor:
        """Each candidate's request."""
        return reference.request_of_candidates(self.offsets, len(self.item))

    def scores(self) -> Scores:
        return self.ops.request_scores(*self.inputs, *self.settings)

    def topk(self, k: int) -> TopK:
        return self.ops.request_topk(*self.inputs, *self.settings, k)

    def dense_scores(self) -> Scores:
        """The same candidates in the dense form."""
        weights, per = self.fusion_weights, self.weights_per
        weights, per = (weights[self.request], CANDIDATE) if per == REQUEST else (weights, per)
        joined = torch.cat((self.user[self.request], self.item), dim=1)
        return self.ops.dense_scores(joined, self.packed, self.plan, weights, self.fusion, per)

    def exact_scores(self) -> Scores:
        doubles = [weight.double() for weight in self.weights]
        settings = (doubles, self.plan, self.fusion_weights.double(), self.fusion, self.weights_per)
        return reference.request_scores(self.user.double(), self.item.double(), self.offsets, *settings)


class CatalogCase(RequestCase):
    """Candidates that are rows of a table of ``rows`` items."""

    def __init__(
        self, plan: Plan, batch: int, requests: int, *settings: Any, dtype: str, rows: int = 30, **options: Any
    ) -> None:
        super().__init__(plan, batch, requests, *settings, **options)
        self.dtype = dtype
        self.items = torch.randn(rows, plan.in_features - self.split, generator=self.generator)
        self.ids = torch.randint(0, rows, (batch,), generator=self.generator)
        self.table, self.scales = self.ops.catalog_rows(self.items, self.packed, plan, dtype)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return self.user, self.ids, self.offsets, self.table, self.scales

    @property
    def held(self) -> Tensor:
        """What the table stands for, ``[M, K, H_1]`` in float64."""
        values = self.table.double() * (self.scales.double()[:, None] if self.dtype == "int8" else 1.0)
        return values.unflatten(1, (self.plan.tasks, -1))[..., : self.plan.hidden[0]]

    def exact_rows(self) -> Tensor:
        return reference.catalog_rows(self.items.double(), [weight.double() for weight in self.weights], self.plan)

    def scores(self) -> Scores:
        return self.ops.catalog_scores(*self.inputs, *self.settings)

    def topk(self, k: int) -> TopK:
        return self.ops.catalog_topk(*self.inputs, *self.settings, k)

    def exact_scores(self) -> Scores:
        """Of the table's rows as they are, roundings included."""
        doubles = [weight.double() for weight in self.weights]
        settings = (doubles, self.plan, self.fusion_weights.double(), self.fusion, self.weights_per)
        return reference.catalog_scores(self.user.double(), self.held[self.ids], self.offsets, *settings)


def unit_weights(plan: Plan) -> list[Tensor]:
    """Weights of 1, biases of 0, slopes of 0.25: through one channel a layer is its activation."""
    values = {"weight": 1.0, "slope": 0.25}
    return [torch.full(shape, values.get(name.split(", ")[-1], 0.0)) for name, shape in plan.weight_shapes]


def activated(activation: str, values: Tensor, ops: Any = ops) -> Tensor:
    """The activation itself, with a slope of 0.25: one input through one identity weight."""
    plan = Plan(1, (1,), (-1,), activation)
    packed = ops.pack_towers(unit_weights(plan), plan)
    return ops.dense_scores(values[:, None], packed, plan, torch.ones(1)).logits[:, 0]


def make_table(rows: int, width: int, dtype: str, generator: torch.Generator) -> tuple[Tensor, list[Tensor]]:
    """A table, and the scales of an int8 one."""
    values = torch.randn(rows, width, generator=generator)
    if dtype == "int8":
        bytes_ = torch.randint(-127, 128, (rows, width), generator=generator, dtype=torch.int8)
        return bytes_, [torch.rand(rows, generator=generator) / 100]
    return values.to(getattr(torch, dtype)), []


class FeatureCase:
    """Random features that make up the input row of a random network, and ids of ``batch`` candidates.

    Args:
        pooling: of each list; every second list has a padding id.
        weighted: whether values have weights, which depend on the id.
    """

    def __init__(
        self,
        plan: Plan,
        widths: Sequence[int],
        dtype: Sequence[str],
        ragged: Sequence[bool],
        batch: int,
        seed: int,
        pooling: Sequence[str] = (),
        weighted: bool = False,
        *,
        ops: Any = ops,
    ) -> None:
        self.ops = ops
        self.generator = torch.Generator().manual_seed(seed)
        self.rows = [1 + int(self.draw(40)) for _ in widths]
        self.weight_of_id = torch.rand(41, generator=self.generator).mul(5).round() / 5 if weighted else None
        made = [make_table(r, w, e, self.generator) for r, w, e in zip(self.rows, widths, dtype, strict=True)]
        scales = [scale for _, own in made for scale in own]
        lists = [i for i, is_ in enumerate(ragged) if is_]
        padding = [int(self.draw(self.rows[i])) if at % 2 else -1 for at, i in enumerate(lists)] if pooling else []
        self.tables = FeatureTables([table for table, _ in made], scales, lists, pooling, padding)
        self.plan = replace(plan, in_features=sum(widths))
        self.weights = random_weights(self.plan, seed)
        self.packed = self.ops.pack_towers(self.weights, self.plan)
        self.fusion_weights = fusion_weights(self.plan, "additive", None, self.generator)
        self.ids = self.random_ids(batch, range(len(widths)))

    def draw(self, below: int) -> Tensor:
        return torch.randint(0, below, (), generator=self.generator)

    def random_ids(self, batch: int, features: Sequence[int]) -> FeatureIds:
        singles = [self.rows[at] for at in features if at not in self.tables.ragged]
        lists = [self.rows[at] for at in features if at in self.tables.ragged]
        columns = [torch.randint(0, rows, (batch,), generator=self.generator) for rows in singles]
        counts = [torch.randint(0, 6, (batch,), generator=self.generator) for _ in lists]
        values = [
            torch.randint(0, rows, (int(count.sum()),), generator=self.generator)
            for rows, count in zip(lists, counts, strict=True)
        ]
        empty = torch.zeros(0, dtype=torch.int64)
        ids = torch.stack(columns, 1) if columns else torch.zeros(batch, 0, dtype=torch.int64)
        offsets = torch.cat((empty.new_zeros(1), torch.cat((empty, *counts)).cumsum(0)))
        return FeatureIds(ids, torch.cat((empty, *values)), offsets)

    def value_weights(self, ids: FeatureIds | None = None) -> Tensor | None:
        return None if self.weight_of_id is None else self.weight_of_id[(ids or self.ids).values]

    def pooled(self, ids: FeatureIds | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        tables, scales, ragged, pooling, padding = self.tables
        wide = [table if table.dtype == torch.int8 else table.to(dtype) for table in tables]
        lists = (ragged, [POOLING.index(name) for name in pooling], padding, self.value_weights(ids))
        return reference.feature_rows(*(ids or self.ids), wide, [scale.to(dtype) for scale in scales], *lists)

    def run(self, ids: FeatureIds | None = None) -> Scores:
        settings = (self.tables, self.packed, self.plan, self.fusion_weights)
        return self.ops.feature_scores(ids or self.ids, *settings, value_weights=self.value_weights(ids))

    def part_rows(self, ids: FeatureIds, first: int, last: int) -> Tensor:
        """The input row's columns of the features from ``first`` to ``last``, pooled in float32."""
        tables, scales, ragged, pooling, padding = self.tables
        if first == last:
            return torch.zeros(len(ids.ids), 0)
        before = sum(table.dtype == torch.int8 for table in tables[:first])
        own = sum(table.dtype == torch.int8 for table in tables[first:last])
        places = [at - first for at in ragged if first <= at < last]
        lists = [at for at, table in enumerate(ragged) if first <= table < last]
        how = [[POOLING.index(pooling[at]) for at in lists], [padding[at] for at in lists]] if pooling else [(), ()]
        own_scales = scales[before : before + own]
        weights = self.value_weights(ids)
        return reference.feature_rows(*ids, tables[first:last], own_scales, places, *how, weights).float()

    def some(self, chosen: Tensor) -> FeatureIds:
        """The candidates at some places."""
        count, (ids, values, offsets) = len(self.ids.ids), self.ids
        lists = [list(part.split(lengths.tolist())) for part, lengths in self.by_feature(values, offsets, count)]
        picked = [each[int(place)] for each in lists for place in chosen]
        lengths = torch.tensor([0, *(len(one) for one in picked)])
        return FeatureIds(ids[chosen], torch.cat((values[:0], *picked)), lengths.cumsum(0))

    def by_feature(self, values: Tensor, offsets: Tensor, count: int) -> list[tuple[Tensor, Tensor]]:
        cuts = [offsets[at * count : (at + 1) * count + 1] for at in range(len(self.tables.ragged))]
        return [(values[cut[0] : cut[-1]], cut.diff()) for cut in cuts]


@dataclass
class TwinCase:
    """A table of items, users, and the float64 answer."""

    tasks: int
    width: int
    items: int
    requests: int
    dtype: str = "float32"
    fusion: str = "additive"
    per: str = CALL
    seed: int = 0
    non_increasing: bool = False
    generator: torch.Generator = field(init=False)
    ops: Any = ops

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        columns = self.tasks * self.width
        # Logits of order 1 in every task, however deep it lies.
        self.vectors = self.normal(self.items, columns)
        self.user = self.normal(self.requests, columns) / (self.width**0.5 * self.tasks)
        self.table, self.scales = self.ops.twin_rows(self.vectors, self.tasks, self.dtype)
        self.parents = [int(torch.randint(-1, k, (), generator=self.generator)) if k else -1 for k in range(self.tasks)]
        self.candidates = 2 * self.items if self.requests else 0
        self.ids = torch.randint(0, max(self.items, 1), (self.candidates,), generator=self.generator)
        cuts = torch.randint(0, self.candidates + 1, (max(self.requests - 1, 0),), generator=self.generator)
        ends = [0, *cuts.sort().values.tolist(), self.candidates] if self.requests else [0]
        self.offsets = torch.tensor(ends)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def weights(self, rows: int) -> Tensor:
        count = weight_count(self.fusion, self.tasks)
        shape = {CALL: (count,), REQUEST: (self.requests, count), CANDIDATE: (rows, count)}[self.per]
        return 2 * torch.rand(shape, generator=torch.Generator().manual_seed(1))

    @property
    def settings(self) -> tuple[list[int], bool, str, str]:
        return self.parents, self.non_increasing, self.fusion, self.per

    def all(self) -> Scores:
        return self.ops.twin_scores(self.user, self.table, self.scales, self.weights(self.items), *self.settings)

    def listed(self) -> Scores:
        inputs = (self.user, self.ids, self.offsets, self.table, self.scales)
        return self.ops.twin_ids_scores(*inputs, self.weights(self.candidates), *self.settings)
