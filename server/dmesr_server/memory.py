"""Memory that was freed goes back to the system.

glibc and Arrow keep what a bulk write or an adaptation freed, for the next one: a process that took in a million items
would hold hundreds of megabytes for ever.
"""

from __future__ import annotations

import contextlib
import ctypes

import pyarrow as pa


def hand_back() -> None:
    """Hands back what is free. Takes milliseconds; does nothing where the C library is not glibc."""
    pa.default_memory_pool().release_unused()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
