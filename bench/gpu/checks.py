"""Checks the GPU kernels at fixed shapes against float64, with only torch: ``python -m bench.gpu.checks``.

These are the checks of tests/ops for machines without pytest and hypothesis, and with ``--small`` few enough shapes
for compute-sanitizer.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from resflow_kernels import ops, reference
from resflow_kernels.contract import FUSIONS
from resflow_kernels.contract import TABLE_PRECISIONS as ELEMENTS
from resflow_kernels.core.checks import precisions_of
from resflow_kernels.core.fusion import weight_count
from resflow_kernels.core.plan import Plan, chain
from resflow_kernels.reference import twin
from resflow_kernels.testing import WORKLOADS, assert_exact, random_weights
from tests.support.devices import Device

SMALL_PLANS = (
    Plan(37, (33, 8), (-1, 0, 0), "gelu", affine=True),
    Plan(64, (130, 64, 16), chain(3)),
    Plan(72, (128, 64), chain(3), affine=True),
    Plan(5, (3,), (-1, -1, 0, 1), "tanh", logit_residual=False, head="conditional", feature_residual=False),
)
SMALL_BATCHES = (1, 17, 70)
BATCHES = (1, 16, 129, 2000, 33_000)


class Checks:
    """One device's checks; each raises AssertionError."""

    def __init__(self, device: Device, small: bool) -> None:
        self.device, self.small = device, small
        self.generator = torch.Generator().manual_seed(0)
        workloads = [(workload.plan, workload.user_features) for workload in WORKLOADS.values()]
        self.plans = [(plan, plan.in_features // 3) for plan in SMALL_PLANS] if small else workloads

    def all(self) -> list[Callable[[], None]]:
        return [self.dense, self.request, self.catalog, self.features, self.twin, self.topk, self.bits, self.nan]

    def dense(self) -> None:
        for plan, _ in self._in_all_precisions():
            packed, doubles = self._packed(plan)
            for batch in SMALL_BATCHES if self.small else BATCHES:
                x = self._normal(batch, plan.in_features)
                if plan.precision in ("bfloat16", "float16"):  # inputs for Hopper's kernel
                    x = x.to(getattr(torch, plan.precision))
                alpha = torch.ones(plan.tasks).double()
                logits = reference.dense_scores(x.double(), doubles, plan, alpha, 0, 0).logits
                for fusion in FUSIONS:
                    weights = torch.rand(weight_count(fusion, plan.tasks), generator=self.generator)
                    got = self.device.dense_scores(x, packed, plan, weights, fusion)
                    assert_exact(got, reference.finish(logits, weights.double(), fusion), weights, plan.precision)
                    if x.dtype != torch.float32:  # float32 inputs, for which the general kernel is used
                        got = self.device.dense_scores(x.float(), packed, plan, weights, fusion)
                        assert_exact(got, reference.finish(logits, weights.double(), fusion), weights, plan.precision)

    def request(self) -> None:
        for plan, user_features in self._in_all_precisions():
            packed, doubles = self._packed(plan)
            for batch in SMALL_BATCHES if self.small else BATCHES[1:4]:
                user = self._normal(3, user_features)
                item = self._normal(batch, plan.in_features - user_features)
                offsets = torch.tensor([0, batch // 3, batch // 3, batch])
                weights = torch.rand(3, plan.tasks, generator=self.generator)
                got = self.device.request_scores(user, item, offsets, packed, plan, weights, 0, 1)
                inputs = (user.double(), item.double(), offsets, doubles, plan)
                assert_exact(got, reference.request_scores(*inputs, weights.double(), 0, 1), weights, plan.precision)

    def catalog(self) -> None:
        for plan, user_features in self._in_all_precisions():
            packed, doubles = self._packed(plan)
            items = self._normal(40, plan.in_features - user_features)
            user, weights = self._normal(2, user_features), torch.ones(plan.tasks)
            batch = 30 if self.small else 3000
            ids = torch.randint(0, 40, (batch,), generator=self.generator)
            offsets = torch.tensor([0, batch // 4, batch])
            for element in ELEMENTS:
                table, scales = self.device.catalog_rows(items, packed, plan, element)
                held = table.double() * (scales.double()[:, None] if element == "int8" else 1.0)
                held = held.reshape(40, plan.tasks, -1)[..., : plan.hidden[0]]
                got = self.device.catalog_scores(user, ids, offsets, table, scales, packed, plan, weights)
                inputs = (user.double(), held[ids], offsets, doubles, plan, weights.double(), "additive", "call")
                assert_exact(got, reference.catalog_scores(*inputs), weights, plan.precision)

    def features(self) -> None:
        tables = ops.FeatureTables(
            [
                self._normal(50, 16),
                self._normal(9, 17).bfloat16(),
                torch.randint(-127, 128, (30, 31), generator=self.generator, dtype=torch.int8),
            ],
            [torch.rand(30, generator=self.generator) / 100],
            [1],
            ["mean"],
            [3],
        )
        plan = Plan(tables.width, (40, 8), (-1, 0))
        packed, _ = self._packed(plan)
        for batch in (1, 40):
            counts = torch.randint(0, 5, (batch,), generator=self.generator)
            ids = ops.FeatureIds(
                torch.randint(0, 30, (batch, 2), generator=self.generator),
                torch.randint(0, 9, (int(counts.sum()),), generator=self.generator),
                torch.cat((torch.zeros(1, dtype=torch.int64), counts.cumsum(0))),
            )
            wide = [table if table.dtype == torch.int8 else table.float() for table in tables.tables]
            weights = torch.rand(len(ids.values), generator=self.generator)
            lists = (tables.ragged, ops.pooling_codes("feature_rows", tables.pooling), tables.padding, weights)
            rows = reference.feature_rows(*ids, wide, tables.scales, *lists)
            got = self.device.feature_scores(ids, tables, packed, plan, torch.ones(2), value_weights=weights)
            _assert_same(got, self.device.dense_scores(rows, packed, plan, torch.ones(2)))

    def twin(self) -> None:
        items, requests = (70, 3) if self.small else (20_000, 9)
        for tasks, width in ((3, 64), (2, 33)):
            parents, weights = [-1, *range(tasks - 1)], torch.rand(tasks, generator=self.generator)
            user = self._normal(requests, tasks * width) / (width**0.5 * tasks)
            vectors = self._normal(items, tasks * width)
            for element in ELEMENTS:
                table, scales = self.device.twin_rows(vectors, tasks, element)
                _assert_same((table, scales), ops.twin_rows(vectors, tasks, element))
                got = self.device.twin_scores(user, table, scales, weights, parents)
                exact = twin.twin_scores(user.double(), table, scales, weights.double(), parents)
                assert_exact(got, exact, weights, "int8" if element == "int8" else "float32")
                best = self.device.twin_topk(user, table, scales, weights, parents, k=20)
                _assert_same(best, reference.topk(got.score, torch.arange(requests + 1) * items, 20))

    def topk(self) -> None:
        plan = Plan(4, (8,), (-1, 0))
        packed, _ = self._packed(plan)
        for batch in (300,) if self.small else (300, 200_000):
            x = self._normal(batch, 4)[torch.randint(0, batch // 2, (batch,), generator=self.generator)]
            x[::7] = float("nan")
            score = self.device.dense_scores(x, packed, plan, torch.ones(2)).score
            for offsets in ([0, batch], [0, 1, batch // 2, batch // 2, batch]):
                cut = torch.tensor(offsets)
                for k in (1, 100):
                    got = self.device.dense_topk(x, cut, packed, plan, torch.ones(2), k=k)
                    _assert_same(got, reference.topk(score, cut, k))

    def bits(self) -> None:
        """Scores are bitwise the same alone, in small batches and in a large one."""
        for plan, _ in self._in_all_precisions():
            packed, _ = self._packed(plan)
            batch = 200 if self.small else 33_000
            x, weights = self._normal(batch, plan.in_features), torch.ones(plan.tasks)
            whole = self.device.dense_scores(x, packed, plan, weights)
            for first, count in ((0, 1), (13, 16), (5, 17), (50, 129)):
                part = self.device.dense_scores(x[first : first + count], packed, plan, weights)
                _assert_same(part, tuple(values[first : first + count] for values in whole))

    def nan(self) -> None:
        plan = Plan(7, (20, 5), (-1, 0, 1), affine=True)
        for precision in precisions_of("cuda"):
            rounded = replace(plan, precision=precision)
            packed, _ = self._packed(rounded)
            x = self._normal(40, 7)
            clean = self.device.dense_scores(x, packed, rounded, torch.ones(3))
            x[17, 3] = float("nan")
            got = self.device.dense_scores(x, packed, rounded, torch.ones(3))
            others = torch.arange(40) != 17
            assert all(part[17].isnan().all() for part in got)
            _assert_same(tuple(part[others] for part in got), tuple(part[others] for part in clean))

    def _in_all_precisions(self) -> list[tuple[Plan, int]]:
        return [(replace(plan, precision=name), user) for plan, user in self.plans for name in precisions_of("cuda")]

    def _packed(self, plan: Plan) -> tuple[Tensor, list[Tensor]]:
        weights = random_weights(plan)
        return ops.pack_towers(weights, plan), [weight.double() for weight in weights]

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)


def _assert_same(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    """Assert bitwise equality, NaN included."""
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=["cuda", "emulated"])
    parser.add_argument("--small", action="store_true", help="shapes for compute-sanitizer and the emulator")
    parser.add_argument("--only", default="", help="checks whose names contain this")
    options = parser.parse_args(arguments)
    reason = Device.why_missing(options.device)
    if reason is not None:
        print(f"{options.device}: {reason}")
        return 1
    failed = 0
    for check in Checks(Device(options.device), options.small).all():
        name = check.__name__
        if options.only not in name:
            continue
        try:
            check()
            print(f"passed  {name}", flush=True)
        except (AssertionError, RuntimeError, ValueError) as error:
            failed += 1
            print(f"FAILED  {name}: {type(error).__name__} {error}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
