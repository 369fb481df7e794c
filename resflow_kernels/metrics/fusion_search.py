"""Fusion weights that maximise Weighted Recall@K on held-out requests (ResFlow, arXiv 2411.09705). Needs torch.

The paper chose its score, CTR + 20 CTCVR, by a search of this kind. A ranking does not change when all weights are
multiplied by one number, so ``K`` tasks have ``K - 1`` relative weights to search.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from os import PathLike
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .. import reference
from ..core.fusion import FORMS, Fusion
from . import weighted_recall_at_k

GRID = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
# Factors between neighbours in the refinement; those of the grid are 2 to 2.5.
ZOOMS = (1.5, 1.25, 1.1)
# Padded scores per block of requests: requests of similar lengths share a block, so little of it is padding.
BLOCK = 1 << 22

Weights = tuple[float, ...]


@dataclass(frozen=True, eq=False)
class TunedFusion:
    """The result of :func:`tune_fusion`."""

    fusion: Fusion
    wr_at_k: float  # of `fusion`, on the requests it was tuned on
    default: Fusion
    default_wr_at_k: float
    k: int
    surface: NDArray[np.float64]  # [S, K + 1]: the weights of every setting tried, followed by its WR@K


def tune_fusion(
    predictions: Any,
    weights: Any,
    offsets: Any,
    k: int = 100,
    form: str = "additive",
    *,
    from_logits: bool = False,
    default: Sequence[float] | None = None,
    grid: Sequence[float] = GRID,
    most: int = 200,
) -> TunedFusion:
    """Search the fusion weights with the highest Weighted Recall@K.

    Tries all settings of a log grid if they are few enough, otherwise one coordinate at a time; then refines around the
    best with ever smaller steps. Deterministic. Among equal settings the default is preferred, then the one closest to
    equal weights. Tune on requests that neither training nor the final measurement uses.

    Args:
        predictions: ``[N, K]``, each candidate's probabilities (or logits), concatenated over all requests.
            Array-like, or a tensor on any device, where the search then runs.
        weights: ``[N]``, each candidate's feedback, non-negative.
        offsets: ``[R + 1]`` integers; request ``r`` owns candidates ``offsets[r]`` to ``offsets[r + 1]``.
        k: at least 1.
        form: ``"additive"`` (found weights have 1 for the first task that counts) or ``"multiplicative"`` (1 is the
            largest, so that products do not underflow).
        from_logits: ``predictions`` are logits.
        default: the weights to beat; ``None``: the form's own, all 1.
        grid: factors tried for each task relative to the first, non-negative.
        most: largest number of settings to try; the default is always tried.

    Returns:
        :class:`TunedFusion`; never worse than the default on these requests.

    Raises:
        ValueError: an argument of the wrong shape or value, or no request with feedback; the message names it.

    Example:
        >>> probs = [[0.9, 0.01], [0.5, 0.09], [0.1, 0.02]]
        >>> tune_fusion(probs, [0, 1, 0], [0, 3], k=1).fusion
        Additive(weights=(1.0, 5.0))
    """
    logits = _checked_logits(predictions, from_logits)
    _require(form in ("additive", "multiplicative"), "form", "additive or multiplicative", repr(form))
    _require(most >= 1, "most", "at least 1", most)
    steps = tuple(float(step) for step in grid)
    _require(all(0 <= step < math.inf for step in steps), "grid", "finite and not negative", steps)
    start = FORMS[form](None if default is None else tuple(default))
    first = start.weights_for(logits.shape[1])
    _require(all(0 <= one < math.inf for one in first) and any(first), "default", "not negative, one above 0", first)

    def measured(found: Weights) -> float:
        score = reference.fuse(logits, logits.new_tensor(found), start.kind)
        return weighted_recall_at_k(score, weights, offsets, k)

    default_recall = measured(first)  # checks the remaining arguments
    _require(not math.isnan(default_recall), "weights", "above 0 for a candidate", "none")
    requests = _Requests(logits, weights, offsets, k, form)
    search = _Search(requests.recall, first, form, most)
    search.run(steps)
    best = search.best
    recall = default_recall if best == first else measured(best)
    if recall < default_recall:  # the search sums in another order than the metric, so the last bits may differ
        best, recall = first, default_recall
    surface = np.array([[*one, value] for one, value in search.tried.items()])
    return TunedFusion(FORMS[form](best), recall, FORMS[form](first), default_recall, k, surface)


class _Search:
    """The settings tried so far, and the search steps."""

    def __init__(self, recall: Callable[[Weights], float], default: Weights, form: str, most: int) -> None:
        self._recall, self._default, self._form, self._most = recall, default, form, most
        self.tried: dict[Weights, float] = {default: recall(default)}

    @property
    def best(self) -> Weights:
        return min(self.tried, key=lambda one: (-self.tried[one], one != self._default, _distance(one)))

    def run(self, grid: Sequence[float]) -> None:
        tasks = len(self._default)
        if tasks == 1:
            return
        self._try((1.0,) * tasks for _ in range(1))
        self._try(tuple(float(task == only) for task in range(tasks)) for only in range(tasks))
        if len(grid) ** (tasks - 1) <= self._most - len(self.tried):
            self._try((1.0, *rest) for rest in product(grid, repeat=tasks - 1))
        else:
            self._climb(lambda best: (_with(best, task, step) for task in range(tasks) for step in grid))
        for factor in ZOOMS:
            self._climb(partial(_neighbours, factor=factor))

    def _climb(self, around: Callable[[Weights], Iterable[Weights]]) -> None:
        """Try the settings around the best one until none of them is better."""
        before = None
        while self.best != before and len(self.tried) < self._most:
            before = self.best
            self._try(around(before))

    def _try(self, settings: Iterable[Weights]) -> None:
        for setting in settings:
            if len(self.tried) >= self._most:
                return
            if any(setting):
                scaled = _scaled(setting, self._form)
                if scaled not in self.tried:
                    self.tried[scaled] = self._recall(scaled)


def _with(setting: Weights, task: int, relative: float) -> Weights:
    """``setting`` with a new weight for one task, relative to the first nonzero weight of the others."""
    others = (*setting[:task], *setting[task + 1 :])
    unit = next((weight for weight in others if weight > 0), 1.0)
    return (*setting[:task], relative * unit, *setting[task + 1 :])


def _neighbours(setting: Weights, factor: float) -> Iterator[Weights]:
    """All combined steps of up to three tasks; with more tasks, steps of one task at a time."""
    moves = (1.0, factor, 1 / factor)
    rest = setting[1:]
    if len(setting) <= 3:
        for move in product(moves, repeat=len(rest)):
            yield (setting[0], *(weight * by for weight, by in zip(rest, move, strict=True)))
    else:
        for task in range(len(setting)):
            for by in moves[1:]:
                yield (*setting[:task], setting[task] * by, *setting[task + 1 :])


def _scaled(setting: Weights, form: str) -> Weights:
    """The setting that stands for its ranking: additive with the first weight 1, multiplicative with the largest 1."""
    unit = max(setting) if form == "multiplicative" else next(weight for weight in setting if weight > 0)
    return tuple(float(f"{weight / unit:.3g}") for weight in setting)


def _distance(setting: Weights) -> float:
    """Distance from equal weights, in logarithms; a weight of 0 counts as 1 in 1000."""
    logs = [math.log(max(weight / max(setting), 1e-3)) for weight in setting]
    middle = sum(logs) / len(logs)
    return round(sum(abs(log - middle) for log in logs), 9)


class _Requests:
    """Weighted Recall@K of many settings over the same requests; everything that settings share is computed once.

    Only the k-th best score of a request is found, not its order: a candidate with feedback is among the k best if its
    score is higher, or equal and not preceded by too many equal ones.
    """

    def __init__(self, logits: Tensor, weights: Any, offsets: Any, k: int, form: str) -> None:
        feedback = torch.as_tensor(weights, device=logits.device).detach().double()
        bounds = torch.as_tensor(offsets, device=logits.device).long()
        totals = torch.segment_reduce(feedback, "sum", lengths=bounds.diff(), unsafe=True)
        # The terms that reference.fuse multiplies by the weights and sums.
        lowest = torch.finfo(logits.dtype).min
        parts = logits.sigmoid() if form == "additive" else F.logsigmoid(logits).clamp(min=lowest)
        chosen = torch.nonzero(totals > 0).flatten()
        chosen = chosen[bounds.diff()[chosen].argsort(stable=True)]
        self._count = len(chosen)
        self._blocks = [
            _Block(parts, feedback, bounds, totals, block, k, form == "multiplicative")
            for block in _split(chosen, bounds.diff()[chosen].tolist())
        ]

    def recall(self, setting: Weights) -> float:
        return sum(block.recall(setting) for block in self._blocks) / self._count


class _Block:
    """Requests of similar lengths as rows of a matrix ``[r, L]``, padded at the end."""

    def __init__(
        self, parts: Tensor, feedback: Tensor, bounds: Tensor, totals: Tensor, chosen: Tensor, k: int, exponential: bool
    ) -> None:
        starts, sizes = bounds[chosen], bounds.diff()[chosen]
        columns = torch.arange(int(sizes.max()), device=parts.device)
        self._absent = columns >= sizes[:, None]
        at = torch.where(self._absent, 0, starts[:, None] + columns)
        self._parts = [parts[:, task].contiguous()[at] for task in range(parts.shape[1])]
        own = torch.where(self._absent, 0.0, feedback[at])
        self._with_feedback = own.nonzero(as_tuple=True)
        rows = self._with_feedback[0]
        self._shares = own[self._with_feedback] / totals[chosen][rows]
        self._k = k
        self._exponential = exponential

    def recall(self, setting: Weights) -> float:
        """The sum of the recall over the block's requests."""
        score = torch.zeros_like(self._parts[0])
        for weight, part in zip(setting, self._parts, strict=True):
            score.add_(part, alpha=weight)
        if self._exponential:
            score.exp_()
        score.masked_fill_(self._absent, -math.inf)
        last = score.topk(min(self._k, score.shape[1]), sorted=False).values.amin(1, keepdim=True)
        held = score >= last
        crowded = ((held.sum(1) > self._k) & (last[:, 0] > -math.inf)).nonzero().flatten()
        if len(crowded):  # more scores equal to the last one than places left: the lower positions are kept
            own, limit = score[crowded], last[crowded]
            above, equal = own > limit, own == limit
            held[crowded] = above | (equal & (equal.cumsum(1) <= self._k - above.sum(1, keepdim=True)))
        return float((held[self._with_feedback] * self._shares).sum())


