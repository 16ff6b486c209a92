"""Makes an index for each source with many vectors, keeps it up to date, and measures what it finds.

The work is done in a process of its own: it takes every core and the memory of all vectors of a source.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import tempfile
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.context import SpawnProcess
from pathlib import Path

from dmesr_server.control import Control, leased
from dmesr_server.errors import ServiceError
from dmesr_server.store import CatalogStore, IndexKind, IndexRecord, Store, VectorIndex, VectorTable, matrix_of

_LOG = logging.getLogger(__name__)
_STALE_SHARE = 0.05  # of the rows outside the index, from which it takes them up
_GROWN = 2.0  # times as many rows as it was made of, from which it is made anew
_NICE = 10  # whoever waits for an answer goes first


@dataclass(frozen=True)
class _Work:
    """One index to be made, or one that is to take up new rows."""

    catalog: str
    table: str  # its name
    source: str
    anew: bool
    kind: IndexKind


class IndexKeeper:
    """Looks for indexes that are due. Several processes may: a lease lets one of them do each."""

    def __init__(
        self, *, store: Store, control: Control, kind: IndexKind, threshold_rows: int, poll_seconds: float, owner: str
    ):
        self._store = store
        self._control = control
        self._kind: IndexKind = kind
        self._threshold = threshold_rows
        self._poll = poll_seconds
        self._owner = owner
        self._process: SpawnProcess | None = None
        self._stopped = False

    async def run(self) -> None:
        """Runs until it is cancelled; a build under way is then ended. It leaves nothing half done."""
        try:
            while True:
                try:
                    await asyncio.to_thread(self.sweep)
                except ServiceError as error:
                    _LOG.warning("indexes are looked after later: %s", error.message)
                except Exception:
                    _LOG.exception("indexes are looked after later")
                await asyncio.sleep(self._poll)
        finally:
            self._stopped = True
            if self._process is not None and self._process.is_alive():
                self._process.terminate()

    def sweep(self) -> None:
        """Does what is due, one after the other."""
        for row in self._control.catalogs.list():
            catalog = self._store.catalog(row.name)
            for table in catalog.vector_tables():
                for source in self._large(table):
                    work = self._due(row.name, catalog, table, source)
                    if work is not None and not self._stopped:
                        self._do(work)

    def _large(self, table: VectorTable) -> list[str]:
        return list(table.sources()) if table.count() >= self._threshold else []

    def _due(self, name: str, catalog: CatalogStore, table: VectorTable, source: str) -> _Work | None:
        record = catalog.indexes.all().get((table.name, source))
        index = VectorIndex(table, source)
        state, kind = index.state(), index.fitting(self._kind)
        rows = table.present(source)
        if rows < self._threshold:
            return None
        anew = state is None or record is None or record.kind != kind or rows > _GROWN * record.rows
        if not anew and state is not None and state.unindexed_rows <= _STALE_SHARE * rows:
            return None
        return _Work(catalog=name, table=table.name, source=source, anew=anew, kind=kind)

    def _do(self, work: _Work) -> None:
        name = f"vector-index:{work.catalog}:{work.table}:{work.source}"
        with leased(self._control, name, self._owner) as lease:
            if lease is None:
                return
            _LOG.info("index begun: catalog=%s table=%s source=%s", work.catalog, work.table, work.source)
            self._process = multiprocessing.get_context("spawn").Process(
                target=_work, args=(self._store.uri, work), daemon=True
            )
            self._process.start()
            self._process.join()
            if self._process.exitcode and not self._stopped:
                _LOG.warning("index failed: table=%s source=%s, tried again later", work.table, work.source)


def _end_with_parent() -> None:
    """A parent that is killed cannot end its processes; what is half done then is as if this one was killed too."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(uri: str, work: _Work) -> None:
    """The body of the process."""
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    os.nice(_NICE)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    catalog = Store(uri=uri).catalog(work.catalog)
    (table,) = (found for found in catalog.vector_tables() if found.name == work.table)
    index = VectorIndex(table, work.source)
    before = catalog.indexes.all().get((work.table, work.source))
    if work.anew:
        index.build(work.kind)
    else:
        table.optimise()
    with tempfile.TemporaryDirectory(prefix="dmesr-index-") as folder:
        effort, recall, sample = index.tuned(matrix_of(table, work.source, Path(folder)))
    state = index.state()
    built = datetime.now(UTC) if work.anew or before is None else before.built
    record = IndexRecord(
        table=work.table,
        source=work.source,
        kind=work.kind,
        rows=state.indexed_rows if state is not None else 0,
        effort=effort,
        recall=recall,
        sample=sample,
        built=built,
    )
    catalog.indexes.save(record)
    _LOG.info(
        "index done: table=%s source=%s rows=%d recall@10=%.3f", work.table, work.source, record.rows, record.recall
    )
