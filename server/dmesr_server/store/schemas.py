"""What stands in the schema of every table: its key, and which table of its name it is."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

import pyarrow as pa

#: Field metadata that makes lance refuse a second row of the same key when merges meet, across threads and processes.
_KEY_METADATA = {"lance-schema:unenforced-primary-key:position": "1"}
#: Schema metadata: tells a table from one of the same name that was dropped.
_INCARNATION = b"dmesr:incarnation"


def key_field(name: str) -> pa.Field:
    """The field of a table's key."""
    return pa.field(name, pa.string(), nullable=False, metadata=_KEY_METADATA)


def made_now(schema: pa.Schema) -> pa.Schema:
    """The schema of a table that is about to be made."""
    return schema.with_metadata({_INCARNATION: uuid.uuid4().hex})


def incarnation(schema: pa.Schema) -> bytes:
    """What tells a table from one of the same name that was dropped."""
    return bytes((schema.metadata or {}).get(_INCARNATION, b""))


@dataclass(frozen=True)
class TableState:
    """What a look saw.

    Attributes:
        incarnation: Which table of its name it was; empty where there was none.
        version: Its newest version.
    """

    incarnation: bytes
    version: int

    def reaches(self, other: TableState) -> bool:
        """Whether it is of the same table and at least as new. One that was made again begins at version 1, too."""
        return self.incarnation == other.incarnation and self.version >= other.version
