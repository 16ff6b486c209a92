"""An item: the value that goes to the catalogue and comes back from it."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Final, Literal, TypeAlias

from dmesr.rows import Problem


class KeepPicture(Enum):
    """The type of :data:`KEEP_PICTURE`."""

    KEEP_PICTURE = "keep"


#: As an item's picture: keep whatever picture the item has on the server.
KEEP_PICTURE: Final = KeepPicture.KEEP_PICTURE

Scalar: TypeAlias = str | int | float | bool
AttributeValue: TypeAlias = Scalar | Sequence[Scalar]
Picture: TypeAlias = Path | bytes | str | Literal[KeepPicture.KEEP_PICTURE] | Problem | None


@dataclass(frozen=True)
class Item:
    """An item of the catalogue.

    Attributes:
        item_id: The caller's own id, unique within the catalog.
        attributes: What is known about the item, in the order in which prompts tell it. Numbers travel as their
            decimal text; None and NaN mean that the item has no such attribute. After reading: name to list of text.
        picture: A `Path` or `bytes` is uploaded, if the server lacks it. Text is "sha256:HEX" of a picture on the
            server, or else a URI that the *server* reads. `KEEP_PICTURE` leaves the picture as it is; None takes it
            away. After reading: "sha256:HEX" or None. A reader that cannot take the picture puts the `Problem` in its
            place: the item goes on without one, and the problem stands among `UpsertSummary.picture_problems`.
        update_time: When the item last changed. Set by the server.
    """

    item_id: str
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    picture: Picture = None
    update_time: datetime | None = None

    @property
    def title(self) -> str:
        """The first value of "title" or else "name"; the id where the item has neither."""
        for name in ("title", "name"):
            values = attribute_texts(self.attributes.get(name))
            if values:
                return values[0]
        return self.item_id


def attribute_texts(value: object) -> list[str]:
    """The values of one attribute as text.

    Raises:
        TypeError: A value is neither text, number nor truth value.
    """
    if isinstance(value, str):
        return [value]
    if isinstance(value, Iterable) and not isinstance(value, Mapping | bytes | bytearray):
        return [text for element in value if (text := _text(element)) is not None]
    text = _text(value)
    return [] if text is None else [text]


def _text(value: object) -> str | None:
    if isinstance(value, str):
        return value
    if value is None:
        return None
    if isinstance(value, bool) or type(value).__name__ in ("bool", "bool_"):  # NumPy's, without importing it
        return "true" if value else "false"
    if isinstance(value, numbers.Real):
        return None if math.isnan(value) else str(value)
    raise TypeError(type(value).__name__)
