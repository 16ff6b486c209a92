"""What counts as this process's memory, told by Linux."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

linux = pytest.mark.skipif(sys.platform != "linux", reason="the memory of a mapping is told by Linux")


def resident_bytes(file: Path) -> int:
    """Of a mapped file, also where its name is gone."""
    maps = psutil.Process().memory_maps(grouped=False)
    return sum(one.rss for one in maps if Path(one.path.removesuffix(" (deleted)")) == file)
