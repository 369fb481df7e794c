"""PyTorch eager on the same weights, as well written as it can be by hand: what ``--compare-eager`` times.

``dense`` scores rows that are joined already (the joining is not timed); ``split`` computes the user's
part of the first layer once and the items' part of all tasks in one matrix product. Both end in
``torch.topk``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import reference
from ..bundle import Bundle
from ..fusion import Fusion
from ..reference import Layer
from ._ranker import Ranker
from ._requests import Embedded


@dataclass
class Comparison:
    """Seconds a request of each way, and how far the scores were apart."""

    resflow: list[float] = field(default_factory=list)
    dense: list[float] = field(default_factory=list)
    split: list[float] = field(default_factory=list)
    candidates: int = 0  # of all requests timed
    difference: float = 0.0  # the greatest between ours and eager's k-th best scores, relative above 1


@dataclass(frozen=True)
class _TowerLayer:
    """A hidden layer's weights as ``F.linear`` takes them."""

    weight: Tensor  # [H_l, H_{l-1}]
    bias: Tensor
    activation: str
    slope: Tensor | None
    affine: tuple[Tensor, Tensor] | None

    def __call__(self, value: Tensor) -> Tensor:
        return self.finish(F.linear(value, self.weight, self.bias))

    def finish(self, value: Tensor) -> Tensor:
        """What follows the matrix product."""
        slope = self.slope
        value = reference.activate(self.activation, value) if slope is None else F.prelu(value, slope)
        return value if self.affine is None else torch.addcmul(self.affine[1], value, self.affine[0])


class EagerRanker:
    """A bundle's towers in PyTorch eager."""

    def __init__(self, bundle: Bundle, fusion: Fusion, user_width: int) -> None:
        self._plan, self._fusion = bundle.plan, fusion
        self._fusion_weights = torch.tensor(fusion.weights_for(bundle.plan.tasks), dtype=torch.float32)
        self._towers: list[list[_TowerLayer]] = []
        self._heads: list[Layer] = []
        left = iter([torch.from_numpy(weight) for weight in bundle.weights])
        for _ in range(bundle.plan.tasks):
            self._towers.append([self._layer(left, activation) for activation in bundle.plan.activations])
            self._heads.append(_head(next(left), next(left)))
        firsts = [tower[0] for tower in self._towers]
        joined = torch.cat([layer.weight for layer in firsts])
        self._user_weight = joined[:, :user_width].contiguous()
        self._item_weight = joined[:, user_width:].T.contiguous()
        self._first_bias = torch.cat([layer.bias for layer in firsts])

    def dense(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The ``k`` best of rows ``[n, D]``."""
        return self._best(x, self._towers, k)

    def split(self, user: Tensor, item: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The ``k`` best of one user row ``[1, Du]`` and items ``[n, Di]``."""
        shared = F.linear(user, self._user_weight, self._first_bias)
        parts = torch.addmm(shared, item, self._item_weight).split(self._plan.hidden[0], dim=1)
        towers: list[list[Any]] = [
            [lambda own, task=task, layer=tower[0]: layer.finish(own[task]), *tower[1:]]
            for task, tower in enumerate(self._towers)
        ]
        return self._best(parts, towers, k)

    def _best(self, first: Any, towers: list[Any], k: int) -> tuple[Tensor, Tensor]:
        logits = reference.tower_logits(first, towers, self._heads, self._plan)
        score = reference.fuse(logits, self._fusion_weights, self._fusion.code)
        best = torch.topk(score, k)
        return best.values, best.indices

    def _layer(self, left: Any, activation: str) -> _TowerLayer:
        weight, bias = next(left).T.contiguous(), next(left)
        slope = next(left) if activation == "prelu" else None
        affine = (next(left), next(left)) if self._plan.affine else None
        return _TowerLayer(weight, bias, activation, slope, affine)


def compare(ranker: Ranker, bundle: Bundle, requests: Iterable[Embedded], k: int, threads: int) -> Comparison:
    """Time the three ways in turns, request by request, each with ``threads`` threads."""
    scorer = ranker.scorer
    assert scorer.features is not None
    torch.set_num_threads(threads)
    eager = EagerRanker(bundle, scorer.fusion, scorer.features.user_width)
    result: Comparison | None = None
    with torch.inference_mode():
        for embedded in requests:
            if len(embedded.item):
                best = min(k, len(embedded.item))
                if result is None:  # the first request's first turns are a warm-up that does not count
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


def _head(weight: Tensor, bias: Tensor) -> Layer:
    row = weight[None].contiguous()
    return lambda value: F.linear(value, row, bias).squeeze(-1)
