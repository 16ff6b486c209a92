"""Files that are mapped for reading: in memory once, however many processes look at them."""

from __future__ import annotations

import mmap
from pathlib import Path


class MappedFile:
    """A whole file, mapped. It stays readable when its name is gone, for as long as this or a view of it is held.

    Attributes:
        path: Where it was when it was mapped.
        mapping: The bytes; NumPy and Arrow take them as they are.
    """

    def __init__(self, path: Path):
        """Maps a file.

        Raises:
            FileNotFoundError: There is none.
            ValueError: It is empty.
        """
        self.path = path
        with path.open("rb") as file:
            self.mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def hand_back(self) -> None:
        """Lets go of what was looked at; it stays readable.

        Each look counts as memory of this process from then on, and with it all that the system keeps in one piece:
        64 KB to 2 MB. What is looked at again is found in the system's cache of files, without reading the disk.
        """
        if hasattr(mmap, "MADV_DONTNEED"):
            self.mapping.madvise(mmap.MADV_DONTNEED)
