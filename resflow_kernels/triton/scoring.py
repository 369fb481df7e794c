"""The forms on Triton kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..contract import FUSIONS
from .._results import empty_scores
from ..plan import Plan
from .configs import Config
from .launch import Launch, Sources, project_launch, score_launch

INTERPRETED = True
CONFIG = Config(16, 32, 4, 3)

def run(launch: Launch) -> None:
    launch.kernel[launch.grid](**launch.arguments, **launch.constants, **launch.options)

def dense_scores(x, packed, plan, fusion_weights, fusion=0, weights_per=0):
    out = empty_scores(x, x.shape[0], plan.tasks)
    if x.shape[0]:
        run(score_launch(Sources(x, 0, x.shape[0]), packed, plan, fusion_weights, fusion, weights_per, CONFIG, out, INTERPRETED))
    return out
