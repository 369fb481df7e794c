"""Triton's kernels: on a GPU, or where there is none under the interpreter, which has to be asked for before Triton is
imported."""

from __future__ import annotations

import os

import pytest
import torch

from resflow_kernels.ops import backends
from resflow_kernels.testing.device import Device

if backends.has_triton() and torch.cuda.device_count() == 0:
    os.environ["TRITON_INTERPRET"] = "1"


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
