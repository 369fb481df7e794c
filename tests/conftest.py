"""One hypothesis profile, one choice of what runs Triton's kernels, and the devices that ops are tested on."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

from resflow_kernels.ops import backends

pytest.register_assert_rewrite("tests.support")

# Where there is no GPU Triton's kernels are interpreted, which has to be asked for before Triton is imported.
if backends.has_triton() and torch.cuda.device_count() == 0:
    os.environ["TRITON_INTERPRET"] = "1"

# Workers share the cores: threads beyond these wait for each other in loops. Tests of threads set their number.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)

# The same examples every run, and no deadline on noisy machines.
settings.register_profile(
    "resflow", derandomize=True, deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
# For what is tested in full elsewhere, such as the kernels of a lower instruction set.
settings.register_profile("fewer", settings.get_profile("resflow"), max_examples=15)
settings.load_profile("resflow")


@pytest.fixture
def inductor() -> None:
    """For tests that compile with torch's own compiler, which does not quote the folder of torch's libraries."""
    if " " in torch.__file__:
        pytest.skip(f"torch.compile links with no library of torch where their path has a space: {torch.__file__}")
