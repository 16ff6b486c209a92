"""Checks of arguments before anything leaves the process, and lists cut to what one message may carry."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from dmesr.errors import InvalidInput

T = TypeVar("T")


def id_list(ids: Iterable[str], *, name: str, when_empty: str | None = None) -> list[str]:
    """The ids as a list.

    Args:
        ids: What the user gave.
        name: The argument's name, for the message.
        when_empty: What to say when there are none; None when none is fine. On the wire an empty list means "all",
            which is not what a caller with an empty list means.

    Raises:
        InvalidInput: One string instead of several, an id that is no string, or nothing at all.
    """
    if isinstance(ids, str):
        raise InvalidInput(f"{name} is one string, {ids!r}; expected several ids, for instance [{ids!r}]")
    checked = list(ids)
    for position, item_id in enumerate(checked):
        if not isinstance(item_id, str):
            raise InvalidInput(
                f"{name}[{position}] is {item_id!r} of type {type(item_id).__name__}; expected text, "
                f"for instance {str(item_id)!r}"
            )
    if not checked and when_empty is not None:
        raise InvalidInput(f"{name} is empty; {when_empty}")
    return checked


def one_id(item_id: str, *, name: str) -> str:
    """The id itself.

    Raises:
        InvalidInput: It is no string, or empty.
    """
    if not isinstance(item_id, str) or not item_id:
        raise InvalidInput(f"{name} is {item_id!r}; expected text that is not empty")
    return item_id


def positive(value: int, *, name: str) -> int:
    """The number itself.

    Raises:
        InvalidInput: It is below 1.
    """
    if value < 1:
        raise InvalidInput(f"{name} is {value}; expected 1 or more")
    return value


def cut(elements: Iterable[T], *, bytes_of: Callable[[T], int], max_count: int, max_bytes: int) -> Iterator[list[T]]:
    """Cuts elements, in order, into lists that one message may carry. One too large by itself stands alone."""
    piece: list[T] = []
    size = 0
    for element in elements:
        needed = bytes_of(element) + 8  # tag and length
        if piece and (len(piece) >= max_count or size + needed > max_bytes):
            yield piece
            piece, size = [], 0
        piece.append(element)
        size += needed
    if piece:
        yield piece


def utf8_bytes(text: str) -> int:
    """The length of a text on the wire."""
    return len(text.encode(errors="surrogatepass"))
