"""Tensors that depend on parameters alone: expressions that are evaluated again when the parameters change."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class Const:
    """An expression over the model's tensors: a tensor by its place, a literal, or an ATen op of other expressions.

    It holds its value at the time the model was fused, which tells shapes, but is pickled without it.
    """

    __slots__ = ("args", "kwargs", "op", "value")

    def __init__(self, op: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], value: Tensor | None) -> None:
        self.op, self.args, self.kwargs, self.value = op, args, dict(kwargs), value

    @classmethod
    def tensor(cls, place: int, value: Tensor) -> Const:
        """The tensor at a place of the model's list."""
        return cls("tensor", (place,), {}, value)

    @classmethod
    def literal(cls, value: Tensor) -> Const:
        """A tensor that never changes."""
        return cls("literal", (value,), {}, value)

    @classmethod
    def of(cls, op: str, *args: Any, **kwargs: Any) -> Const:
        """An ATen op, by name and overload, of constants and plain numbers."""
        now = [_value(argument) for argument in args]
        with torch.no_grad():
            value = resolve(op)(*now, **{name: _value(argument) for name, argument in kwargs.items()})
        return cls(op, args, kwargs, value)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.now.shape)

    @property
    def now(self) -> Tensor:
        """The value when the model was fused."""
        assert self.value is not None
        return self.value

    def double(self) -> Const:
        return Const.of("to.dtype", self, torch.float64)

    def reshape(self, *shape: int) -> Const:
        return self if self.shape == shape else Const.of("reshape.default", self, list(shape))

    def expand(self, *shape: int) -> Const:
        return self if self.shape == shape else Const.of("expand.default", self, list(shape))

    def permute(self, *dims: int) -> Const:
        return self if dims == tuple(range(len(dims))) else Const.of("permute.default", self, list(dims))

    def part(self, dim: int, start: int, end: int) -> Const:
        whole = start == 0 and end == self.shape[dim]
        return self if whole else Const.of("slice.Tensor", self, dim, start, end)

    def __mul__(self, other: Const | float) -> Const:
        return Const.of("mul.Tensor", self, other)

    def __add__(self, other: Const | float) -> Const:
        return Const.of("add.Tensor", self, other)

    def __matmul__(self, other: Const) -> Const:
        return Const.of("matmul.default", self, other)

    def __getstate__(self) -> tuple[Any, ...]:
        return self.op, self.args, self.kwargs

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        (self.op, self.args, self.kwargs), self.value = state, None


def release(constants: Sequence[Const]) -> None:
    """Let go of the values of constants and of all that they are made of: aliases of the model's own memory."""
    todo: list[Any] = list(constants)
    while todo:
        one = todo.pop()
        if isinstance(one, (list, tuple)):
            todo += one
        elif isinstance(one, Const) and one.value is not None:
            one.value = None
            todo += [*one.args, *one.kwargs.values()]


def places_in(constants: Sequence[Const]) -> list[int]:
    """The places of all tensors that constants read."""
    places: set[int] = set()
    seen: set[int] = set()
    todo: list[Any] = list(constants)
    while todo:
        one = todo.pop()
        if isinstance(one, (list, tuple)):
            todo += one
        elif isinstance(one, Const) and id(one) not in seen:
            seen.add(id(one))
            if one.op == "tensor":
                places.add(one.args[0])
            else:
                todo += [*one.args, *one.kwargs.values()]
    return sorted(places)


def numbers(values: Sequence[float] | float, count: int | None = None) -> Const:
    """Literal float64 numbers ``[count]``."""
    tensor = torch.tensor(values, dtype=torch.float64)
    return Const.literal(tensor if count is None else tensor.expand(count).contiguous())


def resolve(op: str) -> Callable[..., Any]:
    """The ATen op of a name such as ``"mul.Tensor"``."""
    name, overload = op.split(".")
    return getattr(getattr(torch.ops.aten, name), overload)


def _value(argument: Any) -> Any:
    if isinstance(argument, Const):
        return argument.now
    if isinstance(argument, (list, tuple)):
        return [_value(one) for one in argument]
    return argument


class Evaluator:
    """Values of constants for one state of the model's tensors; each is computed once."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = tensors
        self._known: dict[int, Tensor] = {}

    def __call__(self, const: Const) -> Tensor:
        known = self._known.get(id(const))
        if known is None:
            known = self._known[id(const)] = self._compute(const)
        return known

    def _compute(self, const: Const) -> Tensor:
        if const.op == "tensor":
            return self.tensors[const.args[0]]
        if const.op == "literal":
            return const.args[0]
        args = [self._argument(argument) for argument in const.args]
        kwargs = {name: self._argument(argument) for name, argument in const.kwargs.items()}
        return resolve(const.op)(*args, **kwargs)

    def _argument(self, argument: Any) -> Any:
        if isinstance(argument, Const):
            return self(argument)
        if isinstance(argument, (list, tuple)):
            return [self._argument(one) for one in argument]
        return argument
