"""One hypothesis profile: the same examples every run, no deadline on noisy machines."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "resflow", derandomize=True, deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("resflow")