def _split(requests: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Split requests, shortest first, into blocks of at most ``BLOCK`` padded scores (or one request)."""
    cuts, first = [], 0
    for at, size in enumerate(sizes):
        if at > first and (at - first + 1) * size > BLOCK:
            cuts.append(at)
            first = at
    return list(torch.tensor_split(requests, cuts))


def plot_surface(
    tuned: TunedFusion, path: str | PathLike[str], tasks: Sequence[str] | None = None, title: str | None = None
) -> None:
    """Draw Weighted Recall@K over the relative weights of two or three tasks, on log axes.

    Args:
        tuned: the result of :func:`tune_fusion`.
        path: the file to write; its suffix is the format (``.png``, ``.svg``, ...).
        tasks: their names; ``None``: numbers.
        title: of the chart.

    Raises:
        ValueError: the number of tasks is not two or three, or not that of the names.
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot_surface needs matplotlib: pip install matplotlib") from error
    count = tuned.surface.shape[1] - 1
    _require(count in (2, 3), "tuned", "of two or three tasks", f"one of {count}")
    names = [f"task {task}" for task in range(count)] if tasks is None else list(tasks)
    _require(len(names) == count, "tasks", f"{count} names", names)

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    shown = tuned.surface[tuned.surface[:, 0] > 0]  # settings with the first weight 0 have no relative weights
    relative, recalls = shown[:, 1:count] / shown[:, :1], shown[:, count]
    marks = (("default", tuned.default, "tab:gray", "s"), ("tuned", tuned.fusion, "tab:red", "*"))
    if count == 2:
        order = relative[:, 0].argsort(kind="stable")
        axes.plot(relative[order, 0], recalls[order], ".-")
    else:
        axes.set_yscale("symlog", linthresh=_smallest(relative[:, 1]))
        axes.set_ylabel(f"weight of {names[2]} ({names[0]}: 1)")
        points = axes.scatter(relative[:, 0], relative[:, 1], c=recalls, s=60)
        figure.colorbar(points, label=f"Weighted Recall@{tuned.k}")
    for (label, fusion, colour, marker), recall in zip(marks, (tuned.default_wr_at_k, tuned.wr_at_k), strict=True):
        weights = fusion.weights_for(count)
        if weights[0] > 0:
            at = [weight / weights[0] for weight in weights[1:]]
            at = [at[0], recall] if count == 2 else at
            axes.plot(*at, marker, color=colour, markersize=12, label=f"{label}: {recall:.4f}", linestyle="none")
    axes.set_xscale("symlog", linthresh=_smallest(relative[:, 0]))
    axes.set_xlabel(f"weight of {names[1]} ({names[0]}: 1)")
    if count == 2:
        axes.set_ylabel(f"Weighted Recall@{tuned.k}")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    if title is not None:
        axes.set_title(title)
    figure.savefig(path, dpi=150)


def _smallest(values: NDArray[np.float64]) -> float:
    """The smallest value above 0, where a log axis that also shows 0 turns linear."""
    above = values[values > 0]
    return float(above.min()) if len(above) else 1.0


def _checked_logits(predictions: Any, from_logits: bool) -> Tensor:
    values = torch.as_tensor(predictions).detach().double()
    _require(values.dim() == 2 and values.shape[1] >= 1, "predictions", "a matrix [N, K]", list(values.shape))
    _require(not bool(values.isnan().any()), "predictions", "without NaN", "NaN")
    if from_logits:
        return values
    _require(bool(((values >= 0) & (values <= 1)).all()), "predictions", "0 to 1 (or from_logits=True)", "others")
    return torch.logit(values)


def _require(holds: bool, argument: str, expected: str, got: object) -> None:
    if not holds:
        raise ValueError(f"tune_fusion: {argument} must be {expected}, got {got}")
