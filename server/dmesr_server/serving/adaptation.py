"""Adaptation: keeps each model's item vectors in step with the embeddings they are made from.

For each published model, the item tower runs on the items whose source vectors are new or changed, the learned parts
are added, and the adapted table is written under a lease. Items that were deleted leave the table. A new item is
recommendable by this alone, without training.

Shapes: N items of a group, D width of a source, V width of the model's vectors.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from dmesr_server.chunks import one_array
from dmesr_server.config import ServingConfig
from dmesr_server.control import Control, Lease, ModelRow
from dmesr_server.errors import ServiceError
from dmesr_server.serving import towers
from dmesr_server.serving.artefact import ITEM_TOWER, Artefact, invalid, load
from dmesr_server.serving.index_files import IndexFiles
from dmesr_server.serving.inputs import changes
from dmesr_server.serving.live import ModelKey
from dmesr_server.store import AdaptedTable, CatalogStore, Store

_LOG = logging.getLogger(__name__)
_TOWER_ITEMS = 4_096  # in one run of the tower
#: Vectors of the items that are read and written together: each read and each write costs the same again, whatever its
#: size, and the table's own part of that grows with the table.
_GROUP_BYTES = 96 << 20
_LEASE_SECONDS = 10.0  # a model whose process died is taken up by another, or the next one, after this long
_LONGEST_DELAY = 60.0  # seconds between attempts after faults
#: Share of the time that looking for one model's changes may take: a look at a million items takes seconds of a core.
_MOST_LOOKING = 0.5
#: Faults that pass by themselves: the model is tried again and stays as it is.
_PASSING = frozenset({"STORE_FULL", "STORE_UNAVAILABLE", "LEASE_LOST"})


@dataclass(frozen=True)
class _Inputs:
    """The versions of the tables that a model's vectors are made from."""

    embeddings: int
    items: int


@dataclass(frozen=True)
class _Fault:
    inputs: _Inputs | None  # None: not even these could be read
    attempts: int
    retry_at: float  # seconds of the clock


