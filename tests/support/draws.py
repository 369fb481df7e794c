"""Hypothesis strategies for plans and inputs, and properties that draw them for a device."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from resflow_kernels.contract import ACTIVATIONS, FUSIONS, PRECISIONS, TABLE_PRECISIONS, WEIGHTS_PER
from resflow_kernels.core.fusion import weight_count
from resflow_kernels.core.plan import Plan
from tests.support.devices import Device

# Widths around the lane (16) and the panel (64), and some that divide by nothing.
widths = st.one_of(st.integers(1, 20), st.sampled_from([31, 33, 47, 48, 63, 64, 65, 80, 97, 128, 130, 257, 520]))
batches = st.one_of(st.integers(0, 20), st.sampled_from([47, 48, 49, 95, 97, 128, 300]))
seeds = st.integers(0, 2**20)
fusions = st.sampled_from(FUSIONS)
weights_per = st.sampled_from(WEIGHTS_PER)
elements = st.sampled_from(TABLE_PRECISIONS)

# For GPU kernels, which an emulator runs where there is no GPU, a row in about a millisecond.
small_widths = st.one_of(st.integers(1, 20), st.sampled_from([31, 33, 64, 65, 130]))
small_batches = st.one_of(st.integers(0, 18), st.sampled_from([31, 33, 64, 65]))

# How many of the profile's examples a device draws: one that is slow, or whose kernels are another's, draws fewer.
SHARES = {"cpu": 1.0, "numpy": 0.25, "reference": 0.25, "emulated": 1.0, "cuda": 1.0, "triton": 1.0}
INTERPRETED = 0.15
# What an explicit example may have where it would take long: products emulated, rows of layers interpreted.
EMULATED_PRODUCTS, INTERPRETED_ROWS = 5e6, 2000


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


def plans_of(device: Device, max_tasks: int = 16) -> st.SearchStrategy[Plan]:
    """Plans of a device's precisions, of a size that it gets through."""
    precisions = st.sampled_from(device.precisions)
    if device.small:
        return plans(min(max_tasks, 4), precisions=precisions, widths=small_widths, max_layers=3)
    return plans(max_tasks, precisions=precisions)


def plans_up_to(max_tasks: int) -> Callable[[Device], st.SearchStrategy[Plan]]:
    """:func:`plans_of` with fewer tasks."""
    return lambda device: plans_of(device, max_tasks)


def batches_of(device: Device) -> st.SearchStrategy[int]:
    """How many candidates, a few of them or around the kernels' tiles."""
    return small_batches if device.small else batches


def drawn(
    *explicit: dict[str, Any], most: int | None = None, times: int = 1, **strategies: Any
) -> Callable[[Any], Any]:
    """A property of a device on drawn arguments, and on explicit ones as far as the device serves them.

    Args:
        explicit: arguments of examples that are tested besides.
        most: the most examples to draw.
        times: how many times as many examples to draw as of other properties.
        strategies: for each argument of the test a strategy, or a function that has a device's strategy. The test's
            other arguments are fixtures.
    """

    def decorate(body: Callable[..., None]) -> Callable[..., None]:
        def test(device: Device, **fixtures: Any) -> None:
            own = {name: part(device) if inspect.isfunction(part) else part for name, part in strategies.items()}

            def property_(**arguments: Any) -> None:
                body(device, **fixtures, **arguments)

            # Examples depend on the name, because they are the same in every run.
            property_.__name__ = f"{body.__name__}_{device.name}"
            run = given(**own)(property_)
            for arguments in explicit:
                if _served(device, arguments):
                    run = example(**arguments)(run)
            settings(max_examples=min(times * examples_of(device), most or 10**6))(run)()

        parameters = inspect.signature(body).parameters.values()
        fixtures = [parameter for parameter in parameters if parameter.name not in strategies]
        test.__name__, test.__doc__, test.__module__ = body.__name__, body.__doc__, body.__module__
        test.__signature__ = inspect.Signature(fixtures)  # type: ignore[attr-defined]
        return test

    return decorate


def examples_of(device: Device) -> int:
    """How many examples a property draws on a device."""
    share = INTERPRETED if device.interpreted else SHARES[device.name]
    return max(1, round(share * settings().max_examples))


def _served(device: Device, arguments: dict[str, Any]) -> bool:
    plan = arguments.get("plan")
    if plan is None:
        return True
    batch = arguments.get("batch", 1)
    rows = max(batch * plan.tasks * len(plan.hidden), arguments.get("k", 0))
    if device.interpreted and rows > INTERPRETED_ROWS:
        return False
    if device.slow and batch * sum(shape[0] * shape[-1] for _, shape in plan.weight_shapes) > EMULATED_PRODUCTS:
        return False
    return plan.precision in device.precisions


def fusion_weights(plan: Plan, fusion: str, rows: int | None, generator: torch.Generator) -> Tensor:
    """Weights of 0 to 2 for the call, or for each of ``rows``."""
    count = weight_count(fusion, plan.tasks)
    shape = (count,) if rows is None else (rows, count)
    return 2 * torch.rand(shape, generator=generator)


def random_offsets(candidates: int, requests: int, generator: torch.Generator) -> Tensor:
    cuts = torch.randint(0, candidates + 1, (max(requests - 1, 0),), generator=generator).sort().values
    return torch.cat((torch.tensor([0]), cuts, torch.tensor([candidates]))) if requests else torch.tensor([0])
