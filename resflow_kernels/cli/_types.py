"""The values that ``resflow score`` passes from scoring to writing and reporting."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Ranked:
    """One request's best candidates, best first."""

    request: int
    positions: NDArray[np.int64]  # [k], position in the request
    scores: Floats  # [k]
    probs: Floats  # [k, K]


@dataclass
class Timing:
    """Seconds per request: of the scoring call alone, and including gathering and pooling of the embeddings."""

    scoring: list[float] = field(default_factory=list)
    total: list[float] = field(default_factory=list)
