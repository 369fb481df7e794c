"""The feature form on a GPU's kernels: the bits of pooling in float32 and the dense form."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resflow_kernels import reference
from resflow_kernels.contract import TABLE_PRECISIONS as ELEMENTS
from resflow_kernels.contract import WEIGHTS_PER
from resflow_kernels.testing import WORKLOADS, assert_exact
from tests.support.cases import FeatureCase
from tests.support.comparisons import same_bits
from tests.support.devices import Device
from tests.support.draws import elements, fusion_weights, fusions, gpu_batches, gpu_plans, random_offsets, seeds

features = st.lists(
    st.tuples(st.one_of(st.integers(0, 20), st.sampled_from([32, 33])), elements, st.booleans()), min_size=1, max_size=5
).filter(lambda all_: any(width for width, _, _ in all_))


def columns(features: list[tuple[int, str, bool]]) -> tuple[list[int], list[str], list[bool]]:
    widths, dtype, ragged = zip(*features, strict=True)
    return list(widths), list(dtype), list(ragged)


@given(plan=gpu_plans(), features=features, batch=gpu_batches, fusion=fusions, seed=seeds)
def test_scores_are_those_of_pooled_rows(
    device: Device, plan: object, features: list[tuple[int, str, bool]], batch: int, fusion: str, seed: int
) -> None:
    case = FeatureCase(plan, *columns(features), batch, seed, ops=device)
    weights, per = fusion_weights(case.plan, fusion, batch, case.generator), "candidate"
    settings = (case.packed, case.plan, weights, fusion, per)
    got = device.feature_scores(case.ids, case.tables, *settings)
    assert same_bits(got, device.dense_scores(case.pooled(), *settings))
    doubles = [weight.double() for weight in case.weights]
    exact = reference.dense_scores(case.pooled().double(), doubles, case.plan, weights.double(), fusion, per)
    assert_exact(got, exact, weights, case.plan.precision)


@given(
    plan=gpu_plans(),
    features=features,
    batch=gpu_batches,
    requests=st.integers(1, 4),
    per=st.sampled_from(WEIGHTS_PER),
    k=st.sampled_from([1, 7, 100]),
    seed=seeds,
)
def test_requests_have_the_bits_of_the_request_form(
    device: Device,
    plan: object,
    features: list[tuple[int, str, bool]],
    batch: int,
    requests: int,
    per: str,
    k: int,
    seed: int,
) -> None:
    case = FeatureCase(plan, *columns(features), batch, seed, ops=device)
    users = int(case.draw(len(case.rows) + 1))
    user, item = case.random_ids(requests, range(users)), case.random_ids(batch, range(users, len(case.rows)))
    offsets = random_offsets(batch, requests, case.generator)
    weights = fusion_weights(
        case.plan, "additive", {"call": None, "request": requests, "candidate": batch}[per], case.generator
    )
    settings = (case.packed, case.plan, weights, "additive", per)
    got = device.feature_request_scores(user, item, offsets, case.tables, users, *settings)

    tables, scales, ragged = case.tables
    parts = []
    for ids, chosen in ((user, range(users)), (item, range(users, len(case.rows)))):
        own = [tables[at] for at in chosen]
        places = [at for at in range(len(tables)) if tables[at].dtype == torch.int8]
        own_scales = [scales[places.index(at)] for at in chosen if at in places]
        lists = [at - chosen[0] for at in ragged if at in chosen]
        parts.append(reference.feature_rows(*ids, own, own_scales, lists) if own else torch.zeros(len(ids.ids), 0))
    assert same_bits(got, device.request_scores(*parts, offsets, *settings))
    best = device.feature_request_topk(user, item, offsets, case.tables, users, *settings, k)
    assert same_bits(best, reference.topk(got.score, offsets, k))


@given(plan=gpu_plans(), features=features, batch=gpu_batches, requests=st.integers(1, 4), seed=seeds)
def test_topk_is_that_of_the_scores(
    device: Device, plan: object, features: list[tuple[int, str, bool]], batch: int, requests: int, seed: int
) -> None:
    case = FeatureCase(plan, *columns(features), batch, seed, ops=device)
    offsets = random_offsets(batch, requests, case.generator)
    settings = (case.packed, case.plan, case.fusion_weights, "additive", "call")
    best = device.feature_topk(case.ids, offsets, case.tables, *settings, 5)
    assert same_bits(best, reference.topk(case.run().score, offsets, 5))


@pytest.mark.parametrize("dtype", ELEMENTS)
@pytest.mark.parametrize("name", WORKLOADS)
def test_workloads_of_width_32(device: Device, name: str, dtype: str) -> None:
    plan = WORKLOADS[name].plan
    count = plan.in_features // 32
    widths = [32] * count + ([plan.in_features % 32] if plan.in_features % 32 else [])
    ragged = [at % 5 == 4 for at in range(len(widths))]
    case = FeatureCase(plan, widths, [dtype] * len(widths), ragged, 20 if device.emulated else 5000, 0, ops=device)
    settings = (case.packed, case.plan, case.fusion_weights)
    assert same_bits(case.run(), device.dense_scores(case.pooled(), *settings))
