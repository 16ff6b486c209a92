"""Adaptation: keeps each model's item vectors in step with the embeddings they are made from.

For each published model, the item tower runs on the items whose source vectors are new or changed, the learned parts
are added, and the adapted table is written under a lease. Items that were deleted leave the table. A new item is
recommendable by this alone, without training.

Shapes: N items of a group, D width of a source, V width of the model's vectors.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from dmesr_server.config import ServingConfig
from dmesr_server.control import Control, Lease, ModelRow
from dmesr_server.errors import ServiceError
from dmesr_server.serving import towers
from dmesr_server.serving.artefact import ITEM_TOWER, Artefact, LearnedItems, invalid, load
from dmesr_server.serving.live import ModelKey
from dmesr_server.store import AdaptedTable, CatalogStore, Store

_LOG = logging.getLogger(__name__)
_TOWER_ITEMS = 4_096  # in one run of the tower
#: Vectors of the items that are read and written together: each read and each write costs the same again, whatever its
#: size, and the table's own part of that grows with the table.
_GROUP_BYTES = 96 << 20
_LEASE_SECONDS = 10.0  # a model whose process died is taken up by another, or the next one, after this long
_LONGEST_DELAY = 60.0  # seconds between attempts after faults
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
    retry_at: float  # seconds, monotonic


class Adaptation:
    """Adapts models, one after the other. Belongs to one thread; all calls block."""

    def __init__(self, *, store: Store, control: Control, config: ServingConfig, owner: str):
        self._store = store
        self._control = control
        self._config = config
        self._owner = owner
        self._adapted: dict[ModelKey, _Inputs] = {}
        self._faults: dict[ModelKey, _Fault] = {}
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Makes a step that is under way end soon. From any thread."""
        self._stopping.set()

    def step(self) -> bool:
        """Brings every live model up to date; True when one of them changed."""
        rows = self._control.models.live()
        for gone in {*self._adapted, *self._faults} - {ModelKey.of(row) for row in rows}:
            self._adapted.pop(gone, None)
            self._faults.pop(gone, None)
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
        return fault is not None and fault.inputs == inputs and time.monotonic() < fault.retry_at

    def _failed(self, row: ModelRow, inputs: _Inputs | None, error: ServiceError) -> None:
        key = ModelKey.of(row)
        before = self._faults.get(key)
        attempts = before.attempts + 1 if before is not None and before.inputs == inputs else 1
        delay = min(_LONGEST_DELAY, self._config.poll_seconds * 2**attempts)
        self._faults[key] = _Fault(inputs, attempts, time.monotonic() + delay)
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
        if row.state == "READY" and self._adapted.get(key) == inputs:
            return False
        lease = self._control.leases.acquire(key.lease, self._owner, _LEASE_SECONDS)
        if lease is None:
            return False  # another process is at it
        try:
            artefact = load(Path(row.artefact_path), verify_checksums=False)
            run = _Run(self._control, catalog, key, artefact, lease, self._stopping)
            # Who publishes is told of an item that the tower cannot handle; later, one odd item must not stop the rest.
            written, deleted = run.execute(threads=self._config.tower_threads, strict=row.state == "ADAPTING")
            if row.state == "ADAPTING":
                self._control.models.set_state(key.catalog, key.name, key.version, "READY")
        finally:
            self._control.leases.release(lease)
        self._adapted[key] = inputs
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
    ):
        self._stopping = stopping
        self._control = control
        self._catalog = catalog
        self._key = key
        self._artefact = artefact
        self._lease = lease
        self._sources = [source.name for source in artefact.manifest.sources]
        self._table: AdaptedTable = catalog.adapted(key.ref, artefact.manifest.vector_dim)

    def execute(self, *, threads: int, strict: bool) -> tuple[int, int]:
        """Adapts what is new or changed and removes what is gone; returns how many of each.

        Args:
            threads: Threads of one run of the tower.
            strict: Fail on an item whose vector is not finite; otherwise it is left as it was and logged.
        """
        wanted = self._wanted()
        have = self._table.input_hashes()
        todo = [item_id for item_id, digest in wanted.items() if have.get(item_id) != digest]
        gone = [item_id for item_id in have if item_id not in wanted]
        if gone:
            self._renew()
            self._table.delete(gone)
        written = 0
        if todo:
            tower = towers.load_item_tower(self._artefact, threads=threads)
            for group in _groups(todo, self._group_items()):
                vectors_NV = self._vectors(tower, group)
                sound_N = np.isfinite(vectors_NV).all(axis=1)
                if not sound_N.all():
                    self._odd(group, sound_N, strict=strict)
                sound = [item_id for item_id, is_sound in zip(group, sound_N, strict=True) if is_sound]
                self._renew()
                if sound:
                    self._table.upsert(sound, vectors_NV[sound_N], [wanted[item_id] for item_id in sound])
                written += len(sound)
        return written, len(gone)

    def _group_items(self) -> int:
        manifest = self._artefact.manifest
        width = manifest.vector_dim + sum(source.dim for source in manifest.sources)
        return max(_TOWER_ITEMS, _GROUP_BYTES // (4 * width))

    def _odd(self, item_ids: Sequence[str], sound_N: np.ndarray, *, strict: bool) -> None:
        odd = [item_id for item_id, is_sound in zip(item_ids, sound_N, strict=True) if not is_sound]
        message = (
            f"{ITEM_TOWER} answered with NaN or infinity for {len(odd)} items, first {odd[0]!r}: look at the item's "
            "vectors, or export the model again"
        )
        if strict:
            raise invalid(message, file=ITEM_TOWER, item_id=odd[0], items=len(odd))
        _LOG.warning("model %s of catalog %s: %s", self._key.ref, self._key.catalog, message)

    def _wanted(self) -> dict[str, str]:
        """Each item that belongs in the index, with the hash of what its vector is made from."""
        digests: dict[str, str] = {}
        hash_of = input_hasher(self._artefact)
        if self._sources:
            recipe_id = self._artefact.manifest.recipe_id
            for item_id, hashes in self._catalog.embeddings(recipe_id).hashes().items():
                own = [hashes.get(source) for source in self._sources]
                if any(own):
                    digests[item_id] = hash_of(own)
        nothing = hash_of([None] * len(self._sources))
        for item_id in self._artefact.learned.ids_with_part():
            digests.setdefault(item_id, nothing)
        # An item that was deleted, or that this catalog never had, is not recommended, whatever was learned of it.
        ids = list(digests)
        existing = self._catalog.items.existing(ids)
        return {item_id: digests[item_id] for item_id in ids if item_id in existing}

    def _vectors(self, tower: towers.ItemTower | None, item_ids: Sequence[str]) -> np.ndarray:
        parts_NV = _parts(self._artefact.learned, item_ids, self._artefact.manifest.vector_dim)
        if tower is None:
            return parts_NV
        rows = self._catalog.embeddings(self._artefact.manifest.recipe_id).take(item_ids, self._sources)
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


def input_hasher(artefact: Artefact) -> Callable[[Sequence[str | None]], str]:
    """Hashes what an item's vector is made from: the model, and the hash of each declared source.

    The model is part of it because names come again: a catalog that is dropped and made anew counts from version 1.
    Every item is hashed whenever one has changed, so this is written for speed: sha256 hex over the JSON list of all.
    """
    start = json.dumps([artefact.digest])[:-1]

    def hash_of(hashes: Sequence[str | None]) -> str:
        parts = [start]
        for one in hashes:
            # Hashes are hex as a rule, which JSON leaves as it is.
            parts.append("null" if one is None else f'"{one}"' if one.isascii() and one.isalnum() else json.dumps(one))
        return hashlib.sha256((", ".join(parts) + "]").encode()).hexdigest()

    return hash_of


def dense(column: pa.ChunkedArray | pa.Array, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """A nullable column of vectors as a matrix float32 [N, D], zeros where null, and its mask bool [N]."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    present_N = np.asarray(array.is_valid().to_numpy(zero_copy_only=False), bool)
    matrix_ND = np.zeros((len(array), dim), np.float32)
    if present_N.any():
        matrix_ND[present_N] = array.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
    return matrix_ND, present_N


def _parts(learned: LearnedItems, item_ids: Sequence[str], dim: int) -> np.ndarray:
    parts_NV = np.zeros((len(item_ids), dim), np.float32)
    for place, item_id in enumerate(item_ids):
        row = learned.rows.get(item_id)
        if row is not None:
            parts_NV[place] = learned.parts_NV[row]
    return parts_NV


def _groups(item_ids: Sequence[str], items: int) -> Iterator[list[str]]:
    for start in range(0, len(item_ids), items):
        yield list(item_ids[start : start + items])
