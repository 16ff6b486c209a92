"""Loads a model in a thread, and can turn away from it: loading takes minutes and cannot be broken off."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

from .base import EngineDown

_Model = TypeVar("_Model")


class Loading(Generic[_Model]):
    """One load at a time."""

    def __init__(self) -> None:
        """Nothing is loaded yet."""
        self._abandoned: asyncio.Event | None = None

    async def run(self, load: Callable[[], _Model], *, discard: Callable[[_Model], None]) -> _Model:
        """Loads a model.

        Args:
            load: Blocks; called in a thread.
            discard: Gets the model where it was abandoned meanwhile; called in a thread.

        Raises:
            EngineDown: It was abandoned.
        """
        abandoned = self._abandoned = asyncio.Event()

        def loaded_or_discarded() -> _Model:
            model = load()
            if abandoned.is_set():
                discard(model)
            return model

        work = asyncio.ensure_future(asyncio.to_thread(loaded_or_discarded))
        gone = asyncio.ensure_future(abandoned.wait())
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            work.add_done_callback(_seen)
            self._abandoned = None
        if abandoned.is_set():
            raise EngineDown("the engine was stopped while it was loading")
        return work.result()

    def abandon(self) -> None:
        """Ends `run`, if it is running, at once; the model is discarded when it is there."""
        if self._abandoned is not None:
            self._abandoned.set()


def _seen(work: asyncio.Future[_Model]) -> None:
    if not work.cancelled():
        work.exception()  # of a model that nobody waits for any more
