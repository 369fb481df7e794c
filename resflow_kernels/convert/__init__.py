"""Converts other weights and models to :class:`resflow_kernels.ResFlow`. Needs torch."""

from .canonical import from_canonical, packed_program
from .fuse import CannotFuse, fuse
from .keras import from_keras

__all__ = ["CannotFuse", "from_canonical", "from_keras", "fuse", "packed_program"]
