"""A disk of the tests' own, small enough to be filled: a file system in memory, mounted for one test."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


class SmallDisk:
    """A mounted disk.

    Attributes:
        folder: Where it is.
    """

    def __init__(self, folder: Path, *, megabytes: int):
        """Mounts it.

        Raises:
            OSError: It cannot be mounted here: that takes root.
        """
        self.folder = folder
        self._filler = folder / "filler"
        folder.mkdir()
        if self._run("mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder):
            raise OSError("no disk can be mounted here")

    def fill(self, *, leave_bytes: int) -> None:
        """Leaves so many bytes free."""
        free = os.statvfs(self.folder)
        self._filler.write_bytes(b"\0" * (free.f_bavail * free.f_frsize - leave_bytes))

    def empty(self) -> None:
        """Takes away what filled it."""
        self._filler.unlink()

    def forbid(self, folder: Path) -> None:
        """Lets nobody write into a folder, root included."""
        assert not self._run("chattr", "-R", "+i", folder)

    def allow(self, folder: Path) -> None:
        """Takes that back."""
        assert not self._run("chattr", "-R", "-i", folder)

    def make_read_only(self) -> None:
        """Mounts all of it read-only. Nothing may have a file open for writing."""
        assert not self._run("mount", "-o", "remount,ro", self.folder)

    def remove(self) -> None:
        """Takes it away, with whatever is on it."""
        self._run("umount", "--lazy", self.folder)

    def _run(self, *command: str | Path) -> int:
        try:
            return subprocess.run([str(part) for part in command], capture_output=True).returncode
        except FileNotFoundError:
            return 127
