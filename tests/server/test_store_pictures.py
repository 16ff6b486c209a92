from __future__ import annotations

import hashlib
import os

import pytest
from dmesr_server.store import Picture, Store
from store_workers import in_threads


@pytest.fixture
def pictures(tmp_path):
    return Store(uri=str(tmp_path)).catalog("films").pictures


def test_pictures_come_back_byte_for_byte(pictures):
    data = os.urandom(6 << 20)  # more than a message and more than a page of lance
    sha256 = hashlib.sha256(data).hexdigest()
    assert pictures.missing([sha256]) == [sha256]
    assert pictures.put(sha256, data, "image/jpeg", 640, 480) is True
    assert pictures.put(sha256, data, "image/jpeg", 640, 480) is False
    assert pictures.get(sha256) == Picture(sha256, data, "image/jpeg", 640, 480)
    assert pictures.count() == 1


def test_missing_keeps_the_order_asked(pictures):
    pictures.put("b" * 64, b"x", "image/png", 1, 1)
    assert pictures.missing(["c" * 64, "b" * 64, "a" * 64, "c" * 64]) == ["c" * 64, "a" * 64]
    assert pictures.missing([]) == []
    assert pictures.get("a" * 64) is None
    assert list(pictures.get_many(["a" * 64, "b" * 64])) == ["b" * 64]


def test_several_pictures_in_one_commit(pictures):
    pictures.put("b" * 64, b"x", "image/png", 1, 1)
    new = [Picture(letter * 64, letter.encode(), "image/png", 1, 1) for letter in "abc"]
    assert pictures.put_many(new) == [True, False, True]
    assert pictures.get("b" * 64).data == b"x"
    assert pictures.put_many([]) == []


def test_threads_put_the_same_pictures(tmp_path):
    def put(name: str) -> None:
        table = Store(uri=str(tmp_path)).catalog("films").pictures
        for number in range(5):
            table.put(f"{number:064x}", b"%d" % number * 1_000, "image/png", 1, 1)

    in_threads(put, [(str(number),) for number in range(6)])
    table = Store(uri=str(tmp_path)).catalog("films").pictures
    assert table.count() == 5
    assert table.get(f"{3:064x}").data == b"3" * 1_000
