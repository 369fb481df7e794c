"""The ops of the NumPy runtime behind tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from resflow_kernels.serving.library import compiled


class NumpyOps:
    """A namespace of ops, as ``torch.ops.resflow`` is one, of :mod:`resflow_kernels._runtime`.

    Tensors are handed over as arrays of the same memory; a call has as many threads as PyTorch has.
    """

    def __getattr__(self, name: str) -> Callable[..., Any]:
        op = getattr(compiled(), name)

        def call(*arguments: Any) -> Any:
            made = op(*tree_map_only(Tensor, _array, arguments), threads=torch.get_num_threads())
            return tree_map_only(np.ndarray, _tensor, made)

        return call


def _array(tensor: Tensor) -> np.ndarray[Any, Any]:
    """NumPy has no bfloat16: the runtime takes the bits."""
    return tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def _tensor(array: np.ndarray[Any, Any]) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.uint16 else tensor
