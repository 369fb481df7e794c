"""The cases of the CPU's tests, computed by another device's kernels."""

from __future__ import annotations

from typing import Any

import test_feature_ops
import test_ops
import test_twin_ops

from resflow_kernels.testing.device import Device


def make_towers(device: Device, *arguments: Any, **settings: Any) -> test_ops.Case:
    """A :class:`test_ops.Case` of this device."""
    made = type("Case", (test_ops.Case,), {"ops": device})
    return made(*arguments, **settings)


def make_features(device: Device, *arguments: Any, **settings: Any) -> test_feature_ops.Case:
    """A :class:`test_feature_ops.Case` of this device."""
    made = type("Case", (test_feature_ops.Case,), {"ops": device})
    return made(*arguments, **settings)


def make_twins(device: Device, *arguments: Any, **settings: Any) -> test_twin_ops.Case:
    """A :class:`test_twin_ops.Case` of this device."""
    return test_twin_ops.Case(*arguments, **settings, ops=device)
