"""The `pictures` table: the bytes, once for each content, apart from the items so that neither rewrites the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from .database import Database
from .schemas import key_field
from .tables import Table

NAME = "pictures"
_SCHEMA = pa.schema(
    [
        key_field("sha256"),
        pa.field("data", pa.large_binary(), nullable=False),
        pa.field("media_type", pa.string(), nullable=False),
        pa.field("width_px", pa.int32(), nullable=False),
        pa.field("height_px", pa.int32(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Picture:
    """A stored picture.

    Attributes:
        sha256: Hex hash of the bytes.
        data: The file as it was uploaded.
        media_type: For instance "image/jpeg".
        width_px: Width.
        height_px: Height.
    """

    sha256: str
    data: bytes
    media_type: str
    width_px: int
    height_px: int


class PictureTable:
    """The pictures of one catalog. Safe for any thread."""

    def __init__(self, *, database: Database):
        self._table = Table(database=database, name=NAME, schema=_SCHEMA, indexed=["sha256"])

    def missing(self, sha256s: Sequence[str]) -> list[str]:
        """Those of the hashes that are not there, in the order given, each once."""
        asked = list(dict.fromkeys(sha256s))
        there = set(self._table.select_in(["sha256"], column="sha256", values=asked)["sha256"].to_pylist())
        return [sha256 for sha256 in asked if sha256 not in there]

    def put(self, sha256: str, data: bytes, media_type: str, width_px: int, height_px: int) -> bool:
        """Stores a picture.

        Returns:
            False when it was there already; nothing is written then.

        Raises:
            ServiceError: STORE_FULL or STORE_UNAVAILABLE; nothing was written.
        """
        return self.put_many([Picture(sha256, data, media_type, width_px, height_px)]) == [True]

    def put_many(self, pictures: Sequence[Picture]) -> list[bool]:
        """Stores pictures in one commit.

        Args:
            pictures: Their hashes must be unique.

        Returns:
            For each, False when it was there already; nothing is written for it then.

        Raises:
            ServiceError: STORE_FULL or STORE_UNAVAILABLE; nothing was written.
        """
        missing = set(self.missing([picture.sha256 for picture in pictures]))
        new = [picture for picture in pictures if picture.sha256 in missing]
        if new:
            columns = ([getattr(picture, name) for picture in new] for name in _SCHEMA.names)
            arrays = [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
            self._table.merge(pa.table(arrays, schema=_SCHEMA), update=False)
        return [picture.sha256 in missing for picture in pictures]

    def get(self, sha256: str) -> Picture | None:
        """The picture with that hash, or None."""
        return self.get_many([sha256]).get(sha256)

    def get_many(self, sha256s: Sequence[str]) -> dict[str, Picture]:
        """The pictures with these hashes that are there, by hash."""
        rows = self._table.select_in(_SCHEMA.names, column="sha256", values=list(dict.fromkeys(sha256s)))
        return {row["sha256"]: Picture(**row) for row in rows.to_pylist()}

    def count(self) -> int:
        """How many pictures there are."""
        return self._table.count()

    def optimise(self) -> None:
        """Compacts the table and drops old versions."""
        self._table.optimise()
