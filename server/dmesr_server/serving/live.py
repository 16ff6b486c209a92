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
from dmesr_server.serving.artefact import LearnedItems, load
from dmesr_server.serving.candidates import FilterMasks
from dmesr_server.serving.index import ItemIndex, build
from dmesr_server.serving.recommender import ServedModel
from dmesr_server.serving.routing import Routes, not_ready, takes_other_side
from dmesr_server.store import AdaptedTable, Store

__all__ = ["LiveModels", "ModelKey", "Routed", "not_ready"]

_LOG = logging.getLogger(__name__)


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

    def __init__(self, *, store: Store, control: Control, config: ServingConfig):
        self.attributes = CatalogAttributes(store=store)
        self._store = store
        self._control = control
        self._config = config
        self.masks = FilterMasks(attributes=self.attributes)
        self._routes = Routes(control=control, poll_seconds=config.poll_seconds)
        self._lock = threading.Lock()  # guards the dicts; never held while anything is read
        self._served: dict[ModelKey, ServedModel] = {}
        self._used: dict[ModelKey, float] = {}
        self._loading: dict[ModelKey, threading.Lock] = {}

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

    def forget_items(self, *, catalog: str, item_ids: Collection[str]) -> None:
        """Takes deleted items out of every index of the catalog at once."""
        with self._lock:
            keys = [key for key in self._served if key.catalog == catalog]
        for key in keys:
            self._swap(key, lambda served: replace(served, index=served.index.without(item_ids)))

    def forget(self, *, catalog: str, name: str | None = None, version: int | None = None) -> None:
        """Lets go of a deleted model, or of all models of a dropped catalog."""
        with self._lock:
            for key in list(self._served):
                if key.catalog == catalog and name in (None, key.name) and version in (None, key.version):
                    self._let_go(key)
        if name is None:
            self.attributes.forget(catalog)
        self.forget_aliases(catalog=catalog)

    def forget_aliases(self, *, catalog: str) -> None:
        """Looks up every reference anew: an alias has moved, or its split has changed."""
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
            artefact = load(Path(row.artefact_path), verify_checksums=False)
            table = self._table(key, artefact.manifest.vector_dim)
            table_version = table.version()
            served = ServedModel(
                catalog=key.catalog,
                name=key.name,
                version=key.version,
                artefact=artefact,
                user_tower=towers.load_user_tower(artefact, threads=self._config.tower_threads),
                index=_read_index(table, artefact.learned),
                table_version=table_version,
            )
            with self._lock:
                self._served[key] = served
                self._used.setdefault(key, time.monotonic())
            _LOG.info("model %s of catalog %s loaded: %d items", key.ref, key.catalog, len(served.index))
            return served

    def _refresh_one(self, key: ModelKey, served: ServedModel) -> None:
        table = self._table(key, served.artefact.manifest.vector_dim)
        version = table.version()  # before the rows: a later write is then seen as a change next time
        if version == served.table_version:
            return
        index = _read_index(table, served.artefact.learned)
        # Another thread may have read a newer version meanwhile.
        self._swap(
            key,
            lambda current: (
                current if current.table_version > version else replace(current, index=index, table_version=version)
            ),
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
        for held in (self._served, self._used, self._loading):
            held.pop(key, None)

    def _guarded(self, key: ModelKey, action: Callable[[], object]) -> None:
        try:
            action()
        except ServiceError as error:
            _LOG.warning("model %s of catalog %s: %s", key.ref, key.catalog, error.message)


def _read_index(table: AdaptedTable, learned: LearnedItems) -> ItemIndex:
    ids, vectors_NV = table.read_all()
    return build(ids=ids, vectors_NV=vectors_NV, learned=learned)
