"""Triton's kernels: on a GPU, or under the interpreter where there is none."""

from __future__ import annotations

import os

import pytest

from tests.support.devices import Device


@pytest.fixture(scope="session")
def device() -> Device:
    reason = Device.why_missing("triton")
    if reason is not None:
        pytest.skip(reason)
    return Device("triton")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The interpreter is NumPy, which warns of infinities and NaN that these tests make on purpose."""
    for item in items:
        if os.path.dirname(__file__) == str(item.path.parent):
            item.add_marker(pytest.mark.filterwarnings("ignore::RuntimeWarning"))
