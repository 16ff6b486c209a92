"""The models that this process can answer with: loaded, refreshed when their vectors or aliases change."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

from dmesr_server.config import ServingConfig
from dmesr_server.control import Control, ModelRow
from dmesr_server.errors import ServiceError
from dmesr_server.filters import CatalogAttributes
from dmesr_server.serving import towers
from dmesr_server.serving.artefact import Artefact, load
from dmesr_server.serving.candidates import FilterMasks
from dmesr_server.serving.index import ItemIndex
from dmesr_server.serving.index_files import IndexFiles
from dmesr_server.serving.recommender import ServedModel
from dmesr_server.serving.routing import Routes, not_ready, takes_other_side
from dmesr_server.store import AdaptedTable, Store

__all__ = ["LiveModels", "ModelKey", "Routed", "not_ready"]

_LOG = logging.getLogger(__name__)
_MOST_WORK = 0.2  # share of the time that following one model's changes may take


@dataclass(frozen=True, order=True)
class ModelKey:
    """One version of one model of one catalog."""

    catalog: str
    name: str
    version: int

    @classmethod
    def of(cls, row: ModelRow) -> ModelKey:
        """The key of a registered model."""
        return cls(row.catalog, row.name, row.version)

    @property
    def ref(self) -> str:
        """`name:version`: what the adapted table goes by within its catalog."""
        return f"{self.name}:{self.version}"

    @property
    def lease(self) -> str:
        """The lease under which its adapted table is written."""
        return f"adapt:{self.catalog}:{self.ref}"


@dataclass(frozen=True)
class Routed:
    """Who answers a call."""

    model: ServedModel
    alias: str  # the alias that answers; empty where the call names a model


class LiveModels:
    """Finds the model behind a reference. Thread-safe; all calls block.

    Attributes:
        attributes: What filters are asked of; it follows the items with the models.
        masks: What filters made of the indexes.
    """

    def __init__(self, *, store: Store, control: Control, config: ServingConfig, files: IndexFiles):
        """Makes it; reads nothing.

        Args:
            store: Where the vectors are.
            control: Which models there are.
            config: How many are kept, and how often changes are looked for.
            files: The indexes that this machine's processes share.
        """
        self.attributes = CatalogAttributes(store=store)
        self._store = store
        self._control = control
        self._config = config
        self._files = files
        self.masks = FilterMasks(attributes=self.attributes)
        self._routes = Routes(control=control, poll_seconds=config.poll_seconds)
        self._lock = threading.Lock()  # guards the dicts; never held while anything is read
        self._served: dict[ModelKey, ServedModel] = {}
        self._used: dict[ModelKey, float] = {}
        self._loading: dict[ModelKey, threading.Lock] = {}
        self._not_before: dict[ModelKey, float] = {}  # seconds, monotonic: when changes may be followed again

    def get(self, *, catalog: str, ref: str, unit_id: str = "") -> Routed:
        """The model to answer with.

        Args:
            catalog: The catalog.
            ref: An alias, a name or `name:version`.
            unit_id: Whose call it is, where an alias's traffic is split.

        Raises:
            ServiceError: CATALOG_NOT_FOUND, MODEL_NOT_FOUND, MODEL_NOT_READY, or what the store raises.
        """
        route = self._routes.get(catalog=catalog, ref=ref)
        if route.split is not None and takes_other_side(route.split, unit_id):
            route = self._routes.get(catalog=catalog, ref=route.split.other_alias)
        return Routed(model=self._held(route.row) or self._load(route.row), alias=route.alias)

    def held(self, *, catalog: str, ref: str, unit_id: str = "") -> Routed | None:
        """As :meth:`get`, where nothing has to be read for it; None otherwise. Never blocks."""
        route = self._routes.known(catalog=catalog, ref=ref)
        if route is not None and route.split is not None and takes_other_side(route.split, unit_id):
            route = self._routes.known(catalog=catalog, ref=route.split.other_alias)
        model = None if route is None else self._held(route.row)
        return None if route is None or model is None else Routed(model=model, alias=route.alias)

    def _held(self, row: ModelRow) -> ServedModel | None:
        key = ModelKey.of(row)
        with self._lock:
            self._used[key] = time.monotonic()
            return self._served.get(key)

    def refresh(self) -> None:
        """Looks for models to load, to read again and to let go of; a fault of one model does not touch the others."""
        self._routes.refresh()
        live = {ModelKey.of(row): row for row in self._control.models.live()}
        aliased = {key: row for key, row in live.items() if row.aliases}
        with self._lock:
            held = dict(self._served)
            gone = [key for key in held if key not in live]  # deleted, by whichever process
            idle = sorted(
                (key for key in held if key in live and key not in aliased), key=lambda key: self._used.get(key, 0.0)
            )
            for key in [*gone, *idle[: max(0, len(idle) - self._config.idle_models)]]:
                self._let_go(key)
                held.pop(key)
        for key, row in aliased.items():
            if key not in held and row.state == "READY":
                self._guarded(key, functools.partial(self._load, row))
        for key, served in held.items():
            self._guarded(key, functools.partial(self._refresh_one, key, served))
        self.attributes.refresh()

    def hand_back(self) -> None:
        """Lets go of vectors that answers have looked at; they stay mapped."""
        with self._lock:
            held = list(self._served.values())
        for served in held:
            served.index.hand_back()

    def forget_items(self, *, catalog: str, item_ids: Collection[str]) -> None:
        """Takes deleted items out of every index of the catalog at once."""
        with self._lock:
            held = [(key, served) for key, served in self._served.items() if key.catalog == catalog]
        for key, served in held:
            # Their rows are gone from the table: a matrix made anew is mapped, where a smaller copy would be our own.
            self._guarded(key, functools.partial(self._refresh_one, key, served, at_once=True))
            self._swap(key, lambda current: replace(current, index=current.index.without(item_ids)))

    def forget(self, *, catalog: str, name: str | None = None, version: int | None = None) -> None:
        """Lets go of a deleted model, or of all models of a dropped catalog."""
        with self._lock:
            for key in list(self._served):
                if key.catalog == catalog and name in (None, key.name) and version in (None, key.version):
                    self._let_go(key)
        if name is None:
            self.attributes.forget(catalog)
        self.forget_aliases(catalog=catalog)

    def forget_aliases(self, *, catalog: str | None = None) -> None:
        """Looks up every reference anew: an alias has moved, or its split has changed; of every catalog when None."""
        self._routes.forget(catalog=catalog)

    def _load(self, row: ModelRow) -> ServedModel:
        key = ModelKey.of(row)
        with self._lock:
            loading = self._loading.setdefault(key, threading.Lock())
        with loading:  # many first requests at once load it once
            with self._lock:
                served = self._served.get(key)
            if served is not None:
                return served
            # What was learned of single items is in the index already.
            artefact = load(Path(row.artefact_path), verify_checksums=False, learned=False)
            index, table_version = self._read(key, artefact)
            served = ServedModel(
                catalog=key.catalog,
                name=key.name,
                version=key.version,
                artefact=artefact,
                user_tower=towers.load_user_tower(artefact, threads=self._config.tower_threads),
                index=index,
                table_version=table_version,
            )
            with self._lock:
                self._served[key] = served
                self._used.setdefault(key, time.monotonic())
            _LOG.info("model %s of catalog %s loaded: %d items", key.ref, key.catalog, len(served.index))
            return served

    def _refresh_one(self, key: ModelKey, served: ServedModel, *, at_once: bool = False) -> None:
        self._files.keep(served.index)
        started = time.monotonic()
        if started < self._not_before.get(key, 0.0) and not at_once:
            return
        if self._table(key, served.artefact.manifest.vector_dim).version() == served.table_version:
            return
        index, version = self._read(key, served.artefact, served.index)
        now = time.monotonic()
        self._not_before[key] = now + (now - started) * (1 / _MOST_WORK - 1)
        # Another thread may have read a newer version meanwhile.
        self._swap(
            key,
            lambda current: (
                current if current.table_version > version else replace(current, index=index, table_version=version)
            ),
        )

    def _read(self, key: ModelKey, artefact: Artefact, held: ItemIndex | None = None) -> tuple[ItemIndex, int]:
        return self._files.open(
            table=self._table(key, artefact.manifest.vector_dim),
            artefact=artefact.folder,
            digest=artefact.digest,
            vector_dim=artefact.manifest.vector_dim,
            held=held,
        )

    def _table(self, key: ModelKey, vector_dim: int) -> AdaptedTable:
        return self._store.catalog(key.catalog).adapted(key.ref, vector_dim)

    def _swap(self, key: ModelKey, change: Callable[[ServedModel], ServedModel]) -> None:
        with self._lock:
            current = self._served.get(key)
            if current is not None:
                # One assignment: a request holds either the old index or the new one, from start to end.
                self._served[key] = change(current)

    def _let_go(self, key: ModelKey) -> None:
        for held in (self._served, self._used, self._loading, self._not_before):
            held.pop(key, None)

    def _guarded(self, key: ModelKey, action: Callable[[], object]) -> None:
        try:
            action()
        except ServiceError as error:
            _LOG.warning("model %s of catalog %s: %s", key.ref, key.catalog, error.message)
