"""Builds dataclasses from sections of a TOML file; errors name the key or value, the expected and the actual one."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

Section = TypeVar("Section")

TOP = "the file"  # the name of the top level in errors

_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def build(cls: type[Section], data: object, where: str) -> Section:
    """Build a dataclass from a section, checking its values against the fields' types.

    Fields may be text, numbers, booleans, tuples of these, dataclasses, tuples of dataclasses, or alternatives. A
    dataclass with a field ``name`` may be given as that name alone, and a tuple of text as a single text.

    Raises:
        ValueError: an unknown key, or a value of the wrong type; the message starts with ``where``.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"{where} must be a section of keys and values, got {data!r}")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            raise ValueError(f"{where}: keys must be of {', '.join(fields)}, got {key!r}{near(key, fields)}")
    hints = typing.get_type_hints(cls)
    for name, field in fields.items():
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if needed and name not in data:
            raise ValueError(f"{inner(where, name)} must be {_expected(hints[name])}, got none")
    return cls(**{key: _value(hints[key], value, inner(where, key)) for key, value in data.items()})


def inner(where: str, key: str) -> str:
    """The name of a key: ``[data]`` at the top, ``[data] train`` in a section."""
    return f"{where} {key}" if where != TOP else f"[{key}]"


def near(word: object, known: Any) -> str:
    """`` (did you mean ...?)`` if a known word is similar, else an empty text."""
    close = difflib.get_close_matches(str(word), list(known), 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def one_of(where: str, value: object, known: Any) -> None:
    """Refuse a value that is not among the known ones."""
    if value not in known:
        raise ValueError(f"{where} must be one of {', '.join(known)}, got {value!r}{near(value, known)}")


def _value(hint: Any, value: object, where: str) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        options = [option for option in typing.get_args(hint) if option is not type(None)]
        fitting = [option for option in options if _fits(option, value)]
        if not fitting and len(options) > 1:
            raise ValueError(f"{where} must be {_expected(hint)}, got {value!r}")
        return _value((fitting or options)[0], value, where)
    if typing.get_origin(hint) is tuple:
        element = typing.get_args(hint)[0]
        if element is str and isinstance(value, str):
            return (value,)
        if not isinstance(value, list):
            raise ValueError(f"{where} must be {_expected(hint)}, got {value!r}")
        return tuple(_value(element, entry, f"{where}[{at}]") for at, entry in enumerate(value))
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), {"name": value} if isinstance(value, str) else value, where)
    if typing.get_origin(hint) is dict:
        if not _fits(hint, value):
            raise ValueError(f"{where} must be {_expected(hint)}, got {value!r}")
        return value
    if not _fits(hint, value):
        raise ValueError(f"{where} must be {_expected(hint)}, got {value!r}")
    return float(typing.cast(float, value)) if hint is float else value


def _fits(hint: Any, value: object) -> bool:
    if typing.get_origin(hint) is dict:
        return isinstance(value, Mapping) and all(isinstance(entry, str) for entry in value.values())
    if hint in (int, float):
        numbers = (int,) if hint is int else (int, float)
        return isinstance(value, numbers) and not isinstance(value, bool)
    return isinstance(value, hint) if isinstance(hint, type) else True


def _expected(hint: Any) -> str:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_expected(option) for option in typing.get_args(hint) if option is not type(None))
    if typing.get_origin(hint) is tuple:
        element = typing.get_args(hint)[0]
        return "a list of sections" if dataclasses.is_dataclass(element) else f"a list, each {_expected(element)}"
    if typing.get_origin(hint) is dict:
        return "a section of texts"
    return _WORDS.get(hint, "a section of keys and values")
