"""What is mapped stays readable when its pages were handed back; it counts as memory once it is looked at again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dmesr_server.mapped_file import MappedFile
from resident import linux, resident_bytes


@linux
def test_what_was_looked_at_is_handed_back(tmp_path: Path):
    numbers_N = np.random.default_rng(0).standard_normal(1_000_000)
    path = tmp_path / "numbers.bin"
    path.write_bytes(numbers_N.tobytes())
    file = MappedFile(path)
    mapped_N = np.frombuffer(file.mapping, np.float64)
    assert mapped_N.sum() == numbers_N.sum()
    assert resident_bytes(path) >= numbers_N.nbytes

    file.hand_back()
    assert resident_bytes(path) == 0
    path.unlink()
    assert mapped_N[500_000] == numbers_N[500_000]
    assert 0 < resident_bytes(path) < numbers_N.nbytes / 2
    np.testing.assert_array_equal(mapped_N, numbers_N)


def test_what_cannot_be_mapped(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        MappedFile(tmp_path / "none")
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="empty"):
        MappedFile(tmp_path / "empty")
