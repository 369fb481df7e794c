"""A user's own two-tower model as one that ranks: vectors of both sides by fused programs, a table of items, top-k."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from ..core.fusion import Fusion
from ..nn.twin_ranker import TwinRanker
from .arguments import SideArguments, TracedModel
from .fuse import fuse
from .graph.dots import Ending, read_endings
from .graph.sides import side_module
from .graph.split import Split
from .graph.trace import Traced
from .patterns import CannotFuse

__all__ = ["FusedTwin", "fuse_twin"]

_TOLERANCE = 1e-5  # of outputs, relative to the largest one where that is above 1


class FusedTwin(TwinRanker):
    """Two sides of a user's own model, made by :func:`fuse_twin`. They share the model's tensors.

    :meth:`user_vectors` and :meth:`item_vectors` take the arguments of the model that the side reads: one argument as
    it is, several as a tuple; of a dict its own keys are enough. They compute what the model does in eval mode.
    """

    def __init__(
        self,
        sides: tuple[nn.Module, nn.Module],
        arguments: tuple[SideArguments, SideArguments],
        tasks: Sequence[str],
        fusion: Fusion | None,
    ) -> None:
        super().__init__(tasks, (-1,) * len(tasks), False, False, fusion)
        self.user, self.item = sides
        self._arguments = arguments
        self.eval()

    def user_vectors(self, user: Any) -> Tensor:
        """``[R, K * W]`` of ``R`` users; whatever scales logits is in them."""
        vectors: Tensor = self.user(self._arguments[0].leaves(user))
        return vectors

    def item_vectors(self, item: Any) -> Tensor:
        """``[M, K * W]`` of ``M`` items."""
        vectors: Tensor = self.item(self._arguments[1].leaves(item))
        return vectors

    def _parts(self, items: Any, batch: int) -> Iterator[Any]:
        leaves = [one for one in pytree.tree_leaves(items) if isinstance(one, Tensor)]
        count = {len(one) if one.dim() else 0 for one in leaves}
        if len(count) != 1 or not self._arguments[1].plain:  # lists of ids: not one row for each item
            yield items
            return
        for start in range(0, max(1, *count), batch):
            part = slice(start, start + batch)
            yield pytree.tree_map(lambda one, part=part: one[part] if isinstance(one, Tensor) else one, items)


def fuse_twin(
    model: nn.Module,
    example_inputs: Any,
    tasks: Sequence[str] | None = None,
    fusion: Fusion | None = None,
    user: str | None = None,
) -> FusedTwin:
    """Both sides of a two-tower model as fused programs, with a table of items and top-k over it.

    The model's output is a dot product or a cosine of what it computes of the user's inputs alone and of the item's
    alone: by ``sum``, ``matmul``, ``einsum`` or ``cosine_similarity``, for pairs ``[B]``, for several items of a user
    ``[B, n]`` or for all pairs ``[B, B]``; times a temperature (a number or a parameter), plus biases of one side, and
    a sigmoid or softmax of it. The sides may have any layers and embedding tables; each goes through :func:`fuse`.
    Negatives of training are left out: the first of items joined by ``torch.cat`` is taken, and of several outputs
    those with the first one's inputs.

    Args:
        model: the two-tower model. Its outputs are one tensor, or a tuple or list of one for each task.
        example_inputs: its positional arguments as a tuple, or its one argument; a few rows will do.
        tasks: names of its outputs; by default ``task0``, ``task1``, ...
        fusion: how probabilities become a score; by default :class:`~resflow_kernels.Additive`.
        user: the name of an argument, or of a key of a dict, that the user's side reads; by default the user's side is
            the one with one vector for several items, or the first factor of the product.

    Returns:
        A :class:`FusedTwin` with ``user_vectors``, ``item_vectors``, ``build_table``, ``twin_topk`` and the other
        calls of :class:`~resflow_kernels.TwinTower`. Of one task, ``twin_topk`` ranks by the model's logits.

    Raises:
        CannotFuse: it is no two-tower model; the message names the part that both sides share, or what it ends in.

    Example:
        >>> class Model(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.user, self.items = nn.Linear(8, 4), nn.Embedding(100, 4)
        ...     def forward(self, user, item):
        ...         return torch.cosine_similarity(self.user(user), self.items(item)) / 0.05
        >>> twin = fuse_twin(Model(), (torch.randn(3, 8), torch.tensor([4, 5, 6])))
        >>> table = twin.build_table(torch.arange(100), "float32")
        >>> twin.twin_topk(torch.randn(2, 8), table, k=10).positions.shape
        torch.Size([2, 10])
    """
    opened = TracedModel.of(model, example_inputs)
    name, traced, tensors, names = opened.name, opened.traced, opened.tensors, opened.names
    outputs = [node for node in next(iter(traced.graph.find_nodes(op="output"))).args[0] if node is not None]
    if not outputs or not all(isinstance(node, fx.Node) for node in outputs):
        raise CannotFuse(f"{name}: its outputs are no tensors")
    reach = opened.reach()
    split = Split(name, traced, reach, names)
    endings = [ending for node in outputs for ending in read_endings(node)]
    split.find(endings, user)
    endings = split.of_the_item(endings)
    writers = split.write(endings)
    modules, arguments = [], []
    for writer in writers:
        module, leaves = side_module(traced, tensors, writer.joined())
        example = [traced.example[at] for at in leaves]
        modules.append(_fused(module, example))
        arguments.append(SideArguments(writer.side, traced.in_spec.children()[0], leaves, names))
    labels = [f"task{at}" for at in range(len(endings))] if tasks is None else list(tasks)
    if len(labels) != len(endings):
        raise ValueError(f"tasks must be one per output ({len(endings)}), got {len(labels)}")
    made = FusedTwin((modules[0], modules[1]), (arguments[0], arguments[1]), labels, fusion)
    _compare(name, made, traced, [(ending, reach.values[ending.logit]) for ending in endings])
    return made


def _fused(module: nn.Module, example: Sequence[Any]) -> nn.Module:
    """A side by programs, or as it is where nothing of it fuses (a look-up alone)."""
    try:
        return fuse(module, list(example))
    except CannotFuse:
        return module


def _compare(name: str, made: FusedTwin, traced: Traced, logits: Sequence[tuple[Ending, Tensor]]) -> None:
    """Refuse sides whose vectors do not give the model's own logits in its example."""
    with torch.no_grad():
        users, items = (
            module([traced.example[at] for at in own.chosen]).double().unflatten(1, (len(logits), -1))
            for module, own in zip((made.user, made.item), made._arguments, strict=True)
        )
    for task, (ending, own) in enumerate(logits):
        wanted = own.double().reshape(len(users), -1)
        if any(term.outer for term in ending.terms):
            got = users[:, task] @ items[:, task].T
            wanted = wanted if wanted.shape == got.shape else own.double().T
        else:
            per = len(items) // max(1, len(users))
            got = (users[:, None, task] * items[:, task].reshape(len(users), per, -1)).sum(2)
            wanted = wanted[:, :per]  # without the negatives
        gap = float((got - wanted).abs().max()) if got.numel() else 0.0
        if not gap <= _TOLERANCE * max(1.0, float(wanted.abs().max()) if wanted.numel() else 0.0):
            raise CannotFuse(f"{name}: its two sides give other logits than the model, by {gap:.2g}")
