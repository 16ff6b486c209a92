"""The `vector_indexes` table: what is known of each index, for whoever searches and for people who ask."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import pyarrow as pa

from .database import Database
from .schemas import key_field
from .tables import Table
from .vector_index import Effort

NAME = "vector_indexes"


@dataclass(frozen=True)
class IndexRecord:
    """One index.

    Attributes:
        table: Name of the table.
        source: Which of its sources.
        kind: "IVF_RQ", "IVF_HNSW_SQ" or "IVF_PQ".
        rows: Vectors it was made of, or taken up to when its recall was last measured.
        effort: How hard a search tries for that recall.
        recall: Share of the exact 10 nearest that it finds.
        sample: Vectors that was measured on.
        built: When it was made; UTC.
    """

    table: str
    source: str
    kind: str
    rows: int
    effort: Effort
    recall: float
    sample: int
    built: datetime


class IndexRecords:
    """The records of one catalog."""

    def __init__(self, *, database: Database):
        schema = pa.schema([key_field("name"), pa.field("record", pa.string(), nullable=False)])
        self._table = Table(database=database, name=NAME, schema=schema, indexed=[])

    def save(self, record: IndexRecord) -> None:
        """Keeps a record, in the place of the one before."""
        text = json.dumps({**asdict(record), "built": record.built.isoformat()})
        self._table.merge(pa.table([pa.array([_key(record)]), pa.array([text])], names=["name", "record"]))

    def all(self) -> dict[tuple[str, str], IndexRecord]:
        """The records by table and source."""
        found = {}
        for text in self._table.select(["record"])["record"].to_pylist():
            content = json.loads(text)
            built = datetime.fromisoformat(content.pop("built")).astimezone(UTC)
            record = IndexRecord(**{**content, "effort": Effort(**content["effort"]), "built": built})
            found[record.table, record.source] = record
        return found


def _key(record: IndexRecord) -> str:
    return json.dumps([record.table, record.source])
