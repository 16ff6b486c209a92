"""The peer of bulk reads: pyarrow Flight, serving a LanceDB table by the book, in a process of its own."""

from __future__ import annotations

import sys
from typing import Any

import lancedb
import pyarrow.flight as flight


class LanceFlight(flight.FlightServerBase):  # type: ignore[misc]  # pyarrow has no types
    """Serves one table: the ticket names the columns, separated by commas."""

    def __init__(self, uri: str, table: str):
        super().__init__("grpc://127.0.0.1:0")
        self._table = lancedb.connect(uri).open_table(table)

    def do_get(self, context: Any, ticket: Any) -> Any:
        """All rows, in the order of the table."""
        columns = ticket.ticket.decode().split(",")
        return flight.RecordBatchStream(self._table.search().select(columns).limit(None).to_arrow())


if __name__ == "__main__":
    server = LanceFlight(sys.argv[1], sys.argv[2])
    print(server.port, flush=True)
    server.serve()
