"""Hypothesis strategies for plans and inputs."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from resflow_kernels.contract import ACTIVATIONS, FUSIONS, PRECISIONS, TABLE_PRECISIONS
from resflow_kernels.core.checks import precisions_of
from resflow_kernels.core.fusion import weight_count
from resflow_kernels.core.plan import Plan

# Widths around the lane (16) and the panel (64), and some that divide by nothing.
widths = st.one_of(st.integers(1, 20), st.sampled_from([31, 33, 47, 48, 63, 64, 65, 80, 97, 128, 130, 257, 520]))
batches = st.one_of(st.integers(0, 20), st.sampled_from([47, 48, 49, 95, 97, 128, 300]))
seeds = st.integers(0, 2**20)

# For GPU kernels, which an emulator runs where there is no GPU, a row in about a millisecond.
gpu_widths = st.one_of(st.integers(1, 20), st.sampled_from([31, 33, 64, 65, 130]))
gpu_batches = st.one_of(st.integers(0, 18), st.sampled_from([31, 33, 64, 65]))
gpu_precisions = st.sampled_from(precisions_of("cuda"))


@st.composite
def plans(
    draw: st.DrawFn,
    max_tasks: int = 16,
    precision: str | None = None,
    precisions: st.SearchStrategy[str] = st.sampled_from(PRECISIONS),  # noqa: B008
    widths: st.SearchStrategy[int] = widths,
    max_layers: int = 4,
) -> Plan:
    """Any forest, any switches, layers with an activation each, one of the precisions if none is given."""
    tasks = draw(st.one_of(st.integers(1, min(5, max_tasks)), st.just(max_tasks)))
    hidden = tuple(draw(st.lists(widths, min_size=1, max_size=max_layers)))
    parents = tuple(draw(st.integers(-1, task - 1)) for task in range(tasks))
    conditional = draw(st.booleans())
    logit_residual = not conditional and draw(st.booleans())
    return Plan(
        in_features=draw(widths),
        hidden=hidden,
        parents=parents,
        activations=tuple(draw(st.sampled_from(ACTIVATIONS)) for _ in hidden),
        feature_residual=draw(st.booleans()),
        logit_residual=logit_residual,
        non_increasing=logit_residual and draw(st.booleans()),
        affine=draw(st.booleans()),
        head="conditional" if conditional else "residual",
        precision=draw(precisions) if precision is None else precision,
    )


def gpu_plans(max_tasks: int = 4) -> st.SearchStrategy[Plan]:
    """Plans of GPU precisions that an emulator gets through."""
    return plans(max_tasks, precisions=gpu_precisions, widths=gpu_widths, max_layers=3)


def fusion_weights(plan: Plan, fusion: str, rows: int | None, generator: torch.Generator) -> Tensor:
    """Weights of 0 to 2 for the call, or for each of ``rows``."""
    count = weight_count(fusion, plan.tasks)
    shape = (count,) if rows is None else (rows, count)
    return 2 * torch.rand(shape, generator=generator)


fusions = st.sampled_from(FUSIONS)
elements = st.sampled_from(TABLE_PRECISIONS)


def random_offsets(candidates: int, requests: int, generator: torch.Generator) -> Tensor:
    cuts = torch.randint(0, candidates + 1, (max(requests - 1, 0),), generator=generator).sort().values
    return torch.cat((torch.tensor([0]), cuts, torch.tensor([candidates]))) if requests else torch.tensor([0])
