"""The devices that the tests of GPU kernels run on: a GPU, and the emulator that needs none."""

from __future__ import annotations

import pytest

from tests.support.devices import Device


@pytest.fixture(scope="session", params=["emulated", "cuda"])
def device(request: pytest.FixtureRequest) -> Device:
    reason = Device.why_missing(request.param)
    if reason is not None:
        pytest.skip(f"{request.param}: {reason}")
    return Device(request.param)
