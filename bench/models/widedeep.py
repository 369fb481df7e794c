"""Models of pytorch-widedeep: a wide and a deep component joined in one ``WideDeep``."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.models.harness import Case
from bench.models.stand_ins import stand_ins

# What its models of text and images need.
with stand_ins("cv2", "gensim", "spacy", "torchvision", "transformers"):
    from pytorch_widedeep.models import TabMlp, TabResnet, Wide, WideDeep
    from pytorch_widedeep.models.rec import DeepCrossNetwork

_CATEGORIES = [(f"c{i}", 50 + 30 * i, 16) for i in range(8)]
_NUMBERS = [f"n{i}" for i in range(5)]
_PLACES = {name: i for i, name in enumerate([*(name for name, _, _ in _CATEGORIES), *_NUMBERS])}
_MLP = {"mlp_hidden_dims": [200, 100]}
_DEEP: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "TabMlp": (TabMlp, {**_MLP, "cont_norm_layer": "batchnorm"}),
    "TabMlp BatchNorm first": (TabMlp, {**_MLP, "mlp_batchnorm": True, "mlp_linear_first": False}),
    "TabResnet": (TabResnet, {}),
    "DeepCrossNetwork": (DeepCrossNetwork, {**_MLP, "n_cross_layers": 3}),
}


def cases() -> Iterator[Case]:
    """The package's models."""
    for name in _DEEP:
        yield Case(name, partial(_model, name), _tables)


def _model(name: str) -> nn.Module:
    kind, options = _DEEP[name]
    deep = kind(column_idx=_PLACES, cat_embed_input=_CATEGORIES, continuous_cols=_NUMBERS, **options)
    model: nn.Module = WideDeep(wide=Wide(100, 1), deeptabular=deep, pred_dim=1)
    return model


def _tables(batch: int) -> tuple[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(4)
    ids = [torch.randint(1, size, (batch,), generator=generator).float() for _, size, _ in _CATEGORIES]
    deep = torch.cat([torch.stack(ids, 1), torch.rand(batch, len(_NUMBERS), generator=generator)], 1)
    return ({"wide": torch.randint(1, 100, (batch, 6), generator=generator), "deeptabular": deep},)
