"""What serving does in the background: adapts models, follows changes, lets go of expired pins and of memory.

Of several workers on one machine one adapts and sweeps; all follow changes and hand back memory. Who changes something
tells the others, so that they look at once instead of at the next poll.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dmesr_server.control import Control
from dmesr_server.errors import ServiceError
from dmesr_server.memory import hand_back
from dmesr_server.serving.adaptation import Adaptation
from dmesr_server.serving.index_files import IndexFiles
from dmesr_server.serving.live import LiveModels
from dmesr_server.serving.neighbours import Neighbours
from dmesr_server.serving.publishing import remove_leftovers
from dmesr_server.store import Store

_LOG = logging.getLogger(__name__)
_SWEEP_SECONDS = 10.0
_HAND_BACK_SECONDS = 10.0
_LARGE_LOOK_SECONDS = 0.25  # a look that took so long has had columns of very many items in memory
_LONGEST_DELAY = 30.0  # seconds between attempts while the stores are out of reach
_SHORTEST_DELAY = 0.05  # seconds between two looks, however many changes are told of

#: Tells the other workers of this machine: "aliases" or "vectors" have changed.
Tell = Callable[[str], None]
ALIASES = "aliases"
VECTORS = "vectors"


class ServingLoop:
    """Runs the background work of one API process until it is cancelled."""

    def __init__(
        self,
        *,
        store: Store,
        control: Control,
        live: LiveModels,
        neighbours: Neighbours,
        adaptation: Adaptation | None,
        files: IndexFiles,
        artefacts: Path,
        poll_seconds: float,
        tell: Tell | None = None,
    ):
        """Makes it; :meth:`run` begins.

        Args:
            store: Where vectors are.
            control: Models and pins.
            live: The models that answer.
            neighbours: The searches.
            adaptation: What adapts models; None where another process does that and sweeps.
            files: The indexes that this machine's processes share.
            artefacts: The folder of the models' files.
            poll_seconds: How often changes by others are looked for.
            tell: Tells the other workers of a change here; None where there are none.
        """
        self._store = store
        self._control = control
        self._live = live
        self._neighbours = neighbours
        self._adaptation = adaptation
        self._files = files
        self._artefacts = artefacts
        self._poll_seconds = poll_seconds
        self._tell = tell
        self._to_adapt = asyncio.Event()
        self._to_refresh = asyncio.Event()
        self._event_loop: asyncio.AbstractEventLoop | None = None

    def vectors_changed(self) -> None:
        """Looks for models to adapt and to read now instead of at the next poll, here and in the other workers."""
        self._told(VECTORS)
        self._tell_others(VECTORS)

    def aliases_changed(self, *, catalog: str) -> None:
        """Looks up a catalog's aliases anew, here and in the other workers, and loads what they name now."""
        self._live.forget_aliases(catalog=catalog)
        self._told(ALIASES)
        self._tell_others(ALIASES)

    def told(self, what: str) -> None:
        """Another worker has changed something. From the event loop."""
        if what == ALIASES:
            self._live.forget_aliases()
        self._told(what)

    def _told(self, what: str) -> None:
        if self._event_loop is None:
            return
        with contextlib.suppress(RuntimeError):  # the loop has ended: there is nothing left to look for
            self._event_loop.call_soon_threadsafe(self._to_refresh.set)
            if what == VECTORS:
                self._event_loop.call_soon_threadsafe(self._to_adapt.set)

    def _tell_others(self, what: str) -> None:
        if self._tell is not None:
            self._tell(what)

    async def run(self) -> None:
        """Runs until it is cancelled. Each kind of work has a thread of its own: adapting many items takes long."""
        self._event_loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._repeat("refresh", self._live.refresh, self._poll_seconds, wanted=self._to_refresh))
            tasks.create_task(self._repeat("memory", self._hand_back, _HAND_BACK_SECONDS))
            if self._adaptation is not None:
                adapt = functools.partial(self._adapt, self._adaptation)
                tasks.create_task(self._repeat("adaptation", adapt, self._poll_seconds, wanted=self._to_adapt))
                tasks.create_task(self._repeat("sweep", self._sweep, _SWEEP_SECONDS))

    def _sweep(self) -> None:
        """Gives back expired pins, and removes uploads that nobody will finish."""
        for pin in self._control.pins.expired():
            # A pin of a dropped catalog has no table left to unpin.
            with contextlib.suppress(ServiceError):
                self._store.catalog(pin.catalog).embeddings(pin.recipe_id).unpin(pin.tag)
            self._control.pins.release(pin.pin_id)
        remove_leftovers(self._artefacts)
        self._files.sweep()

    def _hand_back(self) -> None:
        self._live.hand_back()
        self._neighbours.hand_back()
        hand_back()

    def _adapt(self, adaptation: Adaptation) -> None:
        started = time.monotonic()
        if adaptation.step():
            self._live.refresh()
            self._tell_others(VECTORS)
        if time.monotonic() - started > _LARGE_LOOK_SECONDS:
            hand_back()

    async def _repeat(
        self, name: str, work: Callable[[], None], seconds: float, *, wanted: asyncio.Event | None = None
    ) -> None:
        faults = 0
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"dmesr-{name}")
        try:
            while True:
                started = time.monotonic()
                if wanted is not None:
                    wanted.clear()
                try:
                    await asyncio.get_running_loop().run_in_executor(thread, work)
                    faults = 0
                except ServiceError as error:
                    faults += 1
                    _LOG.warning("%s: %s", name, error.message)
                except Exception:
                    faults += 1
                    _LOG.exception("%s failed", name)
                delay = min(_LONGEST_DELAY, seconds * 2 ** min(faults, 16)) - (time.monotonic() - started)
                if wanted is None:
                    await asyncio.sleep(max(delay, 0))
                else:
                    await asyncio.sleep(_SHORTEST_DELAY)
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(wanted.wait(), timeout=max(delay - _SHORTEST_DELAY, 0))
        finally:
            # Not on this thread: calls in flight are being drained meanwhile.
            if self._adaptation is not None:
                self._adaptation.stop()
            await asyncio.to_thread(thread.shutdown)
