"""One hypothesis profile: the same examples every run, no deadline on noisy machines; and what tests need of torch."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "resflow", derandomize=True, deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("resflow")


@pytest.fixture
def inductor() -> None:
    """For tests that compile with torch's own compiler, which does not quote the folder of torch's libraries."""
    import torch

    if " " in torch.__file__:
        pytest.skip(f"torch.compile links with no library of torch where their path has a space: {torch.__file__}")
