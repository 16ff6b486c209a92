"""Whether anybody still waits for what a thread works on: a thread cannot be stopped, but it can look."""

from __future__ import annotations

import threading
from contextvars import ContextVar

#: Set for work that is done for a call. The event is set once the call was cancelled or its deadline has passed.
ABANDONED: ContextVar[threading.Event | None] = ContextVar("dmesr_abandoned", default=None)


class AbandonedError(Exception):
    """Nobody waits for the result any more. It reaches no caller: there is none."""


def still_wanted() -> None:
    """Goes on where somebody waits for the work. To be asked between the steps of what takes long.

    Raises:
        AbandonedError: The call was cancelled, or its deadline has passed.
    """
    event = ABANDONED.get()
    if event is not None and event.is_set():
        raise AbandonedError
