"""The typed tree of a filter, and its text.

A filter is true or false of an item; there is no third value. An attribute has a list of values, and a condition holds
when one of them meets it: none does where the item lacks the attribute.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

#: A number compares as a number, with the values that are numbers; a text compares as text, character by character.
Value: TypeAlias = str | float

Operator: TypeAlias = Literal["=", "<", "<=", ">", ">="]

#: What each operator does with two numbers, two texts or two arrays.
OPERATORS: Mapping[Operator, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True)
class Compare:
    """`name = value`, `name >= value`, …: one of the attribute's values compares so."""

    name: str
    operator: Operator
    value: Value


@dataclass(frozen=True)
class OneOf:
    """`name in [value, …]`: one of the attribute's values equals one of these."""

    name: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Contains:
    """`name contains "text"`: one of the attribute's values holds the text, upper and lower case being the same."""

    name: str
    text: str


@dataclass(frozen=True)
class Exists:
    """`name exists`: the attribute has a value."""

    name: str


@dataclass(frozen=True)
class Not:
    """`not part`."""

    part: Filter


@dataclass(frozen=True)
class AllOf:
    """`part and part and …`, two parts or more."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True)
class AnyOf:
    """`part or part or …`, two parts or more."""

    parts: tuple[Filter, ...]


Condition: TypeAlias = Compare | OneOf | Contains | Exists
Filter: TypeAlias = Condition | Not | AllOf | AnyOf


def names(filter_: Filter) -> frozenset[str]:
    """The attributes that a filter asks about."""
    return frozenset(condition.name for condition in conditions(filter_))


def conditions(filter_: Filter) -> Iterator[Condition]:
    """The conditions of a filter, in order."""
    match filter_:
        case Not(part):
            yield from conditions(part)
        case AllOf(parts) | AnyOf(parts):
            for part in parts:
                yield from conditions(part)
        case _:
            yield filter_


def to_text(filter_: Filter) -> str:
    """The filter in its own language: parsing that gives the same tree again."""
    match filter_:
        case Compare(name, comparison, value):
            return f"{_name(name)} {comparison} {_value(value)}"
        case OneOf(name, values):
            return f"{_name(name)} in [{', '.join(map(_value, values))}]"
        case Contains(name, text):
            return f"{_name(name)} contains {_value(text)}"
        case Exists(name):
            return f"{_name(name)} exists"
        case Not(part):
            return f"not {_in_parentheses(part)}"
        case AllOf(parts):
            return " and ".join(map(_in_parentheses, parts))
        case AnyOf(parts):
            return " or ".join(map(_in_parentheses, parts))


def _in_parentheses(part: Filter) -> str:
    text = to_text(part)
    return f"({text})" if isinstance(part, AllOf | AnyOf) else text


def _name(name: str) -> str:
    # Quoted always: no name is then taken for a keyword, whatever keywords there will be.
    return _value(name)


def _value(value: Value) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    # Whole numbers as people write them; all others as Python does, which loses nothing.
    return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
