"""The fused ops: ``torch.ops.resflow.*`` with their arguments spelled out, and what PyTorch needs to trace them.

=================  ================================================================================
``pack_towers``    canonical weights (``Plan.weight_shapes``) into the one tensor the others take
``dense_scores``   ``x [B, D]`` to logits, probabilities and score
``dense_topk``     the k best of each request of ``x``
``request_scores`` one user row and many item rows a request; the user's part is computed once
``request_topk``   the k best of each request of that form
``catalog_rows``   items' side of the first layers, for the table of the next two
``catalog_scores`` one user row and many ids of table rows a request
``catalog_topk``   the k best of each request of that form
``twin_...``       the twin tower form: :mod:`resflow_kernels.ops.twin`
``train_...``      logits and gradients of a batch, joined by :func:`training_logits`
=================  ================================================================================

The feature form, ``feature_scores``, ``feature_topk`` and the same of requests, takes ids and embedding tables instead
of rows: :mod:`resflow_kernels.ops.feature`.

But for training, inference only: a call whose input asks for a gradient raises instead of losing it. The raw
``torch.ops.resflow`` ops do not check that (an autograd kernel would tax every call), so prefer these
functions or the modules of :mod:`resflow_kernels.nn` where gradients are about. Under the CPU's autocast the ops
take rows in float32, on a GPU as they are.

Each takes ``backend``: whose kernels compute it (:mod:`resflow_kernels.ops.backends`); those of ``_feature_ops`` and
``_twin_ops`` do not, Triton has the dense, request and catalogue forms alone.

On a GPU nothing is read back: where the CPU raises for what stands in a tensor (an id out of range, offsets that fall,
weights packed for another plan), the candidates concerned score NaN, unless ``RESFLOW_CHECK_IDS=1``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .. import reference
from ..contract import OP_SCHEMAS, PLAN_OPS
from ..core import checks
from ..core.outputs import empty_scores, empty_topk
from ..core.plan import Plan
from ..reference import Scores, TopK
from . import backends, catalog, feature, library, training, twin
from .catalog import catalog_rows, catalog_scores, catalog_topk
from .feature import (
    FeatureIds,
    FeatureTables,
    feature_request_scores,
    feature_request_topk,
    feature_scores,
    feature_topk,
    one_id_each,
)
from .training import training_logits
from .twin import twin_ids_scores, twin_ids_topk, twin_rows, twin_scores, twin_topk

__all__ = [
    "FeatureIds",
    "FeatureTables",
    "available",
    "catalog_rows",
    "catalog_scores",
    "catalog_topk",
    "cuda_status",
    "dense_scores",
    "dense_topk",
    "feature_request_scores",
    "feature_request_topk",
    "feature_scores",
    "feature_topk",
    "library_status",
    "one_id_each",
    "pack_towers",
    "reference_request_scores",
    "reference_request_topk",
    "reference_scores",
    "reference_topk",
    "request_scores",
    "request_topk",
    "training_logits",
    "twin_ids_scores",
    "twin_ids_topk",
    "twin_rows",
    "twin_scores",
    "twin_topk",
    "why_imprecise",
    "why_unavailable",
    "why_untrainable",
]

_compiled, _ = library.load()
_ops = torch.ops.resflow
# By what was asked for at import: a compiler's graphs cannot ask.
_untrainable = {device: backends.why_untrainable(device) for device in ("cpu", "meta", "cuda")}


def library_status() -> tuple[bool, str]:
    """Whether the compiled ops are loaded, and why (not)."""
    return library.status()


def cuda_status() -> tuple[bool, str]:
    """Whether the compiled ops of CUDA tensors are loaded, and why (not)."""
    return library.cuda_status()


def available(device: str, precision: str | None = None) -> bool:
    """Whether compiled ops serve tensors of this device type (in this precision)."""
    return why_unavailable(device, precision) is None


def why_unavailable(device: str, precision: str | None = None) -> str | None:
    """Why compiled ops do not serve this device type (in this precision); ``None`` if they do."""
    if device not in ("cpu", "meta", "cuda"):
        return f"there are no compiled ops for {device} tensors"
    loaded, reason = library.cuda_status() if device == "cuda" else library.status()
    if not loaded:
        return reason
    if device == "cuda" and library.too_old() is not None:
        return library.too_old()
    return None if precision is None else why_imprecise(device, precision)


def why_imprecise(device: str, precision: str) -> str | None:
    """Why kernels of a type of device do not compute in this precision; ``None`` if they do."""
    known = checks.precisions_of(device)
    if device == "meta" or precision in known:
        return None
    return f"on this device ({device}) the ops compute in {', '.join(known)}, not in {precision}"


def why_untrainable(device: str) -> str | None:
    """Why the training ops do not serve this device type; ``None`` if they do."""
    reason = _untrainable.get(device)
    return reason if reason is not None or device == "cuda" else why_unavailable(device)


def pack_towers(weights: Sequence[Tensor], plan: Plan) -> Tensor:
    """Pack canonical weights for the scoring ops.

    Args:
        weights: contiguous float32 tensors as ``plan.weight_shapes`` lists them.
        plan: the network they belong to.

    Returns:
        ``uint8 [n]``, the same for every instruction set; it fits this plan alone.

    Raises:
        ValueError: a weight of the wrong shape or dtype; the message names it.
    """
    if weights and weights[0].is_cuda and not library.cuda_status()[0]:  # for Triton's kernels
        return _ops.pack_towers([weight.cpu() for weight in weights], plan.encoded).to(weights[0].device)
    return _ops.pack_towers(list(weights), plan.encoded)


def dense_scores(
    x: Tensor,
    packed: Tensor,
    plan: Plan,
    fusion_weights: Tensor,
    fusion: int = 0,
    weights_per: int = 0,
    *,
    backend: str | None = None,
) -> Scores:
    """Form 1: score candidates.

    Args:
        x: ``[B, D]`` float32 or bfloat16, on a GPU also float16; rows contiguous, any row stride.
        packed: from :func:`pack_towers`, on the same device.
        plan: the plan it was packed for.
        fusion_weights: ``[K]``, or ``[B, K]`` for ``weights_per=2`` (``K + 1`` for expected values), float32.
        fusion: place in ``contract.FUSIONS`` (``Fusion.code``).
        weights_per: place in ``contract.WEIGHTS_PER``: 0 one set for the call, 2 one a candidate.
        backend: a name of ``backends.BACKENDS``, or ``None``: what ``RESFLOW_BACKEND`` says, else ``"auto"``.

    Returns:
        :class:`Scores` of logits ``[B, K]``, probs ``[B, K]`` and score ``[B]``.

    Raises:
        ValueError: bad input; the message names the argument, what was expected and what was got.
    """
    checks.no_grad("dense_scores", x=x, fusion_weights=fusion_weights)
    if not (backend is None and (backends.direct_cpu if x.is_cpu else backends.direct_cuda)):
        other = backends.function_of("dense_scores", "dense", x.device.type, plan, backend)
        if other is not None:
            return Scores(*other(x, packed, plan, fusion_weights, fusion, weights_per))
    return Scores(*_ops.dense_scores(x, packed, fusion_weights, plan.encoded, fusion, weights_per))


def dense_topk(
    x: Tensor,
    offsets: Tensor,
    packed: Tensor,
    plan: Plan,
    fusion_weights: Tensor,
    fusion: int = 0,
    weights_per: int = 0,
    k: int = 100,
    *,
    backend: str | None = None,
) -> TopK:
    """The ``k`` best candidates of each request of ``x [B, D]``; ``offsets [R + 1]`` int64 cuts it into requests.

    Returns:
        :class:`TopK` of scores ``[R, k]`` and positions ``[R, k]``; see :meth:`resflow_kernels.ResFlow.top_k`.

    Rows are float32 or bfloat16, offsets int64, ``packed`` is from :func:`pack_towers`; fusion arguments as in
    :func:`dense_scores`.

    Raises:
        ValueError: bad input; the message names it.
    """
    checks.no_grad("dense_topk", x=x, fusion_weights=fusion_weights)
    if not (backend is None and (backends.direct_cpu if x.is_cpu else backends.direct_cuda)):
        other = backends.function_of("dense_topk", "dense", x.device.type, plan, backend)
        if other is not None:
            return TopK(*other(x, offsets, packed, plan, fusion_weights, fusion, weights_per, k))
    return TopK(*_ops.dense_topk(x, offsets, packed, fusion_weights, plan.encoded, fusion, weights_per, k))


def request_scores(
    user: Tensor,
    item: Tensor,
    offsets: Tensor,
    packed: Tensor,
    plan: Plan,
    fusion_weights: Tensor,
    fusion: int = 0,
    weights_per: int = 0,
    *,
    backend: str | None = None,
) -> Scores:
    """Form 2: ``user [R, Du]``, ``item [N, Di]``, ``offsets [R + 1]``; ``weights_per=1`` is one set a request.

    Rows are float32 or bfloat16, offsets int64, ``packed`` is from :func:`pack_towers`; fusion arguments as in
    :func:`dense_scores`.

    Returns:
        :class:`Scores` of the ``N`` candidates: logits ``[N, K]``, probs ``[N, K]``, score ``[N]``.

    Raises:
        ValueError: bad input; the message names it.
    """
    checks.no_grad("request_scores", user=user, item=item, fusion_weights=fusion_weights)
    if not (backend is None and (backends.direct_cpu if item.is_cpu else backends.direct_cuda)):
        other = backends.function_of("request_scores", "request", item.device.type, plan, backend)
        if other is not None:
            return Scores(*other(user, item, offsets, packed, plan, fusion_weights, fusion, weights_per))
    return Scores(*_ops.request_scores(user, item, offsets, packed, fusion_weights, plan.encoded, fusion, weights_per))


def request_topk(
    user: Tensor,
    item: Tensor,
    offsets: Tensor,
    packed: Tensor,
    plan: Plan,
    fusion_weights: Tensor,
    fusion: int = 0,
    weights_per: int = 0,
    k: int = 100,
    *,
    backend: str | None = None,
) -> TopK:
    """The ``k`` best candidates of each request of form 2.

    Arguments as in :func:`request_scores`.

    Returns:
        :class:`TopK` of scores ``[R, k]`` and positions ``[R, k]``.

    Raises:
        ValueError: bad input; the message names it.
    """
    checks.no_grad("request_topk", user=user, item=item, fusion_weights=fusion_weights)
    if not (backend is None and (backends.direct_cpu if item.is_cpu else backends.direct_cuda)):
        other = backends.function_of("request_topk", "request", item.device.type, plan, backend)
        if other is not None:
            return TopK(*other(user, item, offsets, packed, plan, fusion_weights, fusion, weights_per, k))
    best = _ops.request_topk(user, item, offsets, packed, fusion_weights, plan.encoded, fusion, weights_per, k)
    return TopK(*best)


# The reference behind the same checks, for training and for models the ops do not serve. `logits_of` maps
# candidates' rows to logits, as a module's own layers do.

LogitsOf = Callable[[Tensor], Tensor]


def reference_scores(
    logits_of: LogitsOf, x: Tensor, plan: Plan, fusion_weights: Tensor, fusion: int, weights_per: int
) -> Scores:
    """:func:`dense_scores` by the reference; differentiable, any floating dtype."""
    _check_dense("dense_scores", x, None, fusion_weights, plan, fusion, weights_per, x.dtype)
    weights = reference.spread_weights(fusion_weights, weights_per, None)
    return reference.finish(logits_of(x), weights, fusion)


def reference_request_scores(
    logits_of: LogitsOf,
    user: Tensor,
    item: Tensor,
    offsets: Tensor,
    plan: Plan,
    fusion_weights: Tensor,
    fusion: int,
    weights_per: int,
    op: str = "request_scores",
) -> Scores:
    """:func:`request_scores` by the reference; differentiable, any floating dtype."""
    _check_request(op, user, item, offsets, fusion_weights, plan, fusion, weights_per, item.dtype)
    checks.offset_values(op, offsets, item.shape[0])
    request = reference.request_of_candidates(offsets, item.shape[0])
    weights = reference.spread_weights(fusion_weights, weights_per, request)
    return reference.finish(logits_of(torch.cat((user[request], item), dim=1)), weights, fusion)


def reference_topk(
    logits_of: LogitsOf,
    x: Tensor,
    offsets: Tensor,
    plan: Plan,
    fusion_weights: Tensor,
    fusion: int,
    weights_per: int,
    k: int,
) -> TopK:
    """:func:`dense_topk` by the reference."""
    _check_dense("dense_topk", x, offsets, fusion_weights, plan, fusion, weights_per, x.dtype)
    checks.offset_values("dense_topk", offsets, x.shape[0])
    checks.positive("dense_topk", "k", k)
    request = reference.request_of_candidates(offsets, x.shape[0])
    weights = reference.spread_weights(fusion_weights, weights_per, request)
    return reference.topk(reference.finish(logits_of(x), weights, fusion).score, offsets, k)


def reference_request_topk(
    logits_of: LogitsOf,
    user: Tensor,
    item: Tensor,
    offsets: Tensor,
    plan: Plan,
    fusion_weights: Tensor,
    fusion: int,
    weights_per: int,
    k: int,
) -> TopK:
    """:func:`request_topk` by the reference."""
    op = "request_topk"
    scores = reference_request_scores(logits_of, user, item, offsets, plan, fusion_weights, fusion, weights_per, op)
    checks.positive(op, "k", k)
    return reference.topk(scores.score, offsets, k)


# Shapes for tracing, and the checks that need no data.


def _check_dense(
    op: str,
    x: Tensor,
    offsets: Tensor | None,
    fusion_weights: Tensor,
    plan: Plan,
    fusion: int,
    weights_per: int,
    dtype: torch.dtype | None = None,
) -> None:
    checks.matrix(op, "x", x, plan.in_features, *_only(dtype))
    if offsets is not None:
        checks.offsets(op, offsets, None)
    requests = None if offsets is None else offsets.shape[0] - 1
    checks.fusion(op, fusion_weights, fusion, weights_per, plan.tasks, x.shape[0], requests, dtype or torch.float32)


def _check_request(
    op: str,
    user: Tensor,
    item: Tensor,
    offsets: Tensor,
    fusion_weights: Tensor,
    plan: Plan,
    fusion: int,
    weights_per: int,
    dtype: torch.dtype | None = None,
) -> None:
    checks.matrix(op, "user", user, None, *_only(dtype))
    checks.matrix(op, "item", item, None, *_only(dtype))
    checks.columns_sum(op, user, item, plan)
    checks.offsets(op, offsets, user.shape[0])
    checks.fusion(
        op, fusion_weights, fusion, weights_per, plan.tasks, item.shape[0], user.shape[0], dtype or torch.float32
    )


def _only(dtype: torch.dtype | None) -> tuple[torch.dtype, ...]:
    return () if dtype is None else (dtype,)


def _fake_pack_towers(weights: list[Tensor], plan: list[int]) -> Tensor:
    decoded = Plan.decode(plan)
    checks.weights("pack_towers", weights, decoded)
    return weights[0].new_empty((decoded.packed_bytes,), dtype=torch.uint8)


def _fake_dense_scores(
    x: Tensor, packed: Tensor, fusion_weights: Tensor, plan: list[int], fusion: int, weights_per: int
) -> tuple[Tensor, Tensor, Tensor]:
    decoded = Plan.decode(plan)
    _check_dense("dense_scores", x, None, fusion_weights, decoded, fusion, weights_per)
    checks.precision("dense_scores", decoded, packed)
    return empty_scores(x, x.shape[0], decoded.tasks)


def _fake_dense_topk(
    x: Tensor,
    offsets: Tensor,
    packed: Tensor,
    fusion_weights: Tensor,
    plan: list[int],
    fusion: int,
    weights_per: int,
    k: int,
) -> tuple[Tensor, Tensor]:
    decoded = Plan.decode(plan)
    _check_dense("dense_topk", x, offsets, fusion_weights, decoded, fusion, weights_per)
    checks.precision("dense_topk", decoded, packed)
    checks.positive("dense_topk", "k", k)
    return empty_topk(x, offsets.shape[0] - 1, k)


def _fake_request_scores(
    user: Tensor,
    item: Tensor,
    offsets: Tensor,
    packed: Tensor,
    fusion_weights: Tensor,
    plan: list[int],
    fusion: int,
    weights_per: int,
) -> tuple[Tensor, Tensor, Tensor]:
    decoded = Plan.decode(plan)
    _check_request("request_scores", user, item, offsets, fusion_weights, decoded, fusion, weights_per)
    checks.precision("request_scores", decoded, packed)
    return empty_scores(item, item.shape[0], decoded.tasks)


def _fake_request_topk(
    user: Tensor,
    item: Tensor,
    offsets: Tensor,
    packed: Tensor,
    fusion_weights: Tensor,
    plan: list[int],
    fusion: int,
    weights_per: int,
    k: int,
) -> tuple[Tensor, Tensor]:
    decoded = Plan.decode(plan)
    _check_request("request_topk", user, item, offsets, fusion_weights, decoded, fusion, weights_per)
    checks.precision("request_topk", decoded, packed)
    checks.positive("request_topk", "k", k)
    return empty_topk(item, user.shape[0], k)


_FORMS = catalog.FAKES | feature.FAKES | twin.FAKES | training.FAKES

for _name in (name for name in OP_SCHEMAS if name not in PLAN_OPS):  # those are asked, not traced
    torch.library.register_fake(f"resflow::{_name}", _FORMS.get(_name) or globals()[f"_fake_{_name}"])
    if _compiled and _name not in _FORMS:
        # Autocast would hand the op bfloat16 rows; it computes in float32. The other forms' tables are to be taken as
        # they are: autocast would copy them, whole, each call. Training rows are cast before autograd sees them.
        torch.library.register_autocast(f"resflow::{_name}", "cpu", torch.float32)
