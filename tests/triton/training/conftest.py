"""Training's kernels under Triton's interpreter, or on a GPU where there is one."""

from __future__ import annotations

import pytest
import torch

from resflow_kernels.ops import backends


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _available() -> None:
    installed = backends.installed()
    reason = installed.triton and installed.triton_interpreter
    if reason is not None:
        pytest.skip(reason)
