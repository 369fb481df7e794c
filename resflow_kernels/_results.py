"""The ops' results without their numbers: what fake kernels return."""

from __future__ import annotations

import torch
from torch import Tensor


def empty_scores(like: Tensor, candidates: int, tasks: int) -> tuple[Tensor, Tensor, Tensor]:
    """What a fake that scores returns."""
    both = (candidates, tasks)
    shapes = (both, both, (candidates,))
    logits, probs, score = (like.new_empty(shape, dtype=torch.float32) for shape in shapes)
    return logits, probs, score


def empty_topk(like: Tensor, requests: int, k: int) -> tuple[Tensor, Tensor]:
    """What a fake that ranks returns."""
    shape = (requests, k)
    return like.new_empty(shape, dtype=torch.float32), like.new_empty(shape, dtype=torch.int64)
