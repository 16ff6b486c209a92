"""Dumps with one object a line: gzipped or plain, whole or damaged. The rule for bad lines."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from dmesr import RejectedRow
from dmesr_trainer.datasets import DatasetError
from dmesr_trainer.datasets.lines import Lines, UnusableLineError


def number(row: dict[str, Any]) -> int:
    if not isinstance(row.get("n"), int):
        raise UnusableLineError(f"n is {row.get('n')!r}; expected a number")
    return int(row["n"])


def lines(path: Path) -> Lines[int]:
    return Lines(path, what="numbered objects", read=number)


def test_gzip_is_seen_by_the_first_bytes(tmp_path: Path):
    packed, plain = tmp_path / "a.json", tmp_path / "b.json.gz"
    packed.write_bytes(gzip.compress(b'{"n": 1}\n\n{"n": 2}'))
    plain.write_bytes(b'{"n": 3}\r\n')
    assert list(lines(packed)) == [1, 2]
    assert list(lines(plain)) == [3]


def test_python_dicts_of_older_releases(tmp_path: Path):
    path = tmp_path / "meta.json"
    path.write_text("""{'n': 1, 'title': "Mario's \\'64\\'", 'x': None}\n{u'n': 2, 'odd': '\\d'}\n{"n": 3}\n""")
    assert list(lines(path)) == [1, 2, 3]


def test_bad_lines_are_left_out_and_told_with_their_number(tmp_path: Path):
    path = tmp_path / "some.json"
    path.write_bytes(b'{"n": 1}\n{"n": \n\n[1]\n{"n": "one"}\n\xff\xfe{"n": 1}\n{"n": __import__("os")}\n{"n": 7}\n')
    read = lines(path)
    assert [one for one in read if not isinstance(one, RejectedRow)] == [1, 7]
    told = [problem.message for problem in read.problems]
    assert read.rejected == 5
    assert [problem.metadata["line"] for problem in read.problems] == ["2", "4", "5", "6", "7"]
    assert told[0].startswith("line 2 of some.json: it is no JSON")
    assert told[1].endswith("expected an object, got a list")
    assert told[2].endswith("n is 'one'; expected a number")
    assert "neither JSON" in told[3]
    assert list(read.usable()) == [1, 7]
    assert read.rejected == 5  # counted anew, not added


def test_a_few_bad_lines_among_many_are_left_out(tmp_path: Path):
    path = tmp_path / "some.json"
    good = [json.dumps({"n": n}) for n in range(2000)]
    path.write_text("\n".join(good[:1200] + ["oops"] * 11 + good[1200:]))
    read = lines(path)
    assert len(list(read.usable())) == 2000
    assert read.rejected == 11


def test_more_than_ten_and_one_in_a_hundred_is_another_kind_of_file(tmp_path: Path):
    path = tmp_path / "page.json"
    path.write_text('{"n": 1}\n' * 20 + "<p>\n" * 50)
    with pytest.raises(
        DatasetError, match=r"does not look like numbered objects: 11 of its first 31 lines.*line 21 of page\.json"
    ):
        list(lines(path))
    path.write_text("<html>\n")
    with pytest.raises(DatasetError, match=r"holds no numbered objects that can be used: line 1 of page\.json"):
        list(lines(path))
    path.write_text("")
    with pytest.raises(DatasetError, match="holds no numbered objects"):
        list(lines(path))


@pytest.mark.parametrize("cut", [30, -4])
def test_a_gzip_that_breaks_off_is_refused(cut: int, tmp_path: Path):
    path = tmp_path / "cut.json.gz"
    path.write_bytes(gzip.compress(b"".join(b'{"n": %d}\n' % n for n in range(5000)))[:cut])
    with pytest.raises(DatasetError, match=r"cut\.json\.gz breaks off or is damaged after line \d+.*download it again"):
        list(lines(path))


def test_a_gzip_with_a_wrong_byte_is_refused(tmp_path: Path):
    path = tmp_path / "rot.json.gz"
    packed = bytearray(gzip.compress(b"".join(b'{"n": %d}\n' % n for n in range(5000))))
    packed[-6] ^= 0xFF
    path.write_bytes(packed)
    with pytest.raises(DatasetError, match="breaks off or is damaged"):
        list(lines(path))


def test_a_missing_file(tmp_path: Path):
    with pytest.raises(DatasetError, match=r"cannot read .*nothing\.json: No such file"):
        list(lines(tmp_path / "nothing.json"))


def test_memory_does_not_grow_with_the_file(tmp_path: Path):
    path = tmp_path / "large.json"
    with path.open("w") as file:
        for n in range(4_000):
            file.write(json.dumps({"n": n, "text": "x" * 5_000}) + "\n")
    tracemalloc.start()
    try:
        assert sum(lines(path).usable()) == sum(range(4_000))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 20_000_000
    assert peak < 1_000_000
