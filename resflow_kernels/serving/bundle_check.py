"""What a bundle has to be: plan, tasks, weights, fusion, features and tables that match each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.features import check_table

if TYPE_CHECKING:
    from .bundle import Bundle


def validate(bundle: Bundle) -> None:
    """Check that plan, tasks, weights, fusion, features and tables match each other."""
    tasks, plan = bundle.tasks, bundle.plan
    if len(tasks) != plan.tasks or len(set(tasks)) != len(tasks) or not all(tasks) or not is_strings(list(tasks)):
        raise ValueError(f"tasks must be {plan.tasks} different names, got {list(tasks)}")
    finite = all(map(np.isfinite, bundle.fusion.weights_for(plan.tasks)))
    if not finite:
        raise ValueError(f"fusion weights must be finite, got {bundle.fusion.weights}")
    shapes = plan.weight_shapes
    if len(bundle.weights) != len(shapes):
        raise ValueError(f"weights must be the {len(shapes)} arrays of this plan, got {len(bundle.weights)}")
    for at, (weight, (name, shape)) in enumerate(zip(bundle.weights, shapes, strict=True)):
        _check_array(f"weights.{at} ({name})", weight, shape)
    _validate_features(bundle)


def _validate_features(bundle: Bundle) -> None:
    features, tables = bundle.features, bundle.tables
    if features is None:
        if tables:
            raise ValueError(f"tables must be none without features, got {sorted(tables)}")
        return
    width = features.user_width + features.item_width
    if width != bundle.plan.in_features:
        raise ValueError(f"features must be {bundle.plan.in_features} wide in all, got {width}")
    extra = sorted(tables.keys() - {feature.name for feature in features.all})
    if extra:
        raise ValueError(f"tables must be those of the features, got also {extra}")
    for feature in features.all:
        check_table(feature, tables.get(feature.name))
        _check_array(f"table.{feature.name}", tables[feature.name], (feature.rows, feature.dim))


def _check_array(name: str, array: Any, shape: tuple[int, ...]) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.shape != shape:
        got = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"{name} must be float32 of shape {list(shape)}, got {got}")
    # min and max propagate NaN and infinities and, unlike isfinite, need no array of flags as long as the table.
    if array.size and not (np.isfinite(array.min()) and np.isfinite(array.max())):
        raise ValueError(f"{name} must be finite, got NaN or Inf")


def is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_strings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)
