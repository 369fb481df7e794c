"""Training on Triton kernels: :func:`train_forward` and :func:`train_backward`, with the semantics of the ops."""

from .passes import train_backward, train_forward

__all__ = ["train_backward", "train_forward"]
