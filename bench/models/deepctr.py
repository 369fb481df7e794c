"""Models of deepctr-torch: 26 categorical and 13 numeric columns in one float matrix."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.models.harness import Case
from bench.models.stand_ins import stand_ins

# The package asks PyPI for its newest version when it is imported.
with stand_ins("deepctr_torch.utils", always=True):
    from deepctr_torch import models
    from deepctr_torch.inputs import DenseFeat, SparseFeat, VarLenSparseFeat, build_input_features
    from deepctr_torch.models import multitask

_COLUMNS = [
    *(SparseFeat(f"c{i}", vocabulary_size=100 + 37 * i, embedding_dim=8) for i in range(26)),
    *(DenseFeat(f"n{i}", 1) for i in range(13)),
]
_LENGTH = 20
_BEHAVIOR = [
    SparseFeat("member", 300, 16),
    SparseFeat("item", 1000, 8),
    SparseFeat("kind", 50, 4),
    DenseFeat("price", 1),
    VarLenSparseFeat(SparseFeat("hist_item", 1000, 8, embedding_name="item"), maxlen=_LENGTH, length_name="hist_len"),
    VarLenSparseFeat(SparseFeat("hist_kind", 50, 4, embedding_name="kind"), maxlen=_LENGTH, length_name="hist_len"),
]
_SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("DeepFM", {"dnn_hidden_units": (256, 128), "dnn_dropout": 0.1}),
    ("DeepFM", {"dnn_hidden_units": (256, 128), "dnn_use_bn": True, "dnn_activation": "prelu"}),
    *((name, {}) for name in ("WDL", "xDeepFM", "DCN")),
    ("DCN", {"cross_parameterization": "matrix"}),
    *((name, {}) for name in ("DCNMix", "NFM", "FiBiNET", "AutoInt", "IFM", "DIFM", "AFN")),
]


def cases() -> Iterator[Case]:
    """The package's models."""
    rows, behavior = partial(_matrix, _COLUMNS), partial(_matrix, _BEHAVIOR)
    for name, options in _SETTINGS:
        shown = [str(options[key]) for key in ("dnn_activation", "cross_parameterization") if key in options]
        yield Case(" ".join([name, *shown]), partial(getattr(models, name), _COLUMNS, _COLUMNS, **options), rows)
    yield Case("PNN", partial(models.PNN, _COLUMNS), rows)
    for name in ("ESMM", "SharedBottom", "MMOE", "PLE"):
        yield Case(name, partial(getattr(multitask, name), _COLUMNS), rows, "multi-task")
    attention = partial(models.DIN, _BEHAVIOR, ["item", "kind"], device="cpu", att_weight_normalization=True)
    yield Case("DIN", attention, behavior, "sequence")


def _matrix(columns: list[Any], batch: int) -> tuple[Tensor]:
    """The package's input: every column's values side by side."""
    generator = torch.Generator().manual_seed(2)
    places = build_input_features(columns)
    x = torch.zeros(batch, max(end for _, end in places.values()))
    lengths = torch.randint(1, _LENGTH + 1, (batch,), generator=generator)
    for column in columns:
        start, end = places[column.name]
        if isinstance(column, DenseFeat):
            x[:, start:end] = torch.rand(batch, end - start, generator=generator)
        elif isinstance(column, VarLenSparseFeat):
            ids = torch.randint(1, column.vocabulary_size, (batch, _LENGTH), generator=generator)
            x[:, start:end] = ids * (torch.arange(_LENGTH) < lengths[:, None])
            x[:, places[column.length_name][0]] = lengths.float()
        else:
            x[:, start] = torch.randint(0, column.vocabulary_size, (batch,), generator=generator).float()
    return (x,)
