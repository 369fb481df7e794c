"""The feature form against its PyTorch equivalent: ``nn.Embedding``, ``nn.EmbeddingBag``, a concatenation, the towers.

Eight features of one id and two lists of five ids on average, in tables of a million rows, and small tables up to the
576 columns of ``prerank3``. Ids are random and new in every call, so that table rows come from memory as in service.
Each case first asserts that the numbers are right; the calls are interleaved. Run with ``make bench``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import cycle
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from bench.cases import CORES
from resflow_kernels import FeatureRanker, ResFlow, ops
from resflow_kernels.benchmark.baselines import threads_of
from resflow_kernels.benchmark.interleave import Schedule, interleave
from resflow_kernels.contract import PRECISIONS, TABLE_PRECISIONS
from resflow_kernels.nn.feature import round_table
from resflow_kernels.ops import FeatureIds, FeatureTables
from resflow_kernels.testing import WORKLOADS, random_weights

WIDTH = 32
LARGE, SMALL = 1_000_000, 1000  # rows
LARGE_FEATURES, LISTS, SMALL_FEATURES = 8, 2, 8
MEAN_LENGTH = 5
CALLS = 24  # distinct batches: at 1024 candidates 58 MB of float32 rows, more than the 32 MB of a last-level cache


class Batch(NamedTuple):
    ours: FeatureIds
    columns: list[Tensor]  # ids of a feature, contiguous, as a data loader passes them to nn.Embedding
    lists: list[tuple[Tensor, Tensor]]  # values and offsets


@cache
def tables() -> list[Tensor]:
    """Large tables of single ids, large tables of the lists, small tables."""
    generator = torch.Generator().manual_seed(0)
    rows = [LARGE] * (LARGE_FEATURES + LISTS) + [SMALL] * SMALL_FEATURES
    return [0.1 * torch.randn(count, WIDTH, generator=generator) for count in rows]


@cache
def module() -> FeatureRanker:
    """The same features and towers as PyTorch modules."""
    ragged = range(LARGE_FEATURES, LARGE_FEATURES + LISTS)
    embeddings = [
        nn.EmbeddingBag.from_pretrained(table, mode="sum") if i in ragged else nn.Embedding.from_pretrained(table)
        for i, table in enumerate(tables())
    ]
    torch.manual_seed(0)
    towers = ResFlow(WIDTH * len(tables()), tasks=("ctr", "atcr", "ctcvr"), norm="batch")
    return FeatureRanker(embeddings, towers).eval()


def random_batch(candidates: int, generator: torch.Generator) -> Batch:
    def ids(rows: int, count: int = candidates) -> Tensor:
        return torch.randint(0, rows, (count,), generator=generator)

    columns = [ids(rows) for rows in [LARGE] * LARGE_FEATURES + [SMALL] * SMALL_FEATURES]
    counts = [torch.randint(0, 2 * MEAN_LENGTH + 1, (candidates,), generator=generator) for _ in range(LISTS)]
    values = [ids(LARGE, int(count.sum())) for count in counts]
    starts = [torch.cat((count.new_zeros(1), count.cumsum(0)[:-1])) for count in counts]
    offsets = torch.cat((torch.tensor([0]), torch.cat(counts).cumsum(0)))
    ours = FeatureIds(torch.stack(columns, 1), torch.cat(values), offsets)
    return Batch(ours, columns, list(zip(values, starts, strict=True)))


def embedded(batch: Batch) -> Tensor:
    """Embedded rows ``[B, D]``, by PyTorch."""
    columns, lists = iter(batch.columns), iter(batch.lists)
    parts = [
        one(*next(lists)) if isinstance(one, nn.EmbeddingBag) else one(next(columns)) for one in module().embeddings
    ]
    return torch.cat(parts, dim=1)


def cycled(call: Callable[[Batch], object], batches: list[Batch]) -> Callable[[], object]:
    """A call without arguments that takes the next batch each time."""
    following = cycle(batches)
    return lambda: call(next(following))


@pytest.mark.parametrize("candidates", [1024, 8192])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("threads", sorted({1, CORES}))
def test_against_embedding_bags(
    request: pytest.FixtureRequest, record: Callable[..., None], threads: int, precision: str, candidates: int
) -> None:
    """``precision`` is that of the towers; the tables are measured in each precision."""
    quick = request.config.getoption("--quick")
    if quick and (candidates, threads) != (1024, CORES):
        pytest.skip("left out of the quick run")
    plan = replace(WORKLOADS["prerank3"].plan, precision=precision)
    weights = random_weights(plan)
    packed, fusion_weights = ops.pack_towers(weights, plan), torch.ones(plan.tasks)
    ragged = tuple(range(LARGE_FEATURES, LARGE_FEATURES + LISTS))
    generator = torch.Generator().manual_seed(1)
    batches = [random_batch(candidates, generator) for _ in range(CALLS if candidates < 8192 else CALLS // 6)]

    def ours(element: str) -> Callable[[Batch], object]:
        rounded = [round_table(table, element) for table in tables()]
        scales = [one for _, one in rounded if one is not None]
        held = FeatureTables([table for table, _ in rounded], scales, ragged)
        return lambda batch: ops.feature_scores(batch.ours, held, packed, plan, fusion_weights)

    def dense(batch: Batch) -> object:
        return ops.dense_scores(embedded(batch), packed, plan, fusion_weights)

    x = embedded(batches[0])
    calls: dict[str, Callable[[Batch], object]] = {
        **{f"{element} tables": ours(element) for element in TABLE_PRECISIONS},
        "bags, concat, dense op": dense,
        "eager": lambda batch: module().towers._reference_logits(embedded(batch)),
        "dense op alone": lambda _: ops.dense_scores(x, packed, plan, fusion_weights),
    }
    with threads_of(threads):
        got, expected = calls["float32 tables"](batches[0]), dense(batches[0])
        for a, b in zip(got, expected, strict=True):  # type: ignore[call-overload]
            torch.testing.assert_close(a, b, atol=1e-2 if precision != "float32" else 2e-6, rtol=1e-5)
        implementations = {name: cycled(call, batches) for name, call in calls.items()}
        timings = interleave(implementations, Schedule(rounds=5 if quick else 9, burst_seconds=0.1))
    medians = {name: timing.median for name, timing in timings.items()}
    about = {"form": "features", "workload": "prerank3", "candidates": candidates, "threads": threads}
    info = {**about, "implementation": "resflow", "ours": True, "precision": precision, "medians": medians}
    record(timings["bfloat16 tables"].samples, info)
