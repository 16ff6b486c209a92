"""Searches by an index: by its files, and by the matrix once a table is asked again and again."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dmesr_server.serving import matrices
from dmesr_server.serving.neighbours import Found, Neighbours
from dmesr_server.store import CatalogStore, Effort, EmbeddingTable, IndexRecord, Store, VectorIndex
from resident import linux, resident_bytes
from store_workers import column

ITEMS, WIDTH, LATE = 600, 16, 40
IDS = [f"{n:03}" for n in range(ITEMS + LATE)]
ALL = Effort(ef=800, nprobes=128, refine=ITEMS)  # so hard that nothing is missed
ZERO, ABSENT = 7, 8


def numbers(rows: int = ITEMS, seed: int = 0) -> np.ndarray:
    vectors_ND = np.random.default_rng(seed).standard_normal((rows, WIDTH)).astype(np.float32)
    vectors_ND[100:104] = vectors_ND[100]  # equal ones go by id
    vectors_ND[ZERO] = 0  # near to nothing
    return vectors_ND


@pytest.fixture
def catalog(tmp_path: Path) -> CatalogStore:
    return Store(uri=str(tmp_path / "store")).catalog("films")


@pytest.fixture
def searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Neighbours]:
    monkeypatch.setattr(matrices, "_RESTS_SECONDS", 0.0)
    monkeypatch.setattr(matrices, "_RESTS", 0.0)
    found = Neighbours(tmp_path / "matrices")
    yield found
    found.close()


def made(catalog: CatalogStore, vectors_ND: np.ndarray, kind: Any = "IVF_RQ") -> EmbeddingTable:
    """A table with an index and its record, as house-keeping makes them."""
    table = catalog.embeddings("0123456789abcdef")
    for source in ("text", "image"):
        table.declare(source, WIDTH)
    # Last things first: rows lie in another order than their ids.
    for part in np.array_split(np.arange(len(vectors_ND))[::-1], 3):
        put(table, part, vectors_ND[part])
    VectorIndex(table, "text").build(kind)
    record = IndexRecord(
        table=table.name,
        source="text",
        kind=kind,
        rows=len(vectors_ND),
        effort=ALL,
        recall=1.0,
        sample=100,
        built=datetime(2026, 12, 1, tzinfo=UTC),
    )
    catalog.indexes.save(record)
    return table


def put(table: EmbeddingTable, rows: np.ndarray, vectors_RD: np.ndarray) -> None:
    absent = rows == ABSENT
    table.upsert(
        [IDS[row] for row in rows[~absent]], {"text": column(vectors_RD[~absent], [None] * int((~absent).sum()))}
    )
    for row in rows[absent]:  # an item that has other vectors
        table.upsert([IDS[row]], {"image": column(np.ones((1, WIDTH), np.float32), [None])})


def asked(searched: Neighbours, catalog: CatalogStore, table: EmbeddingTable, row: int, k: int = 10) -> Found:
    state, _ = table.seen()
    query_D = searched.vector(table, "text", IDS[row], state)
    assert query_D is not None
    return searched.find(catalog, table, "text", query_D, k, state=state, exclude=[IDS[row]])


def check(found: Found, vectors_ND: np.ndarray, row: int, k: int = 10) -> None:
    exact_ND = vectors_ND.astype(np.float64)
    lengths_N = np.linalg.norm(exact_ND, axis=1)
    cosines_N = exact_ND @ exact_ND[row] / np.where(lengths_N > 0, lengths_N, 1) / lengths_N[row]
    cosines_N[[row, ZERO, ABSENT]] = -np.inf
    rows = np.lexsort((np.arange(len(exact_ND)), -cosines_N.round(6)))[:k]
    assert not found.exact
    assert [item_id for item_id, _ in found.neighbours] == [IDS[row] for row in rows]
    np.testing.assert_allclose([cosine for _, cosine in found.neighbours], cosines_N[rows], atol=2e-6)


def behind(searched: Neighbours) -> None:
    """Waits for what is made behind the back of searches."""
    searched._matrices._behind.submit(int).result()


def quick(searched: Neighbours) -> bool:
    return [kept.near_rows is not None for kept in searched._matrices._kept.values()] == [True]


@pytest.mark.parametrize("kind", ["IVF_RQ", "IVF_HNSW_SQ", "IVF_PQ"])
def test_the_matrix_tells_what_the_files_tell(searched: Neighbours, catalog: CatalogStore, kind: str):
    vectors_ND = numbers()
    table = made(catalog, vectors_ND, kind)
    for time in range(1, 6):
        check(asked(searched, catalog, table, 100), vectors_ND, 100)
        behind(searched)
        assert quick(searched) == (time >= 3), "not for a table that is hardly asked"
    for row in (0, 102, 350, ITEMS - 1):
        for k in (1, 10, 50):
            check(asked(searched, catalog, table, row, k), vectors_ND, row, k)
    state, _ = table.seen()
    assert searched.vector(table, "text", IDS[ABSENT], state) is None
    np.testing.assert_array_equal(searched.vector(table, "text", IDS[ZERO], state), np.zeros(WIDTH))
    unknown = searched.find(catalog, table, "text", vectors_ND[5], 3, state=state, exclude=["no such item"])
    assert unknown.neighbours[0] == (IDS[5], pytest.approx(1, abs=1e-5))


def test_what_is_written_later_is_found_at_once(searched: Neighbours, catalog: CatalogStore):
    vectors_ND = numbers(ITEMS + LATE)
    table = made(catalog, vectors_ND[:ITEMS])
    for _ in range(3):
        check(asked(searched, catalog, table, 5), vectors_ND[:ITEMS], 5)
    behind(searched)
    assert quick(searched)
    put(table, np.arange(ITEMS, ITEMS + LATE), vectors_ND[ITEMS:])
    for _ in range(5):  # by the files, then by a matrix of the new state, with rows that are not in the index
        check(asked(searched, catalog, table, ITEMS + 3), vectors_ND, ITEMS + 3)
        behind(searched)
    assert quick(searched)
    changed_ND = numbers(ITEMS + LATE, seed=1)
    put(table, np.arange(ITEMS + LATE), changed_ND)
    check(asked(searched, catalog, table, 5), changed_ND, 5)
    table.optimise()  # rows get other numbers
    for _ in range(5):
        check(asked(searched, catalog, table, 5), changed_ND, 5)
        behind(searched)
    assert quick(searched)


def test_a_table_of_the_same_name_is_another_one(searched: Neighbours, catalog: CatalogStore):
    first_ND, second_ND = numbers(), numbers(seed=1)
    table = made(catalog, first_ND)
    for _ in range(4):
        check(asked(searched, catalog, table, 5), first_ND, 5)
        behind(searched)
    version = table.version()
    table.drop()
    table = made(catalog, second_ND)
    assert table.version() == version
    for _ in range(4):
        check(asked(searched, catalog, table, 5), second_ND, 5)
        behind(searched)
    exact = searched.find(catalog, table, "text", second_ND[5], 1, state=table.seen()[0], exact=True)
    assert exact.neighbours == [(IDS[5], pytest.approx(1, abs=1e-5))]


def test_a_table_that_is_written_to_all_the_time_is_not_followed_all_the_time(
    searched: Neighbours, catalog: CatalogStore, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(matrices, "_RESTS_SECONDS", 3_600.0)
    vectors_ND = numbers()
    table = made(catalog, vectors_ND)
    for _ in range(3):
        asked(searched, catalog, table, 5)
    behind(searched)
    assert quick(searched)
    changed_ND = numbers(seed=1)
    put(table, np.arange(ITEMS), changed_ND)
    for _ in range(6):
        check(asked(searched, catalog, table, 5), changed_ND, 5)
    behind(searched)
    (kept,) = searched._matrices._kept.values()
    assert kept.matrix.state != table.seen()[0], "it rests first"


@linux
def test_what_searches_looked_at_is_handed_back(searched: Neighbours, catalog: CatalogStore, tmp_path: Path):
    vectors_ND = numbers()
    table = made(catalog, vectors_ND)
    for _ in range(4):
        check(asked(searched, catalog, table, 5), vectors_ND, 5)
        behind(searched)
    (file,) = (tmp_path / "matrices").glob("*.arrow")
    assert resident_bytes(file) > 0
    searched.hand_back()
    assert resident_bytes(file) == 0
    check(asked(searched, catalog, table, 5), vectors_ND, 5)
