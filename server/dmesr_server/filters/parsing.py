"""The filter language: text → tree.

The grammar, in docs/filters.md as well:

    filter     = all { "or" all }
    all        = part { "and" part }
    part       = "not" part | "(" filter ")" | condition
    condition  = name ( comparison value
                      | "has" value
                      | "contains" text
                      | "in" "[" value { "," value } "]"
                      | "not" ( "has" value | "contains" text | "in" "[" … "]" )
                      | "exists" )
    comparison = "=" | "!=" | "<" | "<=" | ">" | ">="
    name       = word | text
    value      = number | text

One token of look-ahead decides everywhere, so each rule is a method and each error knows what could have come instead.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from dmesr_server.errors import ServiceError
from dmesr_server.filters.tree import AllOf, AnyOf, Compare, Contains, Exists, Filter, Not, OneOf, Operator, Value

MAX_CHARACTERS = 8_192
MAX_DEPTH = 32  # of parentheses and "not"s within each other

_Kind = Literal["number", "text", "word", "symbol", "other", "end"]
_TOKEN = re.compile(
    r"""
      \s+
    | (?P<number>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)(?![\w.])
    | (?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    | (?P<word>[^\W\d](?:[\w.-]*\w)?)
    | (?P<symbol><=|>=|!=|[=<>()\[\],])
    | (?P<unclosed>["'])
    | (?P<other>[\w.+-]+|.)
    """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}(?:\\u[dD][c-fC-F][0-9a-fA-F]{2})?|.)", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", '"': '"', "'": "'", "\\": "\\", "/": "/"}
_KEYWORDS = frozenset({"and", "or", "not", "has", "in", "contains", "exists"})
_COMPARISONS = ("=", "!=", "<", "<=", ">", ">=")
_SHOWN = 24  # characters of the filter in a message

_Part = TypeVar("_Part")


@dataclass(frozen=True)
class _Token:
    kind: _Kind
    text: str  # as it stands in the filter
    start: int

    @property
    def keyword(self) -> str:
        """The keyword or symbol that it is; empty for anything else."""
        if self.kind == "symbol":
            return self.text
        lowered = self.text.lower()
        return lowered if self.kind == "word" and lowered in _KEYWORDS else ""


def parse(text: str) -> Filter:
    """Reads a filter.

    Args:
        text: For instance `genres has "Comedy" and year >= 1990`.

    Raises:
        ServiceError: INVALID_FILTER; it tells the position and what could have stood there.
    """
    if len(text) > MAX_CHARACTERS:
        raise ServiceError(
            "INVALID_FILTER",
            f"the filter has {len(text)} characters, at most {MAX_CHARACTERS} are allowed; for a long list of items "
            "use the allow or deny list instead",
            expected=MAX_CHARACTERS,
            actual=len(text),
        )
    return _Parser(text).whole()


class _Parser:
    """One filter under way. The rules of the grammar are its methods."""

    def __init__(self, text: str):
        self._text = text
        self._depth = 0
        self._tokens = self._tokenise()
        self._next = next(self._tokens)

    def whole(self) -> Filter:
        found = self._any()
        if self._next.kind != "end":
            raise self._instead_of(["'and'", "'or'", "the end"])
        return found

    def _any(self) -> Filter:
        parts = self._repeated(self._all, "or")
        return parts[0] if len(parts) == 1 else AnyOf(parts)

    def _all(self) -> Filter:
        parts = self._repeated(self._part, "and")
        return parts[0] if len(parts) == 1 else AllOf(parts)

    def _part(self) -> Filter:
        if self._next.keyword not in ("not", "("):
            return self._condition()
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._wrong(f"parentheses and 'not' are nested deeper than {MAX_DEPTH}", self._next.start)
        found: Filter
        if self._taken("not"):
            found = Not(self._part())
        else:
            self._take("(")
            found = self._any()
            if not self._taken(")"):
                raise self._instead_of(["'and'", "'or'", "')'"])
        self._depth -= 1
        return found

    def _condition(self) -> Filter:
        name = self._name()
        if self._taken("exists"):
            return Exists(name)
        if self._next.keyword in _COMPARISONS:
            comparison = self._advance().text
            if comparison == "!=":
                return Not(Compare(name, "=", self._value()))
            # The token is one of the operators: the grammar and the type name the same ones.
            return Compare(name, _operator(comparison), self._value())
        if self._taken("not"):
            return Not(self._membership(name, ["'has'", "'contains'", "'in'"]))
        expected = ["a comparison (=, !=, <, <=, >, >=)", "'has'", "'contains'", "'in'", "'not in'", "'exists'"]
        return self._membership(name, expected)

    def _membership(self, name: str, expected: Sequence[str]) -> Filter:
        if self._taken("has"):
            return Compare(name, "=", self._value())
        if self._taken("contains"):
            if self._next.kind != "text":
                raise self._instead_of(['a text in quotes, for instance "love"'])
            return Contains(name, self._string(self._advance()))
        if self._taken("in"):
            self._take("[")
            values = self._repeated(self._value, ",")
            if not self._taken("]"):
                raise self._instead_of(["','", "']'"])
            return OneOf(name, values)
        raise self._instead_of(expected)

    def _name(self) -> str:
        if self._next.kind == "text":
            token = self._advance()
            name = self._string(token)
            if not name:
                raise self._wrong("an attribute has a name, this one is empty", token.start)
            return name
        if self._next.kind != "word" or self._next.keyword:
            raise self._instead_of(["the name of an attribute", "'not'", "'('"])
        return self._advance().text

    def _value(self) -> Value:
        if self._next.kind == "text":
            return self._string(self._advance())
        if self._next.kind != "number":
            raise self._instead_of(["a number", 'a text in quotes, for instance "USA"'])
        token = self._advance()
        number = float(token.text)
        if not math.isfinite(number):
            raise self._wrong(f"the number {token.text[:_SHOWN]} is out of range", token.start)
        return number

    def _string(self, token: _Token) -> str:
        def character(match: re.Match[str]) -> str:
            escape = match[1]
            if len(escape) > 1:
                units = bytes.fromhex(escape.replace("\\", "").replace("u", ""))
                try:
                    return units.decode("utf-16-be")
                except UnicodeDecodeError:
                    place = token.start + 1 + match.start()
                    raise self._wrong(f"{match[0]} is half of a character", place) from None
            if escape not in _ESCAPED:
                what = f"{match[0]!r:.12} is no escape; to write a backslash, double it"
                raise self._wrong(what, token.start + 1 + match.start())
            return _ESCAPED[escape]

        return _ESCAPE.sub(character, token.text[1:-1])

    def _repeated(self, rule: Callable[[], _Part], separator: str) -> tuple[_Part, ...]:
        found = [rule()]
        while self._taken(separator):
            found.append(rule())
        return tuple(found)

    def _taken(self, keyword: str) -> bool:
        if self._next.keyword != keyword:
            return False
        self._advance()
        return True

    def _take(self, keyword: str) -> None:
        if not self._taken(keyword):
            raise self._instead_of([f"'{keyword}'"])

    def _advance(self) -> _Token:
        token, self._next = self._next, next(self._tokens)
        return token

    def _tokenise(self) -> Iterator[_Token]:
        for found in _TOKEN.finditer(self._text):
            if found.lastgroup == "unclosed":
                raise self._wrong(f"the text that begins here has no closing {found[0]}", found.start())
            if found.lastgroup is not None:  # otherwise it is space
                kind: _Kind = found.lastgroup  # type: ignore[assignment]  # the groups are named after the kinds
                yield _Token(kind, found[0], found.start())
        while True:
            yield _Token("end", "", len(self._text))

    def _instead_of(self, expected: Sequence[str]) -> ServiceError:
        token = self._next
        actual = "the end" if token.kind == "end" else repr(token.text[:_SHOWN])
        wanted = " or ".join([", ".join(expected[:-1]), expected[-1]]) if len(expected) > 1 else expected[0]
        return self._wrong(f"expected {wanted}, got {actual}", token.start, expected=wanted, actual=actual)

    def _wrong(self, what: str, position: int, **metadata: Any) -> ServiceError:
        before = self._text[max(0, position - _SHOWN) : position]
        near = f", after {before!r}" if before else ""
        return ServiceError(
            "INVALID_FILTER",
            f"the filter cannot be read at character {position + 1}{near}: {what}",
            position=position,
            **metadata,
        )


def _operator(text: str) -> Operator:
    assert text in ("=", "<", "<=", ">", ">="), text
    return text  # type: ignore[return-value]  # narrowed by the line above
