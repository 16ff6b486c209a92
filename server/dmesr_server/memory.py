"""Memory that was freed goes back to the system.

glibc and Arrow keep what a bulk write or an adaptation freed, for the next one: a process that took in a million items
would hold hundreds of megabytes for ever.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc

import pyarrow as pa

from dmesr_server.cores import usable_cores

_M_ARENA_MAX, _M_MMAP_THRESHOLD = -8, -3  # of glibc's mallopt
_FEWEST_HEAPS = 2


def bound_heaps() -> None:
    """Has all threads share two of glibc's heaps, Arrow too, and large blocks go back at once. For a process's start.

    For a process that works on groups of items for hours: allocating takes a little longer, and the memory stays flat.
    By itself each thread keeps a heap of what it freed, and so does Arrow's own allocator: an enricher grew by 125 MB
    between 1,000 and 10,000 items. Two heaps and the threshold left 60 MB of that, Arrow on the same heaps 37.
    Other C libraries than glibc go on as they are.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_ARENA_MAX, _FEWEST_HEAPS)
        library.mallopt(_M_MMAP_THRESHOLD, 1 << 20)
        pa.set_memory_pool(pa.system_memory_pool())


def few_heaps() -> None:
    """Has all threads share as many of glibc's heaps as there are cores, and Arrow give back what it freed soon after.

    For a process's start, before its threads. By itself glibc has eight heaps a core, and each keeps what its threads
    freed in between; so do the threads of mimalloc, Arrow's usual allocator. After a model of 200,000 items was
    published a server held 900 MB, with two heaps 650, with jemalloc for Arrow 490.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, max(_FEWEST_HEAPS, usable_cores()))
    if "jemalloc" in pa.supported_memory_backends():
        pa.set_memory_pool(pa.jemalloc_memory_pool())


def hand_back() -> None:
    """Hands back what is free. Takes milliseconds; does nothing where the C library is not glibc."""
    pa.default_memory_pool().release_unused()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def leave_to_live() -> None:
    """Takes what is there now, which lives as long as the process does, out of the garbage collector's rounds.

    Some hundred thousand objects of modules and of the parts of a server: to look through them again and again took a
    tenth of a server's time, in stops of many milliseconds.
    """
    gc.collect()
    gc.freeze()
