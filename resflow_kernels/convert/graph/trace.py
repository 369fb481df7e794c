"""The graph of a model in eval mode, from ``torch.export``, with a dynamic batch where that can be."""

from __future__ import annotations

import inspect
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from ..patterns import CannotFuse
from .constants import Const
from .rows import shape_of, unify_batches


@dataclass
class Traced:
    """A model's graph without in-place ops, and what its placeholders are."""

    graph: fx.Graph
    tensors: list[str]  # names of the parameters and buffers that it reads
    constants: dict[fx.Node, Const]  # placeholders of those, and of tensors that were made while tracing
    inputs: list[fx.Node | None]  # placeholders of the call's leaves; None for one that is no tensor
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    example: list[Any]  # the call's leaves
    static_batch: int | None  # the one size that it was traced for
    guards: list[str]  # what sizes have to hold, as Python expressions of L, the forward's arguments by name


def inner_model(model: nn.Module) -> nn.Module:
    """The module that a compiled, data-parallel or distributed one wraps."""
    while True:
        compiled = getattr(model, "_orig_mod", None)
        if isinstance(compiled, nn.Module):
            model = compiled
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        else:
            return model


def trace(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Traced:
    """The graph of ``model(*args, **kwargs)``.

    Raises:
        CannotFuse: torch.export cannot trace the model; the message holds its first line.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise CannotFuse(f"{type(model).__name__}: it is TorchScript; fuse the model that it was made from")
    with _quiet(), in_eval_mode(model), torch.no_grad(), torch.inference_mode(False), _out_of_inference_mode(model):
        args, kwargs = _with_two_rows(*_distinct(args, kwargs))
        return _read(model, _exported(model, args, kwargs), args, kwargs)


def _exported(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.export.ExportedProgram:
    first: Exception | None = None
    for shapes in (_all_but_last, _first, None):
        dynamic = None if shapes is None else _specs(model, args, kwargs, shapes)
        try:
            return torch.export.export(model, args, dict(kwargs), dynamic_shapes=dynamic, strict=False)
        except Exception as error:
            first = first or error
    assert first is not None
    text = next((line for line in str(first).splitlines() if line.strip()), type(first).__name__)
    raise CannotFuse(f"{type(model).__name__}: torch.export cannot trace it: {text.strip()[:300]}") from first


def _specs(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], shapes: Any) -> Any:
    """dynamic_shapes of a call, by the names of the forward's parameters where keywords are used."""
    if not kwargs:
        return tuple(_spec(one, shapes) for one in args)
    bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    return {name: _spec(value, shapes) for name, value in bound.items()}


def _spec(value: Any, shapes: Any) -> Any:
    if isinstance(value, Tensor):
        return shapes(value)
    if isinstance(value, Mapping):
        return {key: _spec(one, shapes) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        made = [_spec(one, shapes) for one in value]
        return made if isinstance(value, list) else tuple(made)
    leaves = pytree.tree_leaves(value)
    return [_spec(leaf, shapes) for leaf in leaves] if leaves and leaves[0] is not value else None


def _first(tensor: Tensor) -> dict[int, Any] | None:
    return {0: Dim.AUTO} if tensor.dim() else None


def _all_but_last(tensor: Tensor) -> dict[int, Any] | None:
    """Padded requests ``[R, N, D]`` are rows in two dimensions."""
    leading = tensor.dim() - 1 if tensor.dim() > 2 and tensor.is_floating_point() else min(1, tensor.dim())
    return dict.fromkeys(range(leading), Dim.AUTO) or None


def _distinct(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """A call with a copy of each tensor that it holds again, which torch.export takes for one argument, and of those of
    inference mode, which it does not take."""
    seen: set[int] = set()

    def own(leaf: Any) -> Any:
        again = id(leaf) in seen
        seen.add(id(leaf))
        return leaf.clone() if isinstance(leaf, Tensor) and (again or leaf.is_inference()) else leaf

    leaves, spec = pytree.tree_flatten((args, dict(kwargs)))
    made = pytree.tree_unflatten([own(leaf) for leaf in leaves], spec)
    return made[0], made[1]


def _with_two_rows(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """An example of one candidate twice: torch.export takes a size of 1 for one that never changes."""
    leaves, spec = pytree.tree_flatten((args, dict(kwargs)))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if not tensors or any(one.dim() == 0 or one.shape[0] != 1 for one in tensors):
        return args, kwargs
    made = pytree.tree_unflatten(
        [torch.cat([leaf, leaf]) if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec
    )
    return made[0], made[1]


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """The model in eval mode for a while, every module in its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _out_of_inference_mode(model: nn.Module) -> Iterator[None]:
    """The model with copies of its tensors of inference mode, which torch.export does not take, for a while."""
    places: list[dict[str, Any]] = [own for module in model.modules() for own in (module._parameters, module._buffers)]
    kept = [(place, name, one) for place in places for name, one in place.items() if one is not None]
    copies = {id(one): _copy(one) for _, _, one in kept if one.is_inference()}
    for place, name, one in kept:
        place[name] = copies.get(id(one), one)
    try:
        yield
    finally:
        for place, name, one in kept:
            place[name] = one


def _copy(tensor: Tensor) -> Tensor:
    made = tensor.clone()
    return nn.Parameter(made, requires_grad=False) if isinstance(tensor, nn.Parameter) else made


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch.export's own remarks, which are about its inner workings."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _read(
    model: nn.Module, exported: torch.export.ExportedProgram, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Traced:
    if not _functional(exported.graph):
        exported = exported.run_decompositions({})
    signature = exported.graph_signature
    if signature.buffers_to_mutate or signature.user_inputs_to_mutate:
        written = [*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()]
        raise CannotFuse(f"{type(model).__name__}: its forward writes into {', '.join(written)} in eval mode")
    live = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    tensors: list[str] = []
    constants: dict[fx.Node, Const] = {}
    inputs: list[fx.Node | None] = []
    for node, spec in zip(exported.graph.find_nodes(op="placeholder"), signature.input_specs, strict=True):
        if node.name in names and names[node.name] in live:
            constants[node] = Const.tensor(len(tensors), live[names[node.name]].detach())
            tensors.append(names[node.name])
        elif spec.kind == torch.export.graph_signature.InputKind.USER_INPUT:
            inputs.append(node if isinstance(node.meta.get("val"), Tensor) else None)
        elif isinstance(exported.constants.get(str(spec.target)), Tensor):
            constants[node] = Const.literal(exported.constants[str(spec.target)].detach())
        else:
            raise CannotFuse(f"{type(model).__name__}: its graph holds {spec.target}, which is no tensor")
    leaves, in_spec = pytree.tree_flatten((args, dict(kwargs)))
    call = exported.module_call_graph[0].signature
    assert call is not None
    if len(leaves) != len(inputs):
        raise CannotFuse(f"{type(model).__name__}: torch.export took {len(inputs)} inputs of {len(leaves)}")
    graph = exported.graph
    _drop_checks(graph)
    unify_batches(graph)
    return Traced(
        graph,
        tensors,
        constants,
        inputs,
        in_spec,
        call.out_spec,
        leaves,
        _static_batch(inputs, leaves),
        _guards(exported),
    )


def _static_batch(inputs: Sequence[fx.Node | None], leaves: Sequence[Any]) -> int | None:
    """The batch size, if no dimension stayed dynamic."""
    shapes = [shape_of(node) for node in inputs if node is not None]
    if any(isinstance(size, str) for shape in shapes if shape for size in shape):
        return None
    sizes = [int(leaf.shape[0]) for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()]
    return max(sizes, default=None)


def _guards(exported: torch.export.ExportedProgram) -> list[str]:
    """What torch.export assumed of sizes; that they are not 1, which it always assumes, is tried out instead."""
    found = dict.fromkeys(getattr(exported, "_guards_code", None) or ())
    return [guard for guard in found if not re.search(r"(!= [01]|>= 2|> [01])$", guard)]


_CHECKS = (
    "_assert_tensor_metadata",
    "_assert_scalar",
    "_assert_async",
    "sym_constrain_range",
    "sym_constrain_range_for_size",
)


def _drop_checks(graph: fx.Graph) -> None:
    """Remove what export leaves to check sizes and dtypes; the fused module checks its inputs itself."""
    for node in reversed(graph.nodes):
        target = node.target
        if isinstance(target, torch._ops.OpOverload) and target._opname in _CHECKS and not node.users:
            graph.erase_node(node)
    graph.eliminate_dead_code()


# In-place ops

_MAY_ALIAS = (
    "to",
    "contiguous",
    "reshape",
    "flatten",
    "dropout",
    "expand_as",
    "view_as",
    "type_as",
    "squeeze",
    "split",
)


def _functional(graph: fx.Graph) -> bool:
    """Make in-place ops functional where nobody else sees what they write; ``False`` if somebody does."""
    order = {node: at for at, node in enumerate(graph.nodes)}
    owner: dict[fx.Node, fx.Node] = {}
    group: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        owner[node] = owner[source] if source is not None and _may_alias(node) else node
        group.setdefault(owner[node], []).append(node)
    changes: list[tuple[fx.Node, torch._ops.OpOverload]] = []
    for node in graph.nodes:
        target = node.target
        if not isinstance(target, torch._ops.OpOverload) or not target._schema.is_mutable:
            continue
        source = node.args[0]
        functional = _functional_twin(target)
        if functional is None or not isinstance(source, fx.Node) or owner[source].op == "placeholder":
            return False
        seen = (user for one in group[owner[source]] for user in one.users if user is not node)
        if any(order[user] > order[node] for user in seen):
            return False
        changes.append((node, functional))
    for node, functional in changes:
        node.target = functional
    return True


def _may_alias(node: fx.Node) -> bool:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return True  # an element of a list of views
    if target._schema.is_mutable:
        return False
    return target._opname in _MAY_ALIAS or any(one.alias_info is not None for one in target._schema.returns)


def _functional_twin(target: torch._ops.OpOverload) -> torch._ops.OpOverload | None:
    packet = getattr(torch.ops.aten, target._opname.removesuffix("_"), None)
    if packet is None or not target._opname.endswith("_"):
        return None
    return getattr(packet, target._overloadname, None)
