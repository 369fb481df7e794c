"""Fast inference of ResFlow residual multi-task rankers (KDD 2024, arXiv 2411.09705).

Names are imported when first used (PEP 562): ``import resflow_kernels`` loads neither torch nor the
compiled library, and ``resflow_kernels.Scorer`` never needs torch.

>>> from resflow_kernels import Plan, chain
>>> Plan(in_features=576, parents=chain(3)).tasks
3
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .baselines import AITM, METHODS, MMoE, SharedBottom, make_ranker
    from .catalog import Catalog, build_catalog
    from .convert.fuse import fuse
    from .feature_nn import FeatureRanker, PackedFeatureRanker
    from .fusion import Additive, ExpectedValue, Multiplicative
    from .losses import bucket_values, multitask_bce, progressive_labels
    from .nn import ESMM, NSE, ResFlow
    from .packed import PackedResFlow
    from .plan import Plan, chain, topology
    from .reference import Scores, TopK
    from .runtime import Scorer
    from .tune import TunedFusion, plot_surface, tune_fusion
    from .twin_nn import TwinTable, TwinTower

__version__ = "0.1.0"

__all__ = [
    "AITM",
    "ESMM",
    "METHODS",
    "NSE",
    "Additive",
    "Catalog",
    "ExpectedValue",
    "FeatureRanker",
    "MMoE",
    "Multiplicative",
    "PackedFeatureRanker",
    "PackedResFlow",
    "Plan",
    "ResFlow",
    "Scorer",
    "Scores",
    "SharedBottom",
    "TopK",
    "TunedFusion",
    "TwinTable",
    "TwinTower",
    "bucket_values",
    "build_catalog",
    "chain",
    "fuse",
    "make_ranker",
    "multitask_bce",
    "plot_surface",
    "progressive_labels",
    "topology",
    "tune_fusion",
]

_HOMES = {
    "baselines": ("AITM", "METHODS", "MMoE", "SharedBottom", "make_ranker"),
    "catalog": ("Catalog", "build_catalog"),
    "convert": ("fuse",),
    "feature_nn": ("FeatureRanker", "PackedFeatureRanker"),
    "fusion": ("Additive", "ExpectedValue", "Multiplicative"),
    "losses": ("bucket_values", "multitask_bce", "progressive_labels"),
    "nn": ("ESMM", "NSE", "ResFlow"),
    "packed": ("PackedResFlow",),
    "tune": ("TunedFusion", "plot_surface", "tune_fusion"),
    "twin_nn": ("TwinTable", "TwinTower"),
    "plan": ("Plan", "chain", "topology"),
    "reference": ("Scores", "TopK"),
    "runtime": ("Scorer",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
_SUBMODULES = {
    *_HOMES,
    "bundle",
    "catalog",
    "cli",
    "contract",
    "features",
    "fold",
    "metrics",
    "ops",
    "quantize",
    "testing",
    "training",
}


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})
