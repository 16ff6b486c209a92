"""The store's searches: exact by a matrix that is mapped from a file, or by LanceDB's index."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dmesr_server.errors import ServiceError
from dmesr_server.store import EmbeddingTable, SourceColumn, Store, VectorIndex, matrix_of
from dmesr_server.topk import best


@pytest.fixture
def table(tmp_path: Path) -> EmbeddingTable:
    return Store(uri=str(tmp_path / "store")).catalog("films").embeddings("r")


def put(table: EmbeddingTable, ids: list[str], vectors: object, present: list[bool] | None = None) -> None:
    vectors_ND = np.array(vectors, np.float32)
    table.declare("text", vectors_ND.shape[1])
    there_N = np.ones(len(ids), bool) if present is None else np.array(present)
    table.upsert(ids, {"text": SourceColumn(vectors_ND, there_N, [None] * len(ids))})


def test_nearest_is_exact_cosine(table: EmbeddingTable, tmp_path: Path):
    ids = ["east", "north", "northeast", "west", "zero", "absent", "far-east"]
    vectors = [[1, 0], [0, 2], [3, 3], [-1, 0], [0, 0], [0, 0], [100, 0]]
    put(table, ids, vectors, [True] * 5 + [False, True])
    matrix = matrix_of(table, "text", tmp_path / "run")
    assert matrix.ids_N.to_pylist() == ["east", "far-east", "north", "northeast", "west"]
    found = matrix.nearest(np.float32([5, 0]), 10)
    assert [item_id for item_id, _ in found] == ["east", "far-east", "northeast", "north", "west"]
    np.testing.assert_allclose([cosine for _, cosine in found], [1, 1, 2**-0.5, 0, -1], atol=1e-6)
    without = matrix.nearest(np.float32([5, 0]), 2, exclude=["east", "nobody"])
    assert [item_id for item_id, _ in without] == ["far-east", "northeast"]
    # What is not allowed is left out before the nearest are taken.
    only = matrix.nearest(np.float32([5, 0]), 2, allowed_N=np.array([False, False, True, False, True]))
    assert [item_id for item_id, _ in only] == ["north", "west"]
    assert matrix.nearest(np.float32([0, 0]), 2) == []
    assert matrix.nearest(np.float32([5, 0]), 2, allowed_N=np.zeros(5, bool)) == []


def test_the_best_of_equal_scores_are_the_first():
    assert best(np.float32([1, 3, 3, 2, 3]), 2).tolist() == [1, 2]
    assert best(np.float32([-np.inf, 1, -np.inf]), 3).tolist() == [1]
    scores_N = np.random.default_rng(0).integers(0, 50, 1_000).astype(np.float32)
    assert best(scores_N, 100).tolist() == sorted(range(1_000), key=lambda row: (-scores_N[row], row))[:100]


def test_a_matrix_follows_its_table(table: EmbeddingTable, tmp_path: Path):
    folder = tmp_path / "run"
    put(table, ["a"], [[1, 0]])
    first = matrix_of(table, "text", folder)
    (file,) = folder.iterdir()
    made = file.stat().st_mtime_ns
    again = matrix_of(table, "text", folder)
    assert (again.state, file.stat().st_mtime_ns) == (first.state, made)  # mapped, not made anew
    put(table, ["b"], [[0, 1]])
    later = matrix_of(table, "text", folder)
    assert later.ids_N.to_pylist() == ["a", "b"]
    assert first.nearest(np.float32([0, 1]), 5) == [("a", 0.0)]  # whoever has the old one keeps it
    assert len(list(folder.iterdir())) == 1
    file = next(folder.iterdir())
    file.write_bytes(file.read_bytes()[:50])  # a damaged file is made anew
    assert matrix_of(table, "text", folder).nearest(np.float32([0, 1]), 1) == [("b", 1.0)]
    with pytest.raises(ServiceError) as caught:
        matrix_of(table, "image", folder)
    assert caught.value.reason == "SOURCE_NOT_FOUND"


def test_a_matrix_in_many_parts(table: EmbeddingTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dmesr_server.store.source_matrix._BATCH_BYTES", 1_000)
    vectors_ND = np.random.default_rng(0).standard_normal((300, 8)).astype(np.float32)
    ids = [f"{n:03}" for n in range(300)]
    put(table, ids, vectors_ND)
    matrix = matrix_of(table, "text", tmp_path)
    assert len(matrix.units.parts) > 10
    units_ND = vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    query_D = vectors_ND[17]
    order = np.argsort(-(units_ND @ query_D), kind="stable")[:20]
    assert [item_id for item_id, _ in matrix.nearest(query_D, 20)] == [ids[row] for row in order]
    assert (len(matrix.units), matrix.units.size) == (300, 2_400)
    for start, stop in ((0, 300), (0, 1), (5, 290), (299, 300), (290, 400)):
        np.testing.assert_allclose(matrix.units[start:stop], units_ND[start:stop], rtol=1e-6)
    rows_R = np.array([299, 0, 17, 17, 150])
    np.testing.assert_allclose(matrix.units.take(rows_R), units_ND[rows_R], rtol=1e-6)
    some, found_SD = matrix.sample(7)
    np.testing.assert_allclose(found_SD, units_ND[[int(item_id) for item_id in some]], rtol=1e-6)
    assert len(some) == 7


def test_rabitq_gives_way_where_vectors_are_no_whole_bytes_wide(table: EmbeddingTable):
    vectors_ND = np.random.default_rng(0).standard_normal((300, 20)).astype(np.float32)
    put(table, [f"{n:03}" for n in range(300)], vectors_ND)
    index = VectorIndex(table, "text")
    assert [index.fitting(kind) for kind in ("IVF_RQ", "IVF_HNSW_SQ")] == ["IVF_PQ", "IVF_HNSW_SQ"]
    index.build(index.fitting("IVF_RQ"))
    assert index.state().kind == "IVF_PQ"


@pytest.mark.parametrize("kind", ["IVF_RQ", "IVF_HNSW_SQ", "IVF_PQ"])
def test_an_index_finds_what_the_exact_search_finds(table: EmbeddingTable, tmp_path: Path, kind: str):
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((20, 16)) * 2
    vectors_ND = (centres[generator.integers(0, 20, 600)] + generator.standard_normal((600, 16))).astype(np.float32)
    ids = [f"{n:03}" for n in range(600)]
    put(table, ids[:500], vectors_ND[:500])
    index = VectorIndex(table, "text")
    assert index.state() is None
    index.build(kind)
    state = index.state()
    assert (state.kind, state.indexed_rows, state.unindexed_rows) == (kind, 500, 0)
    effort, recall, sample = index.tuned(matrix_of(table, "text", tmp_path))
    assert (recall >= 0.97, sample) == (True, 100)

    # What is written later is found at once, and taken up by house-keeping.
    put(table, ids[500:], vectors_ND[500:])
    assert index.state().unindexed_rows == 100
    near = index.nearest(vectors_ND[550], 3, effort=effort, exclude=["zzz"])
    assert near[0] == (ids[550], pytest.approx(1, abs=1e-5))
    assert ids[550] not in dict(index.nearest(vectors_ND[550], 3, effort=effort, exclude=[ids[550]]))
    table.optimise()
    assert index.state().unindexed_rows == 0
