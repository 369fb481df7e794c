"""The registry of all methods that :func:`make_ranker` builds. Needs torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..core.fusion import Fusion
from ..core.plan import topology
from .baselines import AITM, MMoE, SharedBottom
from .interactions import DLRM, DCNv2
from .ple import PLE
from .ranker import RankerBase
from .resflow import ESMM, NSE, ResFlow


@dataclass(frozen=True)
class Method:
    """An entry of :data:`METHODS`."""

    build: Callable[..., RankerBase]
    summary: str
    has_topology: bool = True  # whether `parents` changes the model
    has_constraint: bool = False  # whether it can be `non_increasing`
    settings: Mapping[str, Any] = field(default_factory=dict)


METHODS: dict[str, Method] = {
    "nse": Method(NSE, "naive shared embedding: a tower a task, nothing between them", has_topology=False),
    "esmm": Method(ESMM, "ESMM: conditional towers, p_k = p_parent(k) * sigmoid(r_k)"),
    "aitm": Method(AITM, "AITM: attention transfer between last hidden layers"),
    "shared_bottom": Method(SharedBottom, "one bottom, small towers", has_topology=False),
    "mmoe": Method(MMoE, "MMoE: experts, a softmax gate a task", has_topology=False),
    "ple": Method(PLE, "PLE: shared and own experts in levels", has_topology=False),
    "dcnv2": Method(DCNv2, "DCN v2: cross layers beside a deep tower", has_topology=False),
    "dlrm": Method(DLRM, "DLRM: dot products of fields", has_topology=False),
    "resflow": Method(ResFlow, "ResFlow: feature and logit residuals", has_constraint=True),
    "resflow_fr": Method(ResFlow, "ResFlow, feature residual alone", settings={"logit_residual": False}),
    "resflow_lr": Method(
        ResFlow, "ResFlow, logit residual alone", has_constraint=True, settings={"feature_residual": False}
    ),
}


def make_ranker(
    method: str,
    in_features: int,
    hidden: Sequence[int] = (128, 64),
    tasks: Sequence[str] = ("ctr", "ctcvr"),
    parents: Sequence[int] | Mapping[str, str] | str | None = None,
    *,
    norm: str | None = "batch",
    non_increasing: bool = False,
    fusion: Fusion | None = None,
    **settings: Any,
) -> RankerBase:
    """A new ranker of any method, ready to train. Single-task models are several ``"nse"`` rankers with one task each.

    Args:
        method: a name of :data:`METHODS`.
        in_features, hidden, tasks, norm, fusion: as in :class:`ResFlow`.
        parents: the topology, as for :func:`~resflow_kernels.topology`; ``None``: a chain. It has no effect on methods
            without a topology (see :data:`METHODS`).
        non_increasing: keep ``p_k <= p_parent(k)``; only for methods with a logit residual.
        settings: further arguments of the method's own constructor.

    Raises:
        ValueError: an unknown method, or a setting that it lacks or refuses; the message names it.

    Example:
        >>> make_ranker("aitm", 576, tasks=("click", "like", "follow"), parents="star").plan.parents
        (-1, 0, 0)
    """
    if method not in METHODS:
        raise ValueError(f"make_ranker: method must be one of {', '.join(METHODS)}, got {method!r}")
    entry = METHODS[method]
    if non_increasing:
        if not entry.has_constraint:
            able = ", ".join(name for name, one in METHODS.items() if one.has_constraint)
            raise ValueError(f"make_ranker: non_increasing must be False for any method but {able}, got {method!r}")
        settings["non_increasing"] = True
    settings = {**entry.settings, **settings, "norm": norm, "fusion": fusion}
    try:
        return entry.build(in_features, hidden, tasks, topology(parents, tasks), **settings)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise ValueError(f"make_ranker: settings must be arguments of {method!r}, got {sorted(settings)}") from error
