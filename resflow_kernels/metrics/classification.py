"""Metrics of each task's probabilities: AUC, log loss, calibration. Needs torch; AUC and ECE need the ``cli`` extra."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .ranking import grouped_auc

if TYPE_CHECKING:
    from torch import Tensor


def auc(scores: Any, labels: Any) -> float:
    """Area under the ROC curve; equal scores count half.

    Args:
        scores: ``[N]``, of any range (logits, probabilities, fused scores). Array-like, or a tensor on any device.
        labels: ``[N]``, bool, or 0 and 1.

    Returns:
        NaN if one of the two labels does not occur, or a score is NaN.

    Raises:
        ValueError: shapes that do not match, or other labels.
        ImportError: torchmetrics is missing.

    Example:
        >>> auc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
        0.75
    """
    import torch

    values, truth = _vectors("auc", "scores", scores, labels)
    if bool(values.isnan().any()) or bool((truth == truth[:1]).all()):
        return float("nan")
    # torchmetrics takes scores outside of 0 to 1 for logits, and different scores may have equal sigmoids.
    places = torch.unique(values, return_inverse=True)[1]
    return float(_torchmetrics().binary_auroc(places.double() / len(places), truth.long(), validate_args=False))


def log_loss(probs: Any, labels: Any) -> float:
    """Mean binary cross-entropy of probabilities, in nats; a term is at most 100.

    Args:
        probs: ``[N]``, 0 to 1.
        labels: ``[N]``, bool, or 0 and 1.

    Returns:
        NaN if there are no candidates or a probability is NaN.

    Raises:
        ValueError: shapes that do not match, other labels, or probabilities out of range.

    Example:
        >>> round(log_loss([0.5, 0.5], [0, 1]), 4)
        0.6931
    """
    import torch.nn.functional as F

    values, truth = _probabilities("log_loss", probs, labels)
    # If a probability is NaN, so is the mean; the function itself would refuse it.
    return float("nan") if bool(values.isnan().any()) else float(F.binary_cross_entropy(values, truth))


def calibration_error(probs: Any, labels: Any, bins: int = 15) -> float:
    """Expected calibration error: mean distance of predicted and observed rates over bins of equal width.

    ``ECE = sum_i (n_i / N) |mean probability in bin i - share of positives in bin i|``

    Args:
        probs, labels: as in :func:`log_loss`.
        bins: at least 1; bin ``i`` holds ``i / bins <= p < (i + 1) / bins``, and ``p = 1`` is a bin of its own.

    Returns:
        NaN if there are no candidates or a probability is NaN.

    Raises:
        ValueError: as :func:`log_loss`, or ``bins < 1``.
        ImportError: torchmetrics is missing.

    Example:
        >>> round(calibration_error([0.25, 0.25, 0.75, 0.75], [0, 0, 1, 1]), 4)
        0.25
    """
    if bins < 1:
        raise ValueError(f"calibration_error: bins must be at least 1, got {bins}")
    values, truth = _probabilities("calibration_error", probs, labels)
    if len(values) == 0 or bool(values.isnan().any()):
        return float("nan")
    return float(_torchmetrics().binary_calibration_error(values, truth.long(), n_bins=bins, validate_args=False))


def calibration_ratio(probs: Any, labels: Any) -> float:
    """Predicted over observed positives: above 1, the model overestimates.

    Args:
        probs, labels: as in :func:`log_loss`.

    Returns:
        NaN if no positive was observed or a probability is NaN.

    Raises:
        ValueError: as :func:`log_loss`.

    Example:
        >>> calibration_ratio([0.5, 0.5, 0.5], [0, 0, 1])
        1.5
    """
    values, truth = _probabilities("calibration_ratio", probs, labels)
    observed = float(truth.sum())
    return float(values.sum()) / observed if observed else float("nan")


def task_metrics(
    probs: Any, labels: Any, tasks: Sequence[str], groups: Any = None, mask: Any = None
) -> dict[str, dict[str, float]]:
    """The metrics of every task: ``auc``, ``log_loss``, ``calibration_error``, ``calibration_ratio``, ``gauc``.

    Args:
        probs: ``[N, K]``, 0 to 1.
        labels: ``[N, K]``, bool, or 0 and 1 where observed.
        tasks: ``K`` names.
        groups: ``[N]`` integers, each candidate's user or request, for ``gauc``; ``None``: no ``gauc``.
        mask: ``[N, K]`` bool, whether a label was observed; ``None``: all were.

    Returns:
        Metrics by task and name; NaN where the metric's own function returns it.

    Raises:
        ValueError: shapes that do not match, other labels, or probabilities out of range.
        ImportError: torchmetrics is missing.

    Example:
        >>> task_metrics([[0.1], [0.9]], [[0], [1]], ["click"])["click"]["auc"]
        1.0
    """
    import torch

    values = torch.as_tensor(probs).detach()
    device = values.device
    shape = list(values.shape)
    if values.dim() != 2 or shape[1] != len(tasks):
        raise ValueError(f"task_metrics: probs must be a matrix of {len(tasks)} columns, one per task, got {shape}")
    truth = torch.as_tensor(labels, device=device).detach()
    seen = torch.ones(shape, dtype=torch.bool) if mask is None else torch.as_tensor(mask)
    for name, tensor in (("labels", truth), ("mask", seen)):
        if tensor.shape != values.shape:
            raise ValueError(f"task_metrics: {name} must be of shape {shape}, got {list(tensor.shape)}")
    if seen.dtype != torch.bool:
        raise ValueError(f"task_metrics: mask must be bool, got {seen.dtype}")
    owners = None if groups is None else torch.as_tensor(groups, device=device)
    if owners is not None and list(owners.shape) != shape[:1]:
        raise ValueError(f"task_metrics: groups must be of shape {shape[:1]}, got {list(owners.shape)}")
    metrics = {}
    for task, name in enumerate(tasks):
        own = seen[:, task].to(device)
        pair = (values[own, task], truth[own, task])
        found = {one.__name__: one(*pair) for one in (auc, log_loss, calibration_error, calibration_ratio)}
        if owners is not None:
            found["gauc"] = grouped_auc(*pair, owners[own])
        metrics[name] = found
    return metrics


def _vectors(op: str, name: str, values: Any, labels: Any) -> tuple[Tensor, Tensor]:
    """Both values in float64, on the device of the first."""
    import torch

    numbers = torch.as_tensor(values).detach().double()
    truth = torch.as_tensor(labels, device=numbers.device).detach().double()
    if numbers.dim() != 1:
        raise ValueError(f"{op}: {name} must be a vector, got {list(numbers.shape)}")
    if truth.shape != numbers.shape:
        raise ValueError(f"{op}: labels must be of shape {list(numbers.shape)}, got {list(truth.shape)}")
    if not bool(((truth == 0) | (truth == 1)).all()):
        raise ValueError(f"{op}: labels must be 0 or 1, got others")
    return numbers, truth


def _probabilities(op: str, probs: Any, labels: Any) -> tuple[Tensor, Tensor]:
    values, truth = _vectors(op, "probs", probs, labels)
    if bool(((values < 0) | (values > 1)).any()):
        raise ValueError(f"{op}: probs must be 0 to 1, got {float(values.min())} to {float(values.max())}")
    return values, truth


def _torchmetrics() -> Any:
    try:
        from torchmetrics.functional import classification
    except ImportError as error:
        raise ImportError("this metric needs torchmetrics: pip install torchmetrics") from error
    return classification
