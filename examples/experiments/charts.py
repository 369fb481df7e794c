"""Charts as PNG. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .tables import Summary


def lines(
    path: Path, panels: Mapping[str, Mapping[str, Sequence[tuple[float, Summary]]]], y: str, log: bool = True
) -> Path:
    """Adjacent panels with one line per method and its standard deviation over seeds.

    Args:
        path: path of the PNG.
        panels: by the label of the x axis: by method, points ``(x, summary)``.
        y: label of the y axis.
        log: whether x axes are logarithmic.
    """
    figure, axes = _figure(len(panels), share_y=True)
    for axis, (x, methods) in zip(axes, panels.items(), strict=True):
        for method, points in methods.items():
            deviations = np.nan_to_num([summary.deviation for _, summary in points])
            axis.errorbar([x for x, _ in points], [s.mean for _, s in points], deviations, marker="o", label=method)
        axis.set_xlabel(x)
        if log:
            axis.set_xscale("log")
        axis.grid(True, alpha=0.3)
    axes[0].set_ylabel(y)
    axes[-1].legend(fontsize=8)
    return _saved(figure, path)


def histograms(path: Path, panels: Mapping[str, Mapping[str, Sequence[float]]], edges: Sequence[float]) -> Path:
    """Adjacent panels with one curve per group: the share of the group in each bin.

    Args:
        path: path of the PNG.
        panels: by the label of the x axis: by group, one count per bin.
        edges: edges of the bins, one more than bins.
    """
    figure, axes = _figure(len(panels))
    for axis, (x, groups) in zip(axes, panels.items(), strict=True):
        for group, counts in groups.items():
            shares = np.asarray(counts, float) / max(1.0, float(np.sum(counts)))
            axis.stairs(shares, edges, label=group)
        axis.set_xlabel(x)
        axis.grid(True, alpha=0.3)
    axes[0].set_ylabel("share of the group")
    axes[-1].legend(fontsize=8)
    return _saved(figure, path)


def points(path: Path, groups: Mapping[str, Mapping[str, Summary]], y: str) -> Path:
    """Adjacent groups with one point per method and its standard deviation over seeds."""
    figure, axes = _figure(len(groups))
    for axis, (group, methods) in zip(axes, groups.items(), strict=True):
        for at, summary in enumerate(methods.values()):
            axis.errorbar(at, summary.mean, np.nan_to_num(summary.deviation), marker="o", capsize=3, color="black")
        axis.set_xticks(range(len(methods)), list(methods), rotation=45, ha="right", fontsize=8)
        axis.set_title(group)
        axis.grid(True, alpha=0.3)
    axes[0].set_ylabel(y)
    return _saved(figure, path)


def _figure(panels: int, share_y: bool = False) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure  # needs no display
    except ImportError as missing:
        raise ImportError("charts need matplotlib: pip install matplotlib") from missing
    figure = Figure(figsize=(4.2 * panels, 3.8), layout="constrained")
    return figure, figure.subplots(1, panels, squeeze=False, sharey=share_y)[0]


def _saved(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path
