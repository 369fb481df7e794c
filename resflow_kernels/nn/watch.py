"""Detects changes of a module since the last call without walking it again.

A module tree is a set of dictionaries that PyTorch changes in place: children, parameters, buffers, hooks. Collected
once, they are compared by identity on every call (:class:`Watch`). What its tensors hold is compared without reading
them (:class:`Contents`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..ops import library

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Watch:
    """The dictionaries of a module and its descendants, as they were when this object was made.

    A call touches as little memory as it can, because the weights that were used in between have evicted it from the
    caches: of hooks only PyTorch's count of all that were ever registered.
    """

    def __init__(self, module: nn.Module) -> None:
        modules = list(module.modules())
        entries: Iterator[dict[str, Any]] = (
            held for one in modules for held in (one._modules, one._parameters, one._buffers)
        )
        self._entries = [held for held in entries if held]
        self._held: list[Any] = list(chain.from_iterable(map(dict.values, self._entries)))
        # A forward of its own is an attribute more.
        self._sized = [one.__dict__ for one in modules if one is not module]
        hooks = [getattr(one, hooks) for one in modules if one is not module for hooks in HOOKS]
        self._sized += [registered for registered in hooks if registered]
        self._sizes = list(map(len, self._sized))
        self._unhooked = [registered for registered in hooks if not registered]
        self._registered = RemovableHandle.next_id

    def unchanged(self) -> bool:
        """Whether no module, parameter, buffer, hook or attribute was added, removed or replaced."""
        if RemovableHandle.next_id != self._registered:
            self._registered = RemovableHandle.next_id
            if any(self._unhooked):
                self._held.append(None)  # so that the answer stays the same
        return same_entries(self._entries, self._held) and same_sizes(self._sized, self._sizes)

    @property
    def tensors(self) -> list[Tensor]:
        """The parameters and buffers, each once."""
        return list({id(one): one for one in self._held if isinstance(one, Tensor)}.values())


class Contents:
    """What tensors held when this object was made, and whether they still hold it.

    A tensor of the CPU is cloned lazily: PyTorch copies the memory that both share when one of them is about to be
    written, under whatever name: through ``.data``, a view, by an optimizer, in inference mode. The clone keeps the old
    memory, so a tensor that was written, or was given other memory, has another address. Memory that others than
    PyTorch may write (an array of NumPy's, a mapped file, shared memory) is compared with a copy on every call, and so
    is a tensor that was twice moved in vain, by ops that ask for memory to write and only read it. On other devices a
    tensor is known by its address and its version counter, which misses writes through ``.data``.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = [one for one in tensors if one.is_cpu]
        self._others = [one for one in tensors if not one.is_cpu]
        self._other_state = self._state_of_others()
        self._in_vain: dict[int, int] = {}  # how often a tensor had another address and the same bits, by its place
        self._hold()

    def unchanged(self) -> bool:
        """Whether every tensor holds the bits that it held."""
        watched = self._watched
        if watched is not None and not watched.unchanged() and not self._only_moved():
            return False
        if self._sharing and not all(_shared(self._sharing)):
            self._hold()  # who shared the memory is gone
        if not self._others:
            return True
        state = self._state_of_others()
        return state is not None and state == self._other_state

    def _only_moved(self) -> bool:
        """Whether the tensors hold the same bits all the same; then they are held anew."""
        pairs = [*zip(self._lazy, self._clones, strict=True), *zip(self._copied, self._copies, strict=True)]
        if not all(_alike(now, before) for now, before in pairs):
            return False
        moved = {id(one) for one in self._lazy if not torch._C._is_cow_tensor(one)}  # type: ignore[attr-defined]
        for at, tensor in enumerate(self._tensors):
            if id(tensor) in moved:
                self._in_vain[at] = self._in_vain.get(at, 0) + 1
        self._hold()
        return True

    def _hold(self) -> None:
        lazy: list[Tensor] = []
        clones: list[Tensor] = []
        copied: list[Tensor] = []
        copies: list[Tensor] = []
        sharing: list[Tensor] = []
        with torch.inference_mode(False), torch.no_grad():
            for at, (tensor, shared) in enumerate(zip(self._tensors, _shared(self._tensors), strict=True)):
                clone = None if shared or self._in_vain.get(at, 0) > 1 else _lazy_clone(tensor)
                if clone is not None:
                    lazy.append(tensor)
                    clones.append(clone)
                    continue
                copied.append(tensor)
                copies.append(tensor.detach().clone())
                if shared:
                    sharing.append(tensor)
            self._watched = _Watched(lazy, clones, copied, copies) if self._tensors else None
        self._lazy, self._clones = lazy, clones
        self._copied, self._copies, self._sharing = copied, copies, sharing

    def _state_of_others(self) -> list[Any] | None:
        if any(one.is_inference() for one in self._others):  # they count no versions
            return None
        return [(one._version, one.data_ptr()) for one in self._others]


class _Watched:
    """Tensors that C++ compares: with their addresses, or with copies."""

    def __init__(self, tensors: list[Tensor], clones: list[Tensor], copied: list[Tensor], copies: list[Tensor]) -> None:
        self._old_memory = (clones, copies)
        self._own, function = library.namespace.watch(tensors, copied, copies)
        self._argument = ctypes.c_void_p(self._own)
        self._unchanged = _function(function)

    def unchanged(self) -> bool:
        unchanged: bool = self._unchanged(self._argument)
        return unchanged

    def __del__(self) -> None:
        if hasattr(self, "_own") and library is not None:  # at the end of the process it may be gone
            library.namespace.forget(self._own)


def why_altered(module: nn.Module) -> str | None:
    """Why an op that reads a module's parameters does not compute what it does: hooks, or a forward of its own."""
    name = type(module).__name__
    if any(getattr(module, hooks) for hooks in HOOKS):
        return f"its {name} has hooks"
    return f"its {name} has a forward of its own" if "forward" in module.__dict__ else None


def _same_entries(dictionaries: list[dict[str, Any]], held: list[Any]) -> bool:
    now = list(chain.from_iterable(map(dict.values, dictionaries)))
    return len(now) == len(held) and all(map(is_, now, held))


def _same_sizes(dictionaries: list[dict[Any, Any]], sizes: list[int]) -> bool:
    return list(map(len, dictionaries)) == sizes


try:
    from .._runtime import same_entries, same_sizes
except ImportError:  # built without the NumPy runtime: the same, slower
    same_entries, same_sizes = _same_entries, _same_sizes


def _lazy_clone(tensor: Tensor) -> Tensor | None:
    """A clone that shares memory until either is written; ``None`` if PyTorch makes none of such memory."""
    try:
        clone: Tensor = torch._lazy_clone(tensor.detach())
    except (AttributeError, RuntimeError):
        return None
    return clone


def _shared(tensors: Sequence[Tensor]) -> list[bool]:
    """Whether others than these tensors use the same memory, who may hold its address."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    own: dict[int, int] = {}
    for storage in storages:
        own[storage._cdata] = own.get(storage._cdata, 0) + 1
    # Of each use, one is the tensor's own and one may be that of its Python object.
    return [torch._C._storage_Use_Count(one._cdata) > own[one._cdata] + 1 for one in storages]


def _alike(now: Tensor, before: Tensor) -> bool:
    """Whether two tensors are the same numbers, stored the same way."""
    stored = (now.dtype, now.device, now.shape, now.stride())
    return stored == (before.dtype, before.device, before.shape, before.stride()) and torch.equal(now, before)


def _function(address: int) -> Any:
    if address not in _functions:  # PYFUNCTYPE keeps the interpreter's lock, which protects the tensors' addresses
        _functions[address] = ctypes.PYFUNCTYPE(ctypes.c_bool, ctypes.c_void_p)(address)
    return _functions[address]


_functions: dict[int, Any] = {}
