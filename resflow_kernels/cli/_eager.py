"""PyTorch eager on the same weights (:mod:`resflow_kernels.benchmark.towers`), timed by ``--compare-eager``.

``dense`` scores rows that are already joined (joining is not timed); ``split`` computes the user's part of the first
layer once per request. Both end in ``torch.topk``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..benchmark.towers import Towers
from ..core.fusion import Fusion
from ..core.plan import Plan
from ..serving.bundle import Bundle
from ._ranker import Ranker
from ._requests import Embedded


@dataclass
class Comparison:
    """Seconds per request of each implementation, and the largest difference of their scores."""

    resflow: list[float] = field(default_factory=list)
    dense: list[float] = field(default_factory=list)
    split: list[float] = field(default_factory=list)
    candidates: int = 0  # over all timed requests
    difference: float = 0.0  # largest difference between our and eager's k-th best scores, relative above 1


class EagerRanker:
    """A bundle's towers in PyTorch eager, which return the ``k`` best candidates."""

    def __init__(self, bundle: Bundle, fusion: Fusion, user_width: int) -> None:
        assert isinstance(bundle.plan, Plan)  # score has refused programs
        self._towers = Towers(bundle.plan, bundle.weights, fusion, user_width)

    def dense(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The ``k`` best of rows ``[n, D]``."""
        return _best(self._towers(x), k)

    def split(self, user: Tensor, item: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The ``k`` best of one user row ``[1, Du]`` and items ``[n, Di]``."""
        return _best(self._towers.split(user, item), k)


def _best(scores: tuple[Tensor, Tensor], k: int) -> tuple[Tensor, Tensor]:
    best = torch.topk(scores[1], k)
    return best.values, best.indices


def compare(ranker: Ranker, bundle: Bundle, requests: Iterable[Embedded], k: int, threads: int) -> Comparison:
    """Time the three implementations in turn on each request, with ``threads`` threads each."""
    scorer = ranker.scorer
    assert scorer.features is not None
    torch.set_num_threads(threads)
    eager = EagerRanker(bundle, scorer.fusion, scorer.features.user_width)
    result: Comparison | None = None
    with torch.inference_mode():
        for embedded in requests:
            if len(embedded.item):
                best = min(k, len(embedded.item))
                if result is None:  # the first request's first calls are a warm-up that does not count
                    _take_turns(ranker, eager, embedded, best, Comparison())
                    result = Comparison()
                _take_turns(ranker, eager, embedded, best, result)
    return Comparison() if result is None else result


def _take_turns(ranker: Ranker, eager: EagerRanker, embedded: Embedded, k: int, result: Comparison) -> None:
    user, item = torch.from_numpy(embedded.user), torch.from_numpy(embedded.item)
    rows = torch.cat((user.expand(len(item), -1), item), dim=1)
    ranker.prepare(embedded)
    ours = _timed(lambda: ranker.best(embedded, k).scores[0], result.resflow)
    dense = _timed(lambda: eager.dense(rows, k)[0], result.dense)
    split = _timed(lambda: eager.split(user, item, k)[0], result.split)
    result.candidates += len(item)
    for theirs in (dense, split):
        gap = np.abs(ours - theirs.numpy()) / np.maximum(1.0, np.abs(ours))
        result.difference = max(result.difference, float(np.nanmax(gap, initial=0.0)))


def _timed(call: Callable[[], Any], seconds: list[float]) -> Any:
    began = time.perf_counter()
    result = call()
    seconds.append(time.perf_counter() - began)
    return result
