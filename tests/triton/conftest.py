"""Triton's kernels: on a GPU, or under the interpreter where there is none."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from resflow_kernels.ops import backends
from tests.support.devices import Device
from tests.support.interpreter import quick_calls


@pytest.fixture(scope="session")
def device() -> Device:
    reason = Device.why_missing("triton")
    if reason is not None:
        pytest.skip(reason)
    return Device("triton")


@pytest.fixture(scope="session", autouse=True)
def _quick_calls() -> Iterator[None]:
    if backends.has_triton() and os.environ.get("TRITON_INTERPRET") == "1":
        with quick_calls():
            yield
    else:
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The interpreter is NumPy, which warns of infinities and NaN that these tests make on purpose."""
    for item in items:
        if os.path.dirname(__file__) == str(item.path.parent):
            item.add_marker(pytest.mark.filterwarnings("ignore::RuntimeWarning"))