class Adaptation:
    """Adapts models, one after the other. Belongs to one thread; all calls block."""

    def __init__(
        self,
        *,
        store: Store,
        control: Control,
        config: ServingConfig,
        files: IndexFiles,
        owner: str,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Makes it; :meth:`step` works.

        Args:
            store: Where the vectors are.
            control: Which models there are.
            config: The tower's threads, and how soon a fault is tried again.
            files: The indexes that this machine's processes share.
            owner: Who holds the leases.
            clock: Seconds that only grow.
        """
        self._clock = clock
        self._store = store
        self._files = files
        self._control = control
        self._config = config
        self._owner = owner
        self._adapted: dict[ModelKey, _Inputs] = {}
        self._faults: dict[ModelKey, _Fault] = {}
        self._rests: dict[ModelKey, float] = {}  # seconds of the clock: when changes may be followed again
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Makes a step that is under way end soon. From any thread."""
        self._stopping.set()

    def step(self) -> bool:
        """Brings every live model up to date; True when one of them changed."""
        rows = self._control.models.live()
        for gone in {*self._adapted, *self._faults, *self._rests} - {ModelKey.of(row) for row in rows}:
            for kept in (self._adapted, self._faults, self._rests):
                kept.pop(gone, None)
        # New models first: somebody waits for them.
        changed = [self._attempt(row) for row in sorted(rows, key=lambda row: row.state != "ADAPTING")]
        return any(changed)

    def _attempt(self, row: ModelRow) -> bool:
        key = ModelKey.of(row)
        inputs: _Inputs | None = None
        try:
            inputs = self._inputs(row)
            if self._waits(key, inputs):
                return False
            changed = self._adapt(row, inputs)
        except _Stopped:
            return False
        except ServiceError as error:
            if not self._waits(key, inputs):
                self._failed(row, inputs, error)
            return False
        except Exception as error:
            _LOG.exception("adapting model %s of catalog %s failed", key.ref, key.catalog)
            self._failed(row, inputs, ServiceError("INTERNAL", f"adapting {key.ref} failed: {type(error).__name__}"))
            return False
        self._faults.pop(key, None)
        return changed

    def _inputs(self, row: ModelRow) -> _Inputs:
        catalog = self._store.catalog(row.catalog)
        return _Inputs(
            embeddings=catalog.embeddings(row.recipe_id).version() if row.recipe_id else 0,
            items=catalog.items.version(),
        )

    def _waits(self, key: ModelKey, inputs: _Inputs | None) -> bool:
        """True when the same was tried and failed not long ago."""
        fault = self._faults.get(key)
        return fault is not None and fault.inputs == inputs and self._clock() < fault.retry_at

    def _failed(self, row: ModelRow, inputs: _Inputs | None, error: ServiceError) -> None:
        key = ModelKey.of(row)
        before = self._faults.get(key)
        attempts = before.attempts + 1 if before is not None and before.inputs == inputs else 1
        delay = min(_LONGEST_DELAY, self._config.poll_seconds * 2**attempts)
        self._faults[key] = _Fault(inputs, attempts, self._clock() + delay)
        _LOG.warning("model %s of catalog %s was not adapted: %s", key.ref, key.catalog, error.message)
        # A model that answers already keeps answering with what it has.
        if row.state == "ADAPTING" and error.reason not in _PASSING:
            try:
                self._control.models.set_state(
                    key.catalog,
                    key.name,
                    key.version,
                    "FAILED",
                    problem={"reason": error.reason, "message": error.message, "metadata": dict(error.metadata)},
                )
            except ServiceError as gone:  # deleted meanwhile
                _LOG.info("model %s of catalog %s: %s", key.ref, key.catalog, gone.message)

    def _adapt(self, row: ModelRow, inputs: _Inputs) -> bool:
        """Brings one model up to date.

        Args:
            row: The model.
            inputs: Read before its rows are: a write in between is then seen as a change the next time.
        """
        key = ModelKey.of(row)
        catalog = self._store.catalog(key.catalog)
        now = self._clock()
        if row.state == "READY" and (self._adapted.get(key) == inputs or now < self._rests.get(key, now)):
            return False
        lease = self._control.leases.acquire(key.lease, self._owner, _LEASE_SECONDS)
        if lease is None:
            return False  # another process is at it
        try:
            artefact = load(Path(row.artefact_path), verify_checksums=False)
            run = _Run(self._control, catalog, key, artefact, lease, self._stopping, self._clock)
            # Who publishes is told of an item that the tower cannot handle; later, one odd item must not stop the rest.
            written, deleted = run.execute(threads=self._config.tower_threads, strict=row.state == "ADAPTING")
            if row.state == "ADAPTING":
                # Whoever publishes waits for this; otherwise the first question after the promotion would.
                self._files.prepare(
                    table=catalog.adapted(key.ref, artefact.manifest.vector_dim),
                    artefact=artefact.folder,
                    digest=artefact.digest,
                    vector_dim=artefact.manifest.vector_dim,
                )
                self._control.models.set_state(key.catalog, key.name, key.version, "READY")
        finally:
            self._control.leases.release(lease)
        self._adapted[key] = inputs
        self._rests[key] = self._clock() + run.look_seconds * (1 / _MOST_LOOKING - 1)
        if written or deleted or row.state == "ADAPTING":
            _LOG.info("model %s of %s: %d items adapted, %d removed", key.ref, key.catalog, written, deleted)
        return bool(written or deleted or row.state == "ADAPTING")


class _Stopped(Exception):  # noqa: N818
    """The process is about to end; what was written stays, the next pass goes on from there."""


class _Run:
    """One pass over one model, under its lease."""

    def __init__(
        self,
        control: Control,
        catalog: CatalogStore,
        key: ModelKey,
        artefact: Artefact,
        lease: Lease,
        stopping: threading.Event,
        clock: Callable[[], float],
    ):
        self.look_seconds = 0.0  # how long it took to find out what has changed
        self._clock = clock
        self._stopping = stopping
        self._control = control
        self._catalog = catalog
        self._key = key
        self._artefact = artefact
        self._lease = lease
        self._table: AdaptedTable = catalog.adapted(key.ref, artefact.manifest.vector_dim)

    def execute(self, *, threads: int, strict: bool) -> tuple[int, int]:
        """Adapts what is new or changed and removes what is gone; returns how many of each.

        Args:
            threads: Threads of one run of the tower.
            strict: Fail on an item whose vector is not finite; otherwise it is left as it was and logged.
        """
        began = self._clock()
        found = changes(self._artefact, self._catalog, self._table)
        self.look_seconds = self._clock() - began
        if len(found.gone):
            self._renew()
            self._table.delete(found.gone.to_pylist())
        written = 0
        if found.due.num_rows:
            tower = towers.load_item_tower(self._artefact, threads=threads)
            for start in range(0, found.due.num_rows, self._group_items()):
                written += self._write(tower, found.due.slice(start, self._group_items()), strict=strict)
        return written, len(found.gone)

    def _write(self, tower: towers.ItemTower | None, due: pa.Table, *, strict: bool) -> int:
        """Makes and writes the vectors of one group; returns how many."""
        item_ids = due["item_id"].to_pylist()
        vectors_NV = self._vectors(tower, item_ids)
        sound_N = np.isfinite(vectors_NV).all(axis=1)
        if not sound_N.all():
            self._odd([item_ids[row] for row in np.flatnonzero(~sound_N)], strict=strict)
        sound = due.filter(pa.array(sound_N))
        self._renew()
        if sound.num_rows:
            self._table.upsert(sound["item_id"].to_pylist(), vectors_NV[sound_N], sound["input_hash"].to_pylist())
        return int(sound.num_rows)

    def _group_items(self) -> int:
        manifest = self._artefact.manifest
        width = manifest.vector_dim + sum(source.dim for source in manifest.sources)
        return max(_TOWER_ITEMS, _GROUP_BYTES // (4 * width))

    def _odd(self, odd: Sequence[str], *, strict: bool) -> None:
        message = (
            f"{ITEM_TOWER} answered with NaN or infinity for {len(odd)} items, first {odd[0]!r}: look at the item's "
            "vectors, or export the model again"
        )
        if strict:
            raise invalid(message, file=ITEM_TOWER, item_id=odd[0], items=len(odd))
        _LOG.warning("model %s of catalog %s: %s", self._key.ref, self._key.catalog, message)

    def _vectors(self, tower: towers.ItemTower | None, item_ids: Sequence[str]) -> np.ndarray:
        parts_NV = self._artefact.learned.parts_of(item_ids)
        if tower is None:
            return parts_NV
        embeddings = self._catalog.embeddings(self._artefact.manifest.recipe_id)
        rows = embeddings.take(item_ids, [source.name for source in tower.sources])
        for start in range(0, len(item_ids), _TOWER_ITEMS):
            self._renew()  # a group takes longer than a lease where a core is slow
            part = rows.slice(start, _TOWER_ITEMS)
            vectors: dict[str, np.ndarray] = {}
            present: dict[str, np.ndarray] = {}
            for source in tower.sources:
                vectors[source.name], present[source.name] = dense(part.column(source.name), source.dim)
            # An item without any source passes through the tower too: the model may have learned a null for that.
            parts_NV[start : start + _TOWER_ITEMS] += tower.run(vectors, present)
        return parts_NV

    def _renew(self) -> None:
        """Before each write, and while one is prepared: still wanted, and still ours."""
        if self._stopping.is_set():
            raise _Stopped
        self._control.models.resolve(self._key.catalog, self._key.ref)  # raises when it was deleted
        self._lease = self._control.leases.renew(self._lease)


def dense(column: pa.ChunkedArray | pa.Array, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """A nullable column of vectors as a matrix float32 [N, D], zeros where null, and its mask bool [N]."""
    array = one_array(column) if isinstance(column, pa.ChunkedArray) else column
    present_N = np.asarray(array.is_valid().to_numpy(zero_copy_only=False), bool)
    matrix_ND = np.zeros((len(array), dim), np.float32)
    if present_N.any():
        matrix_ND[present_N] = array.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
    return matrix_ND, present_N
