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

from .dense import (
    FeatureIds,
    FeatureTables,
    available,
    catalog_rows,
    catalog_scores,
    catalog_topk,
    cuda_status,
    dense_scores,
    dense_topk,
    feature_request_scores,
    feature_request_topk,
    feature_scores,
    feature_topk,
    library_status,
    one_id_each,
    pack_towers,
    reference_request_scores,
    reference_request_topk,
    reference_scores,
    reference_topk,
    request_scores,
    request_topk,
    training_logits,
    twin_ids_scores,
    twin_ids_topk,
    twin_rows,
    twin_scores,
    twin_topk,
    why_imprecise,
    why_unavailable,
    why_untrainable,
)

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
