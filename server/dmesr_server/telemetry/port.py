"""The port at which all processes' metrics are read, and what is only looked up when somebody reads them."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from dmesr_server.config import ServerConfig
from dmesr_server.control import Control
from dmesr_server.errors import ServiceError
from dmesr_server.preflight import StartError, printable
from dmesr_server.store import Store, TableStats

if TYPE_CHECKING:
    from prometheus_client.core import Metric

_LOG = logging.getLogger(__name__)
_STORE_SECONDS = 15.0  # what the store holds is looked up at most so often: it walks over all files
_MOST_TABLES = 1_000  # told one by one


@contextlib.contextmanager
def served_metrics(config: ServerConfig, *, store: Store, control: Control) -> Iterator[None]:
    """Serves the metrics over HTTP while the context lasts.

    Raises:
        StartError: The port cannot be used.
    """
    from prometheus_client import CollectorRegistry, start_http_server
    from prometheus_client.multiprocess import MultiProcessCollector

    assert config.metrics_port is not None
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    registry.register(_Looked(store=store, control=control))
    try:
        httpd, thread = start_http_server(config.metrics_port, addr=config.metrics_host, registry=registry)
    except OSError as error:
        raise StartError(
            f"metrics cannot be served at {printable(config.metrics_host)}:{config.metrics_port}: {error.strerror}; "
            "set server.metrics_port to a free port, or 0 for any"
        ) from error
    _LOG.info("metrics at http://%s:%d/metrics", printable(config.metrics_host), httpd.server_port)
    try:
        yield
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


class _Looked:
    """Jobs, and what the store holds, as they are when somebody asks."""

    def __init__(self, *, store: Store, control: Control):
        self._store = store
        self._control = control
        self._lock = threading.Lock()
        self._tables: list[tuple[str, TableStats]] = []
        self._looked = -_STORE_SECONDS

    def describe(self) -> Iterable[Metric]:
        """Nothing: the registry then does not collect when it is made."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """The metrics; fewer where a store cannot be reached."""
        from prometheus_client.core import GaugeMetricFamily

        jobs = GaugeMetricFamily("dmesr_jobs", "Jobs that wait or run.", labels=["state"])
        items = GaugeMetricFamily("dmesr_job_items", "Items of the jobs that wait or run.", labels=["catalog", "state"])
        size = GaugeMetricFamily("dmesr_store_bytes", "Bytes on disk, with old versions.", labels=["catalog", "table"])
        rows = GaugeMetricFamily("dmesr_store_rows", "Rows.", labels=["catalog", "table"])
        up = GaugeMetricFamily("dmesr_store_up", "1 where store and control database could be read just now.")
        try:
            self._jobs(jobs, items)
            for catalog, table in self._held():
                size.add_metric([catalog, table.name], table.bytes)
                rows.add_metric([catalog, table.name], table.rows)
            up.add_metric([], 1)
        except ServiceError as error:
            _LOG.warning("metrics are told without the store's: %s", error.message)
            up.add_metric([], 0)
        yield from (jobs, items, size, rows, up)

    def _jobs(self, jobs: Metric, items: Metric) -> None:
        states, by_catalog = Counter({"QUEUED": 0, "RUNNING": 0}), Counter[tuple[str, str]]()
        for row in self._control.catalogs.list():
            for job in self._control.jobs.active(row.name):
                states[job.state.name] += 1
                done = int(job.progress.get("items_done", 0))
                by_catalog[row.name, "done"] += done
                by_catalog[row.name, "waiting"] += max(0, int(job.progress.get("items_total", 0)) - done)
        for state, count in states.items():
            jobs.add_metric([state], count)  # type: ignore[attr-defined]
        for labels, count in by_catalog.items():
            items.add_metric(list(labels), count)  # type: ignore[attr-defined]

    def _held(self) -> list[tuple[str, TableStats]]:
        with self._lock:
            if time.monotonic() - self._looked >= _STORE_SECONDS:
                catalogs = [row.name for row in self._control.catalogs.list()]
                found = [(name, table) for name in catalogs for table in self._store.catalog(name).stats()]
                self._tables, self._looked = found[:_MOST_TABLES], time.monotonic()
            return self._tables
