"""The fused ops: ``torch.ops.resflow.*`` with explicit arguments, and the registrations that let PyTorch trace them.

A scoring op is a form (where candidates come from) and an ending (``scores``: logits, probabilities and score of every
candidate; ``topk``: the k best per request):

====================  ===========================================================================================
``dense_...``         ``x [B, D]``, one row per candidate
``request_...``       one user row and many item rows per request; the user's part is computed once per request
``catalog_...``       one user row and many ids per request: rows of a table that ``catalog_rows`` makes
``feature_...``       ids of embedding tables, looked up and pooled in front of the dense form
``feature_request_..``  the same in front of the request form
``twin_...``          dot products of user vectors with all rows of a table that ``twin_rows`` makes
``twin_ids_...``      the same with a list of rows per request
====================  ===========================================================================================

``pack_towers`` makes the tensor of weights that the first five take; :func:`training_logits` returns a batch's logits,
which are differentiable.

Except for training these ops are for inference: a call whose input requires a gradient raises instead of losing it. The
raw ``torch.ops.resflow`` ops do not check that (an autograd kernel would slow every call), so prefer these functions or
the modules of :mod:`resflow_kernels.nn` where gradients may be involved. Under autocast, the dense and the request ops
convert rows to float32 on the CPU and accept them unchanged on a GPU. The first three forms take ``backend``, which
selects the kernels of the call (:mod:`resflow_kernels.ops.backends`).

On a GPU no values are read back: where the CPU raises for a value in a tensor (an id out of range, offsets that
decrease, weights packed for another plan), the affected candidates score NaN, unless ``RESFLOW_CHECK_IDS=1``.
"""

from . import fakes as _fakes  # noqa: F401  registers fakes, so that PyTorch can trace the ops
from .backends import unsupported_precision, unsupported_reason
from .catalog import catalog_rows, catalog_scores, catalog_topk
from .dense import dense_scores, dense_topk
from .feature import (
    FeatureIds,
    FeatureTables,
    feature_request_scores,
    feature_request_topk,
    feature_scores,
    feature_topk,
    one_id_each,
    pooling_codes,
)
from .library import cuda_status
from .library import status as library_status
from .pack import pack_towers
from .program import program_outputs
from .request import request_scores, request_topk
from .training import training_logits
from .twin import twin_ids_scores, twin_ids_topk, twin_rows, twin_scores, twin_topk

__all__ = [
    "FeatureIds",
    "FeatureTables",
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
    "pooling_codes",
    "program_outputs",
    "request_scores",
    "request_topk",
    "training_logits",
    "twin_ids_scores",
    "twin_ids_topk",
    "twin_rows",
    "twin_scores",
    "twin_topk",
    "unsupported_precision",
    "unsupported_reason",
]
