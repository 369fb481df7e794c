"""A user's model whose forward runs programs in eval mode, and is the user's own everywhere else."""

from __future__ import annotations

import copyreg
import inspect
import warnings
from collections.abc import Iterator, Mapping
from functools import wraps
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ...nn.watch import Contents, Watch
from .constants import Evaluator, places_in
from .plan import FusedPlan
from .run import LookUp, pack, runner
from .source import Other, namespace

STATE = "_resflow_fused"
_MOST_SIZES = 65536
# Hooks by which PyTorch computes a weight before each call; the graph holds what they do.
_KNOWN_HOOKS = ("WeightNorm", "SpectralNorm")


def fused_copy(model: nn.Module, plan: FusedPlan) -> nn.Module:
    """A shallow copy of a model, of a class derived from its own, that runs a plan. It shares the model's tensors."""
    made = object.__new__(_fused_class(type(model)))
    made.__dict__.update(model.__dict__)
    for name in ("_parameters", "_buffers", "_modules"):
        made.__dict__[name] = dict(model.__dict__[name])
    made.__dict__[STATE] = FusedState(plan)
    return made


class FusedState:
    """A plan bound to a model's tensors: packed weights, and what tells that they are out of date."""

    def __init__(self, plan: FusedPlan, least: int = 1) -> None:
        self.plan, self.least = plan, least
        self._forget()

    def _forget(self) -> None:
        self._call: Any = None
        self._known: set[tuple[int, ...]] = set()
        self._watch: Watch | None = None
        self._contents: Contents | None = None

    def forget_weights(self) -> None:
        """Pack again at the next call."""
        self._contents = None

    def refuse_one_row(self) -> None:
        """Leave calls of a single candidate to the model's own forward."""
        self.least = 2
        self._known.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {"plan": self.plan, "least": self.least}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The fused result; ``Other`` where the user's own forward is to run."""
        if torch.compiler.is_compiling() or torch._C._get_tracing_state() or torch._C._is_any_autocast_enabled():
            return Other
        watch, contents = self._watch, self._contents
        if watch is None or not watch.unchanged():
            self._bind(model)
            contents = None
        tensors = self._tensors
        if torch.is_grad_enabled() and _needs_gradient(tensors, args, kwargs):
            return Other
        if (contents is None or not contents.unchanged()) and not self._pack():
            return Other
        if len(args) != self._positional or kwargs.keys() != self._keywords:
            bound = self._bound(args, kwargs)
            if bound is None:
                return Other
            args, kwargs = bound
        return self._call(args, kwargs, tensors, self._packed)

    # The state of the model

    def current(self, model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        """The tensors that the plan reads, and the programs' packed weights.

        Raises:
            ValueError: the model is none that the plan was made for.
        """
        self._bind(model)
        if not self._pack():
            raise ValueError("fuse.packed: model must be as it was when it was fused; fuse it again")
        return self._tensors, self._packed

    def _bind(self, model: nn.Module) -> None:
        """Look at the model's modules, and take the plan's tensors from them."""
        if self._call is None:
            self._compile(model)
        self._contents = None
        self._watch = Watch(model)
        self._tensors = [_tensor(model, name) for name in self.plan.tensors]
        hooks = [kind for one in list(model.modules())[1:] for kind in (one._forward_hooks, one._forward_pre_hooks)]
        self._has_hooks = any(kind and not _all_known(kind) for kind in hooks)

    def _compile(self, model: nn.Module) -> None:
        self._positional, names = self.plan.arguments
        self._keywords = set(names)
        self._signature = inspect.signature(_own_class(model).forward)
        self._read = places_in([*chain.from_iterable(self.plan.weights), *(const for const, _ in self.plan.structure)])
        scope = namespace(
            self.plan.table, [LookUp(program) if program.tasks else runner(program) for program in self.plan.programs]
        )
        scope |= {"known": self._known, "allowed": self._allowed}
        exec(compile(self.plan.source, "<fused>", "exec"), scope)
        self._call = scope["call"]

    def _pack(self) -> bool:
        """Pack the weights of the model as it is now; ``False``: it is none that the plan was made for."""
        tensors = self._tensors
        if self._has_hooks:
            return _decline("a module inside has a forward hook")
        if any(tensor.device.type != "cpu" for tensor in tensors):
            return _decline("tile programs run on the CPU")
        floats = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
        if floats - {self.plan.dtype}:
            return _decline(
                f"it was fused in {_short(self.plan.dtype)} and is in {', '.join(map(_short, floats))}; fuse it again"
            )
        # Before they are read: what is written meanwhile is seen by the next call.
        contents = Contents([tensors[at] for at in self._read])
        with torch.inference_mode(False), torch.no_grad():
            value = Evaluator([tensor.detach() for tensor in tensors])
            if any(not torch.equal(value(const), was) for const, was in self.plan.structure):
                return _decline("a buffer that says which columns are read has changed; fuse it again")
            pairs = zip(self.plan.weights, self.plan.programs, strict=True)
            self._packed = [pack([value(const) for const in weights], program) for weights, program in pairs]
        self._contents = contents
        return True

    def _allowed(self, sizes: tuple[int, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether the graph holds for sizes that no call had so far."""
        if min(sizes) < self.least:
            return False
        if self.plan.guards:
            given = self._signature.bind(None, *args, **kwargs).arguments
            try:
                if not all(eval(guard, {"L": given}) for guard in self.plan.guards):
                    return False
            except Exception:  # an argument without what the guard asks of it
                return False
        if len(self._known) > _MOST_SIZES:
            self._known.clear()
        self._known.add(sizes)
        return True

    def _bound(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """A call's arguments in the form of the one that was traced."""
        try:
            given = self._signature.bind(None, *args, **kwargs).arguments
        except TypeError:
            return None
        given.pop(next(iter(self._signature.parameters)))
        if any(
            isinstance(value, dict) and name not in self._keywords for name, value in given.items() if name == "kwargs"
        ):
            return None
        names = list(given)
        made = tuple(given[name] for name in names[: self._positional])
        rest = {name: given[name] for name in names[self._positional :]}
        return (made, rest) if rest.keys() == self._keywords and len(made) == self._positional else None


class FusedForward:
    """What a fused model's class has before the user's own class."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        made = super().__reduce_ex__(protocol)
        if isinstance(made, tuple) and made[0] is copyreg.__newobj__:  # type: ignore[attr-defined]
            return (_rebuilt, (type(self).__mro__[2],), *made[2:])
        return made


_classes: dict[type[nn.Module], type[nn.Module]] = {}


def _fused_class(base: type[nn.Module]) -> type[nn.Module]:
    if base not in _classes:
        _classes[base] = _make_class(base)
    return _classes[base]


def _make_class(base: type[nn.Module]) -> type[nn.Module]:
    own = base.forward

    @wraps(own)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not self.training:
            made = self.__dict__[STATE](self, args, kwargs)
            if made is not Other:
                return made
        return own(self, *args, **kwargs)

    def train(self: nn.Module, mode: bool = True) -> nn.Module:
        self.__dict__[STATE].forget_weights()  # training writes in place, which would copy what the watch shares
        return base.train(self, mode)

    names = {"forward": forward, "train": train, "__module__": base.__module__, "__qualname__": base.__qualname__}
    return type(base.__name__, (FusedForward, base), names)


def _rebuilt(base: type[nn.Module]) -> nn.Module:
    """An empty fused model, for pickle and copy."""
    return object.__new__(_fused_class(base))


def is_fused(model: nn.Module) -> bool:
    return isinstance(model, FusedForward)


def _own_class(model: nn.Module) -> type[nn.Module]:
    own: type[nn.Module] = type(model).__mro__[2]
    return own


def unfused(model: nn.Module) -> nn.Module:
    """The user's own model of a fused one; its tensors and modules are shared."""
    if not is_fused(model):
        return model
    made: nn.Module = object.__new__(_own_class(model))
    made.__dict__.update({name: value for name, value in model.__dict__.items() if name != STATE})
    return made


def _tensor(model: nn.Module, name: str) -> Tensor:
    path, _, own = name.rpartition(".")
    module = model.get_submodule(path)
    tensor = (module._parameters if own in module._parameters else module._buffers)[own]
    assert tensor is not None
    return tensor


def _all_known(hooks: Mapping[int, Any]) -> bool:
    return bool(hooks) and all(type(hook).__name__ in _KNOWN_HOOKS for hook in hooks.values())


def _needs_gradient(tensors: list[Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    return any(tensor.requires_grad for tensor in chain(tensors, _tensors_in((*args, *kwargs.values()))))


def _tensors_in(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors_in(value)
        elif isinstance(value, dict):
            yield from _tensors_in(value.values())


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


_warned: set[str] = set()


def _decline(reason: str) -> bool:
    if reason not in _warned:
        _warned.add(reason)
        warnings.warn(f"a fused model runs its own forward: {reason}", stacklevel=5)
    return False
