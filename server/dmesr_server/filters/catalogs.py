"""The attribute tables of the catalogs that filters were asked of: built when first asked, kept up to date."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dmesr_server.errors import ServiceError
from dmesr_server.filters.columns import AttributeTable, Column, ColumnBuilder
from dmesr_server.filters.tree import Filter, names
from dmesr_server.store import ItemTable, Store

_LOG = logging.getLogger(__name__)

MAX_COLUMNS = 64  # attributes of one catalog kept at a time
MAX_CATALOGS = 16  # catalogs kept at a time
_IDLE_SECONDS = 3_600.0  # a catalog that no filter was asked of for so long is let go of
_MOST_WORK = 0.1  # share of the time that keeping one catalog up to date may take


@dataclass(frozen=True, eq=False)
class _Held:
    """What is known of one catalog."""

    table: AttributeTable
    hashes: pa.LargeStringArray  # of each item's attributes, beside `table.item_ids`
    state: Hashable  # of the items' table when its hashes were read


class _Catalog:
    """One catalog: its table and whose turn it is to change it."""

    def __init__(self) -> None:
        self.changing = threading.Lock()
        self.held: _Held | None = None
        self.wanted: OrderedDict[str, None] = OrderedDict()  # names of columns, the one asked for last at the end
        self.used = time.monotonic()
        self.not_before = 0.0  # seconds, monotonic: when it may be brought up to date again


class CatalogAttributes:
    """Attribute tables by catalog. Thread-safe; all calls block.

    A table follows the items within a poll of the background work (:meth:`refresh`); large catalogs that change all
    the time within ten times as long as it takes to follow.
    """

    def __init__(self, *, store: Store):
        self._store = store
        self._lock = threading.Lock()  # guards the dict
        self._catalogs: OrderedDict[str, _Catalog] = OrderedDict()

    def table(self, catalog: str, filter_: Filter) -> AttributeTable:
        """The table to ask this filter of; the first filter over an attribute waits until its column is read.

        Args:
            catalog: A catalog that exists.
            filter_: What will be asked.

        Raises:
            ServiceError: INVALID_FILTER when it asks about more attributes than are kept, or what the store raises.
        """
        asked = names(filter_)
        if len(asked) > MAX_COLUMNS:
            raise ServiceError(
                "INVALID_FILTER",
                f"the filter asks about {len(asked)} attributes, at most {MAX_COLUMNS} are allowed",
                expected=MAX_COLUMNS,
                actual=len(asked),
            )
        with self._lock:
            kept = self._catalogs.setdefault(catalog, _Catalog())
            self._catalogs.move_to_end(catalog)
            while len(self._catalogs) > MAX_CATALOGS:
                self._catalogs.popitem(last=False)
            kept.used = time.monotonic()
        held = kept.held
        if held is not None and asked <= held.table.columns.keys():
            return held.table
        with kept.changing:  # many first requests at once read it once
            for name in asked:
                kept.wanted[name] = None
                kept.wanted.move_to_end(name)
            while len(kept.wanted) > MAX_COLUMNS:
                kept.wanted.popitem(last=False)
            if kept.held is None or not asked <= kept.held.table.columns.keys():
                kept.held = _updated(self._store.catalog(catalog).items, kept.held, list(kept.wanted))
            return kept.held.table

    def refresh(self) -> None:
        """Brings every table up to date; for the background. A fault of one catalog does not touch the others."""
        with self._lock:
            idle = [name for name, kept in self._catalogs.items() if time.monotonic() - kept.used > _IDLE_SECONDS]
            for name in idle:
                del self._catalogs[name]
            catalogs = list(self._catalogs.items())
        for name, kept in catalogs:
            started = time.monotonic()
            if kept.held is None or started < kept.not_before:
                continue
            try:
                items = self._store.catalog(name).items
                with kept.changing:
                    if kept.held is not None and items.state() != kept.held.state:
                        kept.held = _updated(items, kept.held, list(kept.wanted))
            except ServiceError as error:
                _LOG.warning("the attributes of catalog %s for filters: %s", name, error.message)
            took = time.monotonic() - started
            kept.not_before = started + took / _MOST_WORK

    def forget(self, catalog: str) -> None:
        """Lets go of a dropped catalog."""
        with self._lock:
            self._catalogs.pop(catalog, None)


def _updated(items: ItemTable, held: _Held | None, wanted: Sequence[str]) -> _Held:
    """Reads what changed since `held`, and all of the columns that it lacks.

    An item that changes between the reading of its hash and of its attributes shows another hash next time, and is
    read again.
    """
    state = items.state()
    if held is None:
        all_ = _read(items, wanted)
        return _Held(
            table=AttributeTable(item_ids=all_.item_ids, columns=all_.columns), hashes=all_.hashes, state=state
        )
    item_ids, hashes, columns = held.table.item_ids, held.hashes, {}
    old = [name for name in wanted if name in held.table.columns]
    if held.state == state:
        columns = {name: held.table.columns[name] for name in old}
    else:
        now = items.hashes()
        item_ids, hashes = _text(now["item_id"]), _text(now["attributes_hash"])
        places_M = _places(held.table.item_ids, item_ids)  # of the M items held before
        kept_M = places_M >= 0
        kept_M[kept_M] = _same(held.hashes.filter(pa.array(kept_M)), hashes.take(pa.array(places_M[kept_M])))
        places_M[~kept_M] = -1
        changed_N = np.ones(len(item_ids), bool)
        changed_N[places_M[kept_M]] = False
        read = _read(items, old, item_ids.filter(pa.array(changed_N)).to_pylist())
        places = _places(read.item_ids, item_ids)
        for name in old:
            columns[name] = held.table.columns[name].moved(places_M).joined(read.columns[name].moved(places))
    if lacking := [name for name in wanted if name not in columns]:
        all_ = _read(items, lacking)
        places = _places(all_.item_ids, item_ids)
        columns |= {name: column.moved(places) for name, column in all_.columns.items()}
    return _Held(table=AttributeTable(item_ids=item_ids, columns=columns), hashes=hashes, state=state)


@dataclass(frozen=True, eq=False)
class _Read:
    item_ids: pa.LargeStringArray
    hashes: pa.LargeStringArray
    columns: dict[str, Column]


def _read(items: ItemTable, wanted: Sequence[str], ids: Sequence[str] | None = None) -> _Read:
    """Columns of all items, or of those of some ids that are there."""
    builder = ColumnBuilder(wanted)
    item_ids, hashes = [], []
    first = 0
    for batch in items.attribute_batches(ids):
        item_ids.append(_text(batch["item_id"]))
        hashes.append(_text(batch["attributes_hash"]))
        for row, attributes in enumerate(batch["attributes"].to_pylist(), first):
            builder.add(row, attributes)
        first += batch.num_rows
    return _Read(item_ids=_joined(item_ids), hashes=_joined(hashes), columns=builder.columns())


def _text(column: pa.ChunkedArray) -> pa.LargeStringArray:
    return _joined(column.cast(pa.large_string()).chunks)


def _joined(arrays: Sequence[pa.Array]) -> pa.LargeStringArray:
    return pa.concat_arrays(arrays) if arrays else pa.array([], pa.large_string())


def _places(ids: pa.LargeStringArray, among: pa.LargeStringArray) -> np.ndarray:
    """Where each id stands among others, int64; -1 where it does not."""
    found = pc.fill_null(pc.index_in(ids, value_set=among), -1)
    places: np.ndarray = found.to_numpy(zero_copy_only=False).astype(np.int64)
    return places


def _same(left: pa.Array, right: pa.Array) -> np.ndarray:
    same: np.ndarray = pc.equal(left, right).to_numpy(zero_copy_only=False)
    return same
