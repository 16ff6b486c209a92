"""Room on a disk, taken before it is written to."""

from __future__ import annotations

import os

_BLOCK = b"\0" * (64 << 10)


def take(file_descriptor: int, start: int, size_bytes: int) -> None:
    """Makes a file longer, with room on the disk for all of it.

    Args:
        file_descriptor: Of a file that holds nothing yet from `start` on.
        start: Where in the file.
        size_bytes: How many.

    Raises:
        OSError: ENOSPC or EDQUOT where there is no room.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file_descriptor, start, size_bytes)
        return
    for done in range(0, size_bytes, len(_BLOCK)):
        os.pwrite(file_descriptor, _BLOCK[: size_bytes - done], start + done)
