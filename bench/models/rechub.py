"""Models of torch-rechub: a dict of id and numeric columns."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch_rechub.basic.features import DenseFeature, SequenceFeature, SparseFeature
from torch_rechub.models import matching, multi_task, ranking

from bench.models.harness import Case

_SPARSE = [SparseFeature(f"s{i}", vocab_size=50 + 61 * i, embed_dim=16) for i in range(20)]
_DENSE = [DenseFeature(f"d{i}") for i in range(13)]
_FEATURES = _SPARSE + _DENSE
_LENGTH = 20
_HISTORY = [
    SequenceFeature("seen", vocab_size=1000, embed_dim=16, pooling="concat", shared_with="item"),
    SequenceFeature("seen_kind", vocab_size=50, embed_dim=16, pooling="concat", shared_with="kind"),
]
_TARGET = [SparseFeature("item", 1000, 16), SparseFeature("kind", 50, 16)]


def cases() -> Iterator[Case]:
    """The package's models."""
    yield from _multi_task()
    yield from _single_task()
    two = _mlp(256, 128, 64, activation="prelu")
    yield Case("DSSM", partial(matching.DSSM, _SPARSE[:10], _SPARSE[10:], two, two), _columns, "two towers")
    sequence = (_SPARSE[:5], _HISTORY, _TARGET)
    mlp = {"dims": [256, 128]}
    din = partial(ranking.DIN, *sequence, mlp_params=mlp, attention_mlp_params=mlp)
    yield Case("DIN", din, _columns, "sequence")
    yield Case("BST", partial(ranking.BST, *sequence, mlp_params=mlp), _columns, "sequence")


def _multi_task() -> Iterator[Case]:
    for activation in ("relu", "dice"):
        tower = _mlp(160, 80, activation=activation, dropout=0.1)
        esmm = partial(multi_task.ESMM, _SPARSE[:10], _SPARSE[10:], tower, tower)
        yield Case(f"ESMM {activation}", esmm, _columns, "multi-task")
    tasks, towers = ["classification"] * 2, [_mlp(16), _mlp(16)]
    wide = [_mlp(64, 32, dropout=0.2)] * 2
    for name, build in {
        "SharedBottom": partial(multi_task.SharedBottom, _FEATURES, tasks, _mlp(117), wide),
        "MMOE": partial(multi_task.MMOE, _FEATURES, tasks, 8, _mlp(32), towers),
        "PLE": partial(multi_task.PLE, _FEATURES, tasks, 1, 2, 1, _mlp(32), towers),
        "AITM": partial(multi_task.AITM, _FEATURES, 2, _mlp(64, 32), [_mlp(32, 16), _mlp(32, 16)]),
    }.items():
        yield Case(name, build, _columns, "multi-task")


def _single_task() -> Iterator[Case]:
    deep = _mlp(256, 128, dropout=0.2)
    yield Case("DeepFM", partial(ranking.DeepFM, _FEATURES, _SPARSE, deep), _columns)
    yield Case("WideDeep", partial(ranking.WideDeep, _SPARSE, _FEATURES, deep), _columns)
    yield Case("DCN", partial(ranking.DCN, _FEATURES, 3, deep), _columns)
    for structure in ("parallel", "stacked"):
        for low_rank in (False, True):
            options = {"model_structure": structure, "use_low_rank_mixture": low_rank}
            name = f"DCNv2 {structure}{' low rank' if low_rank else ''}"
            yield Case(name, partial(ranking.DCNv2, _FEATURES, 3, deep, **options), _columns)
    yield Case("EDCN", partial(ranking.EDCN, _SPARSE, 2, _mlp(256, 128)), _columns)
    autoint = partial(ranking.AutoInt, _SPARSE, _DENSE, num_layers=2, num_heads=2, mlp_params=deep)
    yield Case("AutoInt", autoint, _columns)
    yield Case("FiBiNet", partial(ranking.FiBiNet, _SPARSE, deep), _columns)


def _mlp(*dims: int, activation: str = "relu", **more: Any) -> dict[str, Any]:
    return {"dims": list(dims), "activation": activation, **more}


def _columns(batch: int) -> tuple[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(4)
    x = {f.name: torch.randint(0, f.vocab_size, (batch,), generator=generator) for f in _SPARSE + _TARGET}
    x |= {f.name: torch.rand(batch, generator=generator) for f in _DENSE}
    x |= {f.name: torch.randint(0, f.vocab_size, (batch, _LENGTH), generator=generator) for f in _HISTORY}
    return (x,)
