"""Which model answers a call: aliases, and the split of their traffic."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from dataclasses import dataclass, replace

from dmesr_server.control import Control, ModelRow, SplitRow
from dmesr_server.errors import ServiceError

_FORGOTTEN_AFTER = 60.0  # seconds without a call, after which a reference is no longer looked up in the background


@dataclass(frozen=True)
class Route:
    """Where a reference leads.

    Attributes:
        row: The model.
        alias: The alias that was named; empty where the reference names a model.
        split: Who answers some of the alias's calls.
    """

    row: ModelRow
    alias: str
    split: SplitRow | None


@dataclass(frozen=True)
class _Known:
    route: Route
    read: float  # seconds, monotonic
    used: float


class Routes:
    """Looks references up and remembers them. Thread-safe; all calls may block.

    The background looks up anew whatever was asked for lately (:meth:`refresh`), so that no call has to wait for the
    control database. Where the background is late, a call looks for itself.
    """

    def __init__(self, *, control: Control, poll_seconds: float):
        self._control = control
        self._valid_seconds = 2 * poll_seconds  # an entry is never older
        self._lock = threading.Lock()  # guards the two dicts; never held while anything is read
        self._known: dict[tuple[str, str], _Known] = {}
        self._changes: dict[str, int] = {}  # catalog → how often it was forgotten

    def get(self, *, catalog: str, ref: str) -> Route:
        """Where a reference leads.

        Args:
            catalog: The catalog.
            ref: An alias, a name or `name:version`.

        Raises:
            ServiceError: CATALOG_NOT_FOUND, MODEL_NOT_FOUND or MODEL_NOT_READY.
        """
        return self.known(catalog=catalog, ref=ref) or self._look_up(catalog, ref)

    def known(self, *, catalog: str, ref: str) -> Route | None:
        """Where a reference leads, if that is known without waiting."""
        now = time.monotonic()
        with self._lock:
            known = self._known.get((catalog, ref))
            if known is None or now >= known.read + self._valid_seconds:
                return None
            self._known[catalog, ref] = replace(known, used=now)
            return known.route

    def forget(self, *, catalog: str | None = None) -> None:
        """Looks up every reference of a catalog anew: an alias has moved, or its split has changed.

        Args:
            catalog: The catalog; all of them when None.
        """
        with self._lock:
            for name in [catalog] if catalog is not None else {place[0] for place in self._known} | set(self._changes):
                self._changes[name] = self._changes.get(name, 0) + 1
            for place in [place for place in self._known if catalog in (None, place[0])]:
                del self._known[place]

    def refresh(self) -> None:
        """Looks up anew what was asked for lately, and lets go of the rest."""
        now = time.monotonic()
        with self._lock:
            for place in [place for place, known in self._known.items() if now - known.used > _FORGOTTEN_AFTER]:
                del self._known[place]
            places = list(self._known)
        for catalog, ref in places:
            try:
                self._look_up(catalog, ref)
            except ServiceError as error:
                # Nothing to go on with but what was known; once that is too old the caller is told.
                if error.reason != "STORE_UNAVAILABLE":
                    with self._lock:
                        self._known.pop((catalog, ref), None)

    def _look_up(self, catalog: str, ref: str) -> Route:
        with self._lock:
            changes = self._changes.setdefault(catalog, 0)
        read = time.monotonic()
        row = self._control.models.resolve(catalog, ref)
        if row.state != "READY":
            raise not_ready(row)
        alias = ref if ref in row.aliases else ""
        route = Route(row=row, alias=alias, split=self._control.splits.get(catalog, alias) if alias else None)
        with self._lock:
            if self._changes.get(catalog, 0) == changes:  # otherwise what was read may be older than the change
                before = self._known.get((catalog, ref))
                used = before.used if before is not None else read
                self._known[catalog, ref] = _Known(route=route, read=read, used=used)
        return route


def takes_other_side(split: SplitRow, unit_id: str) -> bool:
    """Whether a call belongs to the share of the other alias.

    Args:
        split: How the calls are dealt out.
        unit_id: The user or session, dealt by its hash; each call by chance where it is empty. The hash is over the
            alias too, so that two experiments deal independently; a share that grows keeps the units that it has.
    """
    if not unit_id:
        return random.random() < split.share
    key = "\0".join((split.catalog, split.alias, unit_id)).encode()
    place = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")
    return place / 2**64 < split.share


def not_ready(row: ModelRow) -> ServiceError:
    """A model that cannot answer yet, or that failed."""
    ref = row.ref
    why = "its items are still being adapted; wait until GetModel says READY"
    if row.state == "FAILED":
        why = "its adaptation failed; GetModel tells why"
    return ServiceError("MODEL_NOT_READY", f"model {ref} is not ready: {why}", model=ref, state=row.state)
