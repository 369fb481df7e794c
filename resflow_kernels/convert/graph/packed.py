"""A fused model with its weights packed once and for all: what is exported, compiled and served."""

from __future__ import annotations

import copy
import re
from typing import Any

from torch import Tensor, nn

from ...nn import ResFlow
from .module import STATE, FusedState, is_fused
from .plan import FusedPlan
from .run import LookUp, runner
from .source import namespace


class PackedModel(nn.Module):
    """What a fused model computes in eval mode, from buffers: packed weights, and the tables and weights outside.

    It cannot be trained, does not look whether anything changed, and is traced by torch.export and torch.compile: the
    programs are ops of ``torch.ops.resflow`` in its graph. Arguments are those of the call that the model was fused
    with, in that form. AOTInductor takes it where no tables are looked up inside.
    """

    def __init__(self, plan: FusedPlan, tensors: list[Tensor], packed: list[Tensor]) -> None:
        super().__init__()
        self.plan = plan
        # Checks of a call's kind would be guards on sizes.
        lines = [line for line in plan.source.splitlines() if not line.endswith(": return OTHER")]
        self._source = "\n".join(line for line in lines if not line.lstrip().startswith("sizes = "))
        self._read = sorted({int(at) for at in re.findall(r"\bt\[(\d+)\]", self._source)})
        for at in self._read:
            self.register_buffer(f"tensor_{at}", tensors[at].detach().clone())
        for at, weights in enumerate(packed):
            self.register_buffer(f"packed_{at}", weights.clone())
        self._call: Any = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's outputs."""
        if self._call is None:
            self._call = self._compiled()
        tensors = {at: self.get_buffer(f"tensor_{at}") for at in self._read}
        packed = [self.get_buffer(f"packed_{at}") for at in range(len(self.plan.programs))]
        return self._call(args, kwargs, tensors, packed)

    def _compiled(self) -> Any:
        programs = self.plan.programs
        scope = namespace(self.plan.table, [LookUp(one) if one.tasks else runner(one) for one in programs])
        exec(compile(self._source, "<fused>", "exec"), scope)
        return scope["call"]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_call": None}


def packed(model: nn.Module) -> nn.Module:
    """A fused model for serving and export, with its weights as they are now.

    Args:
        model: what ``fuse`` returned, in whole or with fused modules inside.

    Raises:
        ValueError: nothing in it is fused.

    Example:
        >>> from resflow_kernels import fuse
        >>> rows = torch.randn(2, 8)
        >>> model = nn.Sequential(nn.Linear(8, 4), nn.Mish(), nn.Linear(4, 3), nn.Sigmoid()).eval()
        >>> served = fuse.packed(fuse(model, rows))
        >>> torch.equal(served(rows), fuse(model, rows)(rows))
        True
    """
    if is_fused(model):
        return _packed(model)
    made = copy.copy(model)
    made._modules = dict(model._modules)
    found = False
    for name, child in model.named_children():
        if is_fused(child) or any(map(is_fused, child.modules())):
            made._modules[name] = packed(child)
            found = True
        elif isinstance(child, ResFlow):  # in the place of plain towers
            made._modules[name] = child.packed()
            found = True
    if not found:
        raise ValueError(f"fuse.packed: model must be a fused one, got {type(model).__name__}")
    return made.eval()


def _packed(model: nn.Module) -> PackedModel:
    state: FusedState = model.__dict__[STATE]
    tensors, weights = state.current(model)
    return PackedModel(state.plan, tensors, weights).eval()
