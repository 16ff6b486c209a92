"""What an endpoint says is wrong, and what it says of lengths: each server words that in its own way."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_TOO_LONG = re.compile(
    r"context (?:length|size|window)|maximum input length|(?:prompt|input) is too (?:long|large)"
    r"|too many (?:input )?tokens",
    re.IGNORECASE,
)
_TOO_LONG_CODES = frozenset({"context_length_exceeded", "exceed_context_size_error"})
_LIMIT = re.compile(
    r"(?:maximum (?:context|input) length|context (?:size|window|length)) (?:is|of|=)?\s*(?:only )?\(?([\d,]+)",
    re.IGNORECASE,
)
_ACTUAL = re.compile(
    r"(?:prompt contains|your request has|(?:messages|prompt|input) (?:has|resulted in)|you passed)"
    r" ([\d,]+)(?: input)? tokens|\(([\d,]+) in (?:the messages|your prompt)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Told:
    """The error object of an answer; empty where there was none.

    Attributes:
        message: In one line, without the key. It may quote what was sent: it is kept, not logged.
        code: A code or a type, for instance "context_length_exceeded".
        parameter: The field of the request that it is about.
        numbers: Whatever else it has that is a whole number, for instance n_ctx.
    """

    message: str = ""
    code: str = ""
    parameter: str = ""
    numbers: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_too_long(self) -> bool:
        """Whether the request has more tokens than the model takes."""
        return self.code in _TOO_LONG_CODES or _TOO_LONG.search(self.message) is not None

    @property
    def limit_tokens(self) -> int:
        """The model's context in tokens; 0 where it is not told."""
        found = _LIMIT.search(self.message)
        return self.numbers.get("n_ctx", 0) or (_number(found.group(1)) if found else 0)

    @property
    def actual_tokens(self) -> int:
        """Tokens that were sent; 0 where they are not told, or where only "at least so many" is."""
        found = _ACTUAL.search(self.message)
        return self.numbers.get("n_prompt_tokens", 0) or (_number(found.group(1) or found.group(2)) if found else 0)


def _number(digits: str) -> int:
    return int(digits.replace(",", "") or 0)
