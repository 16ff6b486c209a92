"""What serving does in the background: adapts models, follows changes, lets expired pins go."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dmesr_server.control import Control
from dmesr_server.errors import ServiceError
from dmesr_server.serving.adaptation import Adaptation
from dmesr_server.serving.live import LiveModels
from dmesr_server.serving.publishing import remove_leftovers
from dmesr_server.store import Store

_LOG = logging.getLogger(__name__)
_SWEEP_SECONDS = 10.0
_LONGEST_DELAY = 30.0  # seconds between attempts while the stores are out of reach


class ServingLoop:
    """Runs the background work of one API process until it is cancelled."""

    def __init__(
        self,
        *,
        store: Store,
        control: Control,
        live: LiveModels,
        adaptation: Adaptation,
        artefacts: Path,
        poll_seconds: float,
    ):
        self._store = store
        self._control = control
        self._live = live
        self._adaptation = adaptation
        self._artefacts = artefacts
        self._poll_seconds = poll_seconds
        self._wanted = asyncio.Event()
        self._event_loop: asyncio.AbstractEventLoop | None = None

    def nudge(self) -> None:
        """Looks for work now instead of at the next poll. From any thread."""
        if self._event_loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended: there is nothing left to nudge
                self._event_loop.call_soon_threadsafe(self._wanted.set)

    async def run(self) -> None:
        """Runs until it is cancelled. Each kind of work has a thread of its own: adapting many items takes long."""
        self._event_loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._repeat("adaptation", self._adapt, self._poll_seconds, wanted=self._wanted))
            tasks.create_task(self._repeat("refresh", self._live.refresh, self._poll_seconds))
            tasks.create_task(self._repeat("sweep", self.sweep, _SWEEP_SECONDS))

    def sweep(self) -> None:
        """Gives expired pins back and removes uploads that nobody will finish."""
        for pin in self._control.pins.expired():
            # A pin of a dropped catalog has no table left to unpin.
            with contextlib.suppress(ServiceError):
                self._store.catalog(pin.catalog).embeddings(pin.recipe_id).unpin(pin.tag)
            self._control.pins.release(pin.pin_id)
        remove_leftovers(self._artefacts)

    def _adapt(self) -> None:
        if self._adaptation.step():
            self._live.refresh()

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
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(wanted.wait(), timeout=max(delay, 0))
        finally:
            # Not on this thread: calls in flight are being drained meanwhile.
            self._adaptation.stop()
            await asyncio.to_thread(thread.shutdown)
