"""Exact searches: by all floats, and by eight-bit codes once a matrix is asked again and again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from dmesr_server.serving import codes, matrices
from dmesr_server.serving.neighbours import Found, Neighbours
from dmesr_server.store import CatalogStore, EmbeddingTable, Store
from resident import linux, resident_bytes
from store_workers import column

ITEMS, WIDTH = 5_000, 16
IDS = [f"{n:04}" for n in range(ITEMS)]


def numbers(seed: int = 0) -> np.ndarray:
    vectors_ND = np.random.default_rng(seed).standard_normal((ITEMS, WIDTH)).astype(np.float32)
    vectors_ND[100:110] = vectors_ND[100]  # equal ones go by id
    vectors_ND[7] = 0  # near to nothing
    return vectors_ND


@pytest.fixture
def catalog(tmp_path: Path) -> CatalogStore:
    return Store(uri=str(tmp_path / "store")).catalog("films")


@pytest.fixture
def table(catalog: CatalogStore) -> EmbeddingTable:
    table = catalog.embeddings("0123456789abcdef")
    table.declare("text", WIDTH)
    put(table, numbers())
    return table


@pytest.fixture
def searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Neighbours]:
    if codes._queries_here() is None:
        pytest.skip("this processor's products of 8-bit numbers are not exact")
    monkeypatch.setattr(codes, "_WORTH_CODES", 1)
    found = Neighbours(tmp_path / "matrices")
    yield found
    found.close()


def put(table: EmbeddingTable, vectors_ND: np.ndarray) -> None:
    table.upsert(IDS, {"text": column(vectors_ND, [None] * ITEMS)})


def wait_for_codes(searched: Neighbours, *, there: bool = True) -> None:
    deadline = time.monotonic() + 30
    while [one.codes is not None for one in searched._matrices._kept.values()] != [there]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def by_hand(vectors_ND: np.ndarray, query_D: np.ndarray, k: int, barred: list[int]) -> list[tuple[str, float]]:
    exact_ND = vectors_ND.astype(np.float64)
    lengths_N = np.linalg.norm(exact_ND, axis=1)
    cosines_N = exact_ND @ query_D / np.where(lengths_N > 0, lengths_N, 1) / np.linalg.norm(query_D.astype(np.float64))
    cosines_N[barred] = cosines_N[lengths_N == 0] = -np.inf
    rows = np.lexsort((np.arange(ITEMS), -cosines_N.round(7)))[:k]
    return [(IDS[row], float(cosines_N[row])) for row in rows if np.isfinite(cosines_N[row])]


def find(searched: Neighbours, catalog: CatalogStore, table: EmbeddingTable, *what: Any, **how: Any) -> Found:
    return searched.find(catalog, table, *what, state=table.seen()[0], **how)


def check(found: Found, expected: list[tuple[str, float]]) -> None:
    assert found.exact
    assert [item_id for item_id, _ in found.neighbours] == [item_id for item_id, _ in expected]
    np.testing.assert_allclose(
        [cosine for _, cosine in found.neighbours], [cosine for _, cosine in expected], atol=2e-6
    )


def test_codes_find_what_floats_find(
    searched: Neighbours, catalog: CatalogStore, table: EmbeddingTable, monkeypatch: pytest.MonkeyPatch
):
    vectors_ND = numbers()
    few = np.arange(ITEMS) % 97 == 3
    asks = [(vectors_ND[row], row) for row in (0, 4_999, 100, 105)] + [(np.eye(1, WIDTH, 3, dtype=np.float32)[0], None)]

    def ask_all() -> None:
        for query_D, row in asks:
            for allowed_N in (None, few):
                for k in (1, 10, 60):
                    exclude = [] if row is None else [IDS[row]]
                    allowed = None if allowed_N is None else lambda ids: few[np.array(ids.to_pylist(), np.int64)]
                    found = find(searched, catalog, table, "text", query_D, k, exclude=exclude, allowed=allowed)
                    barred = [] if row is None else [row]
                    if allowed_N is not None:
                        barred += np.flatnonzero(~allowed_N).tolist()
                    check(found, by_hand(vectors_ND, query_D, k, barred))

    monkeypatch.setattr(matrices, "_ASKED_BEFORE_CODES", 1_000)
    ask_all()  # by floats
    (kept,) = searched._matrices._kept.values()
    assert kept.codes is None
    monkeypatch.setattr(matrices, "_ASKED_BEFORE_CODES", kept.asked + 1)
    find(searched, catalog, table, "text", vectors_ND[0], 1)
    wait_for_codes(searched)
    rows_R = kept.by_codes(vectors_ND[0] / np.linalg.norm(vectors_ND[0]), 10, np.zeros(0, np.int64), None)
    assert rows_R is not None
    assert 10 <= len(rows_R) < ITEMS / 32
    ask_all()
    searched.hand_back()
    ask_all()


def test_codes_are_of_the_version_that_is_searched(searched: Neighbours, catalog: CatalogStore, table: EmbeddingTable):
    query_D = numbers()[0]
    for asked in range(1, 6):
        check(find(searched, catalog, table, "text", query_D, 5), by_hand(numbers(), query_D, 5, []))
        if asked == 2:
            (kept,) = searched._matrices._kept.values()
            assert kept.codes is None, "not for a matrix that is hardly asked"
    wait_for_codes(searched)
    put(table, numbers(seed=1))
    check(find(searched, catalog, table, "text", query_D, 5), by_hand(numbers(seed=1), query_D, 5, []))
    wait_for_codes(searched, there=False)


def test_codes_of_all_matrices_have_a_bound(
    searched: Neighbours, catalog: CatalogStore, table: EmbeddingTable, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(matrices, "_CODE_BYTES", 2 * ITEMS * WIDTH)
    for source in ("clip", "ours"):
        table.declare(source, WIDTH)
        table.upsert(IDS, {source: column(numbers(), [None] * ITEMS)})
    for source in ("text", "clip", "ours"):
        for _ in range(3):
            find(searched, catalog, table, source, numbers()[0], 5)
        searched._matrices._behind.submit(int).result()  # the codes before it are made
    coded = {key[2] for key, kept in searched._matrices._kept.items() if kept.codes is not None}
    assert coded == {"clip", "ours"}, "the one that was asked longest ago has lost its own"
    check(find(searched, catalog, table, "text", numbers()[0], 5), by_hand(numbers(), numbers()[0], 5, []))
    monkeypatch.setattr(matrices, "_CODE_BYTES", 1)
    table.declare("late", WIDTH)
    table.upsert(IDS, {"late": column(numbers(), [None] * ITEMS)})
    for _ in range(3):
        find(searched, catalog, table, "late", numbers()[0], 5)
    searched._matrices._behind.submit(int).result()
    coded = [kept for kept in searched._matrices._kept.values() if kept.codes is not None]
    assert not coded, "one that is too large for itself gets none"


def test_ids_are_arrow_texts_for_filters(searched: Neighbours, catalog: CatalogStore, table: EmbeddingTable):
    seen: list[pa.DataType] = []

    def allowed(ids_N: pa.LargeStringArray) -> np.ndarray:
        seen.append(ids_N.type)
        return np.zeros(len(ids_N), bool)

    for _ in range(4):
        assert find(searched, catalog, table, "text", numbers()[0], 5, allowed=allowed).neighbours == []
    wait_for_codes(searched)
    assert find(searched, catalog, table, "text", numbers()[0], 5, allowed=allowed).neighbours == []
    assert set(seen) == {pa.large_string()}


@linux
def test_what_searches_looked_at_is_handed_back_once_there_are_codes(
    searched: Neighbours, catalog: CatalogStore, table: EmbeddingTable, tmp_path: Path
):
    found = find(searched, catalog, table, "text", numbers()[0], 10)
    (file,) = (tmp_path / "matrices").glob("*.arrow")
    searched.hand_back()
    assert resident_bytes(file) > 0, "without codes every search looks at every vector"
    for _ in range(2):
        find(searched, catalog, table, "text", numbers()[0], 10)
    wait_for_codes(searched)
    searched.hand_back()
    assert resident_bytes(file) == 0
    check(find(searched, catalog, table, "text", numbers()[0], 10), found.neighbours)


def test_a_matrix_that_lost_its_content_is_made_anew(catalog: CatalogStore, table: EmbeddingTable, tmp_path: Path):
    first, second = Neighbours(tmp_path / "matrices"), Neighbours(tmp_path / "matrices")
    found = find(first, catalog, table, "text", numbers()[0], 10)
    first.close()
    (file,) = (tmp_path / "matrices").glob("*.arrow")
    file.write_bytes(b"")
    assert find(second, catalog, table, "text", numbers()[0], 10) == found
    second.close()
