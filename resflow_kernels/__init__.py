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
    from .contract.results import Scores, TopK
    from .convert.fuse import fuse
    from .core.fusion import Additive, ExpectedValue, Multiplicative
    from .core.plan import Plan, chain, topology
    from .metrics.fusion_search import TunedFusion, plot_surface, tune_fusion
    from .nn import (
        AITM,
        DLRM,
        ESMM,
        METHODS,
        NSE,
        PLE,
        DCNv2,
        FeatureRanker,
        MMoE,
        PackedFeatureRanker,
        PackedResFlow,
        ResFlow,
        SharedBottom,
        TwinTable,
        TwinTower,
        bucket_values,
        make_ranker,
        multitask_bce,
        progressive_labels,
    )
    from .serving import bundle
    from .serving.catalog import Catalog, build_catalog
    from .serving.scorer import Scorer

__version__ = "0.1.0"

__all__ = [
    "AITM",
    "DLRM",
    "ESMM",
    "METHODS",
    "NSE",
    "PLE",
    "Additive",
    "Catalog",
    "DCNv2",
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
    "bundle",
    "chain",
    "fuse",
    "make_ranker",
    "multitask_bce",
    "plot_surface",
    "progressive_labels",
    "topology",
    "tune_fusion",
]

# The module that defines each name. `bundle` is a module of its own: bundle.load, bundle.save.
_HOMES = {
    "contract.results": ("Scores", "TopK"),
    "convert": ("fuse",),
    "core.fusion": ("Additive", "ExpectedValue", "Multiplicative"),
    "core.plan": ("Plan", "chain", "topology"),
    "metrics.fusion_search": ("TunedFusion", "plot_surface", "tune_fusion"),
    "nn": (
        "AITM",
        "DLRM",
        "ESMM",
        "METHODS",
        "NSE",
        "PLE",
        "DCNv2",
        "FeatureRanker",
        "MMoE",
        "PackedFeatureRanker",
        "PackedResFlow",
        "ResFlow",
        "SharedBottom",
        "TwinTable",
        "TwinTower",
        "bucket_values",
        "make_ranker",
        "multitask_bce",
        "progressive_labels",
    ),
    "serving": ("bundle",),
    "serving.catalog": ("Catalog", "build_catalog"),
    "serving.scorer": ("Scorer",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
_SUBMODULES = {
    "cli",
    "contract",
    "convert",
    "core",
    "data",
    "integrations",
    "metrics",
    "nn",
    "ops",
    "reference",
    "serving",
    "testing",
    "training",
    "triton",
}


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = f"{__name__}.{_HOME_OF[name]}"
    module = import_module(home)
    value = getattr(module, name) if hasattr(module, name) else import_module(f"{home}.{name}")
    globals()[name] = value  # later accesses find the name without this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})
