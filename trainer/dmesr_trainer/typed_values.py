"""Plain values, as TOML, JSON and flags give them, checked against the types of a dataclass."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any


def make(kind: type[Any], values: Mapping[str, Any], *, path: str = "") -> Any:
    """Makes a dataclass, and those within it, from plain values; what is left out has its default.

    Args:
        kind: The dataclass.
        values: By field.
        path: What stands before a field's name in messages, for instance "optimiser.".

    Raises:
        ValueError: A field is unknown or a value has another type.
    """
    return kind(**check_fields(kind, values, path=path))


def check_fields(kind: type[Any], values: Mapping[str, Any], *, path: str = "") -> dict[str, Any]:
    """These fields' values, in the types that the dataclass says.

    Raises:
        ValueError: A field is unknown or a value has another type.
    """
    known = {one.name for one in dataclasses.fields(kind)}
    for name in values:
        if name not in known:
            raise ValueError(f"unknown setting {path + name!r}; known there: {', '.join(sorted(known))}")
    kinds = typing.get_type_hints(kind)
    return {name: _check(value, kinds[name], path=path + name) for name, value in values.items()}


def _check(value: Any, kind: Any, *, path: str) -> Any:
    if dataclasses.is_dataclass(kind):
        if isinstance(value, Mapping):
            return make(typing.cast("type[Any]", kind), value, path=f"{path}.")
        fits = isinstance(value, typing.cast("type[Any]", kind))
        expected = "a table of settings"
    elif typing.get_origin(kind) is typing.Literal:
        choices = typing.get_args(kind)
        fits, expected = value in choices, "one of " + ", ".join(map(str, choices))
    elif isinstance(kind, types.UnionType):
        other = next(one for one in typing.get_args(kind) if one is not type(None))
        return None if value is None else _check(value, other, path=path)
    elif typing.get_origin(kind) is tuple:
        fits, expected = isinstance(value, list | tuple), "a list"
        if fits:
            return tuple(_check(one, typing.get_args(kind)[0], path=path) for one in value)
    elif kind is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        expected = "a number"
        if fits:
            return float(value)
    elif kind is int:
        fits, expected = isinstance(value, int) and not isinstance(value, bool), "a whole number"
    else:
        fits, expected = isinstance(value, kind), {bool: "true or false", str: "text"}[kind]
    if not fits:
        raise ValueError(f"{path} is {value!r}; it must be {expected}")
    return value
