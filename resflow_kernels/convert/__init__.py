"""Converts other weights and models to :class:`resflow_kernels.ResFlow`. Needs torch."""

from .canonical import from_canonical, packed_program
from .fuse import CannotFuse, fuse
from .keras import from_keras
from .twin import FusedTwin, fuse_twin

__all__ = ["CannotFuse", "FusedTwin", "from_canonical", "from_keras", "fuse", "fuse_twin", "packed_program"]
