"""Gives memory back that has been freed."""

from __future__ import annotations

import ctypes
import sys
from functools import lru_cache
from typing import Any


def give_back() -> None:
    """Returns freed memory to the system, where the C library would keep it.

    Forward passes over texts of every length leave glibc with hundreds of megabytes in pieces: a process that encodes
    for hours would seem to leak. Takes milliseconds; does nothing with other C libraries.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@lru_cache(maxsize=1)
def _trim() -> Any:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
