from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from dmesr_server.errors import ServiceError
from dmesr_server.store import EmbeddingTable, Store
from dmesr_server.store.tidiness import WRITES_BEFORE_LOOK
from store_workers import column, in_processes, in_threads, upsert_source


@pytest.fixture
def table(tmp_path: Path) -> EmbeddingTable:
    return Store(uri=str(tmp_path)).catalog("films").embeddings("0123456789abcdef")


def numbers(count: int, dim: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


def matrix(rows: pa.Table | pa.RecordBatch, source: str) -> np.ndarray:
    """[N, D]; absent rows are NaN."""
    array = rows[source].combine_chunks() if isinstance(rows, pa.Table) else rows[source]
    return np.array(
        [[np.nan] * array.type.list_size if vector is None else vector for vector in array.to_pylist()], np.float32
    ).reshape(-1, array.type.list_size)


def test_nothing_was_ever_written(table):
    assert (table.sources(), table.version(), table.count(), table.hashes(["a"])) == ({}, 0, 0, {})
    assert list(table.scan([])) == []
    assert table.take(["a"], []).to_pylist() == [{"item_id": "a", "found": False}]
    assert table.present("text") == 0
    table.delete(["a"])
    assert table.version() == 0, "reads do not make the table"


def test_sources_are_declared_once(table):
    table.declare("text", 12)
    table.declare("our clip-vectors/v2 ü", 3)
    version = table.version()
    table.declare("text", 12)
    assert table.version() == version
    assert table.sources() == {"text": 12, "our clip-vectors/v2 ü": 3}
    with pytest.raises(ServiceError) as caught:
        table.declare("text", 13)
    assert caught.value.reason == "DIMENSION_MISMATCH"
    assert caught.value.metadata == {"source": "text", "expected": "12", "actual": "13"}


def test_unknown_source(table):
    table.declare("text", 2)
    for ask in (
        lambda: table.upsert(["a"], {"image": column([[1, 2]], ["h"])}),
        lambda: list(table.scan(["image"])),
        lambda: table.take(["a"], ["text", "image"]),
    ):
        with pytest.raises(ServiceError) as caught:
            ask()
        assert caught.value.reason == "SOURCE_NOT_FOUND"
        assert "text" in caught.value.message


def test_vectors_come_back_bit_for_bit(table):
    table.declare("text", 20)
    vectors = numbers(200, 20)
    vectors[0] = np.float32([0.1, -0.0, 1e-45, 3.4028235e38, -1e-38, *([1 / 3] * 15)])
    ids = [f"i{number:03d}" for number in range(200)]
    assert table.upsert(ids, {"text": column(vectors, ["h"] * 200)}) == ["inserted"] * 200
    batch_rows = pa.concat_batches(table.scan(["text"]))
    assert batch_rows["item_id"].to_pylist() == ids
    assert batch_rows["text"].flatten().to_numpy().tobytes() == vectors.tobytes()
    taken = table.take(ids, ["text"])["text"].combine_chunks().flatten().to_numpy()
    assert taken.tobytes() == vectors.tobytes()


def test_wide_vectors_may_be_absent(table):
    """LanceDB itself refuses null vectors of ten dimensions and more unless it is told otherwise."""
    table.declare("image", 384)
    vectors = numbers(3, 384)
    vectors[1] = np.nan  # what stands in an absent row does not matter
    outcomes = table.upsert(["a", "b", "c"], {"image": column(vectors, ["1", "2", None], [True, False, False])})
    assert outcomes == ["inserted"] * 3
    assert table.hashes(["a", "b", "c", "d"]) == {"a": {"image": "1"}, "b": {"image": None}, "c": {"image": None}}
    assert (table.count(), table.present("image")) == (3, 1)
    (batch,) = table.scan(["image"])
    assert batch["image"].is_null().to_pylist() == [False, True, True]
    np.testing.assert_array_equal(matrix(batch, "image")[0], vectors[0])


def test_writing_one_source_leaves_the_others(table):
    table.declare("text", 12)
    table.declare("image", 3)
    text, image = numbers(3, 12), numbers(3, 3, seed=1)
    table.upsert(["a", "b", "c"], {"text": column(text, ["t1", "t2", "t3"])})
    assert table.upsert(["b", "d"], {"image": column(image[:2], ["i1", "i2"])}) == ["inserted", "inserted"]
    assert table.upsert(["a", "b"], {"text": column(text[1:], ["t1'", "t2'"])}) == ["updated", "updated"]
    rows = table.take(["a", "b", "c", "d"], ["text", "image"])
    np.testing.assert_array_equal(matrix(rows, "text"), [text[1], text[2], text[2], [np.nan] * 12])
    np.testing.assert_array_equal(matrix(rows, "image"), [[np.nan] * 3, image[0], [np.nan] * 3, image[1]])
    assert table.hashes(["b"]) == {"b": {"text": "t2'", "image": "i1"}}


def test_a_source_declared_later_is_null_for_older_rows(table):
    table.declare("text", 2)
    table.upsert(["a", "b"], {"text": column([[1, 2], [3, 4]], ["1", "2"])})
    before = table.version()
    table.declare("clip", 2)
    table.upsert(["b"], {"clip": column([[5, 6]], ["c"])})
    assert table.take(["a", "b"], ["text", "clip"]).to_pylist() == [
        {"item_id": "a", "found": True, "text": [1, 2], "clip": None},
        {"item_id": "b", "found": True, "text": [3, 4], "clip": [5, 6]},
    ]
    assert table.sources(version=before) == {"text": 2}
    with pytest.raises(ServiceError, match="no source clip"):
        table.take(["a"], ["clip"], version=before)


def test_same_hash_writes_nothing(table):
    table.declare("text", 2)
    table.upsert(["a", "b"], {"text": column([[1, 2], [0, 0]], ["h", None], [True, False])})
    version = table.version()
    again = table.upsert(["b", "a"], {"text": column([[9, 9], [9, 9]], [None, "h"], [False, True])})
    assert again == ["unchanged", "unchanged"]
    assert table.version() == version
    assert table.upsert(["a", "b"], {"text": column([[9, 9]] * 2, ["h", "new"])}) == ["unchanged", "inserted"]
    assert table.take(["a", "b"], ["text"])["text"].to_pylist() == [[1, 2], [9, 9]]
    assert table.upsert(["a"], {"text": column([[0, 0]], [None], [False])}) == ["updated"], "made absent"
    assert table.hashes(["a"]) == {"a": {"text": None}}


def test_who_may_no_longer_write_puts_nothing_over_what_was_written_since(table):
    table.declare("text", 1)
    table.declare("image", 1)
    table.upsert(["a", "b"], {"text": column([[1], [1]], ["1", "1"])})

    class LeaseLostError(Exception):
        pass

    def another_writes_and_then_it_is_asked() -> None:
        if table.hashes(["b"])["b"]["text"] == "theirs":
            raise LeaseLostError
        table.upsert(["b", "c"], {"text": column([[2], [2]], ["theirs", "theirs"])})

    with pytest.raises(LeaseLostError):
        table.upsert(
            ["a", "b", "c"],
            {"text": column([[3]] * 3, ["mine"] * 3)},
            allowed=another_writes_and_then_it_is_asked,
        )
    texts = {item_id: hashes["text"] for item_id, hashes in table.hashes(["a", "b", "c"]).items()}
    assert {texts["b"], texts["c"]} == {"theirs"}
    assert texts["a"] in ("1", "mine"), "nobody else had written this one"


def test_vectors_without_a_hash_are_told_apart_by_their_bytes(table):
    table.declare("clip", 2)
    assert table.upsert(["a"], {"clip": column([[1, 2]], [None])}) == ["inserted"]
    assert table.upsert(["a"], {"clip": column([[1, 2]], [None])}) == ["unchanged"]
    assert table.upsert(["a"], {"clip": column([[1, 3]], [None])}) == ["updated"]
    assert table.present("clip") == 1


def test_of_duplicates_in_one_batch_the_last_stands(table):
    table.declare("text", 2)
    outcomes = table.upsert(["a", "b", "a"], {"text": column([[1, 1], [2, 2], [3, 3]], ["1", "2", "3"])})
    assert outcomes == ["inserted"] * 3
    assert table.count() == 2
    assert table.take(["a"], ["text"])["text"].to_pylist() == [[3, 3]]


@pytest.mark.parametrize("shape", [(2, 3), (1, 2), (2,)])
def test_wrong_shapes_write_nothing(table, shape):
    table.declare("text", 2)
    version = table.version()
    with pytest.raises(ServiceError) as caught:
        table.upsert(["a", "b"], {"text": column(np.zeros(shape), ["1", "2"], [True, True])})
    assert caught.value.reason == "DIMENSION_MISMATCH"
    assert table.version() == version


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_vectors_that_are_not_finite_write_nothing(table, value):
    table.declare("text", 2)
    with pytest.raises(ServiceError) as caught:
        table.upsert(["a", "b"], {"text": column([[1, 2], [1, value]], ["1", "2"])})
    assert caught.value.reason == "NON_FINITE_VECTOR"
    assert caught.value.metadata["item_id"] == "b"
    assert table.count() == 0


def test_take_keeps_the_callers_order(table):
    table.declare("text", 1)
    table.upsert([f"i{number}" for number in range(50)], {"text": column(np.arange(50)[:, None], ["h"] * 50)})
    asked = ["i7", "nobody", "i3", "i7", "it's", "i0"]
    rows = table.take(asked, ["text"])
    assert rows.column_names == ["item_id", "found", "text"]
    assert rows["item_id"].to_pylist() == asked
    assert rows["found"].to_pylist() == [True, False, True, True, False, True]
    assert rows["text"].to_pylist() == [[7.0], None, [3.0], [7.0], None, [0.0]]
    assert table.take([], ["text"]).num_rows == 0
    everything = table.take([f"i{number}" for number in reversed(range(50))], ["text"])
    assert everything["text"].to_pylist() == [[float(number)] for number in reversed(range(50))]


def test_scan_is_ordered_by_id_in_batches_of_the_asked_size(table):
    table.declare("text", 64)
    ids = [f"i{number:05d}" for number in range(3_000)]
    shuffled = list(np.random.default_rng(3).permutation(3_000))
    for part in _parts(shuffled, 1_000):
        vectors = np.repeat(np.array(part, np.float32)[:, None], 64, axis=1)
        table.upsert([ids[number] for number in part], {"text": column(vectors, ["h"] * len(part))})
    batches = list(table.scan(["text"], batch_bytes=64 * 1024))
    assert max(batch.nbytes for batch in batches) <= 70 * 1024
    assert len(batches) > 10
    assert [item_id for batch in batches for item_id in batch["item_id"].to_pylist()] == ids
    first = np.concatenate([matrix(batch, "text")[:, 0] for batch in batches])
    np.testing.assert_array_equal(first, np.arange(3_000))
    plain = pa.schema([("item_id", pa.string()), ("text", pa.list_(pa.float32(), 64))])
    assert all(batch.schema.equals(plain, check_metadata=True) for batch in batches)


def _parts(values, size):
    return [values[start : start + size] for start in range(0, len(values), size)]


def test_large_scans_go_step_by_step(table, monkeypatch):
    monkeypatch.setattr("dmesr_server.store.scans.STEP_BYTES", 4_096)
    monkeypatch.setattr("dmesr_server.store.scans.WHOLE_BYTES", 0)
    table.declare("text", 16)
    ids = [f"i{number:03d}" for number in range(500)]
    for part in _parts(list(np.random.default_rng(1).permutation(ids)), 100):
        table.upsert(list(map(str, part)), {"text": column(numbers(100, 16), ["h"] * 100)})
    scan = table.scan(["text"], batch_bytes=1_000)
    first = next(scan)
    table.delete(ids[100:])
    table.optimise()
    rest = list(scan)
    assert [item_id for batch in [first, *rest] for item_id in batch["item_id"].to_pylist()] == ids, "one version"


def test_old_versions_read_what_they_held(table):
    table.declare("text", 2)
    table.upsert(["a", "b"], {"text": column([[1, 1], [2, 2]], ["1", "2"])})
    version, digest = table.version(), table.digest()
    table.upsert(["a", "c"], {"text": column([[9, 9], [3, 3]], ["9", "3"])})
    table.delete(["b"])
    assert [batch.to_pylist() for batch in table.scan(["text"], version=version)] == [
        [{"item_id": "a", "text": [1, 1]}, {"item_id": "b", "text": [2, 2]}]
    ]
    assert table.take(["b", "c"], ["text"], version=version)["found"].to_pylist() == [True, False]
    assert table.take(["b", "c"], ["text"])["found"].to_pylist() == [False, True]
    assert (table.digest(version), table.count(version)) == (digest, 2)
    assert table.digest() != digest
    for read in (lambda: list(table.scan(["text"], version=999)), lambda: table.take(["a"], ["text"], version=999)):
        with pytest.raises(ServiceError) as caught:
            read()
        assert caught.value.reason == "VERSION_NOT_FOUND"
        assert caught.value.metadata == {"version": "999"}


def test_a_version_of_a_table_that_is_not_there(table):
    with pytest.raises(ServiceError, match="version 3"):
        list(table.scan([], version=3))


def test_the_digest_is_of_the_content_alone(tmp_path):
    store = Store(uri=str(tmp_path))
    one, other = store.catalog("films").embeddings("one"), store.catalog("games").embeddings("other")
    one.declare("text", 2)
    one.declare("image", 3)
    one.upsert(["a", "b"], {"text": column([[1, 1], [2, 2]], ["ha", "hb"])})
    one.upsert(["b"], {"image": column([[1, 2, 3]], ["hi"])})
    other.declare("image", 3)
    other.declare("unused", 7)
    other.declare("text", 2)
    other.upsert(["c", "b"], {"image": column([[0, 0, 0], [3, 2, 1]], ["x", "hi"])})
    other.upsert(["b", "a"], {"text": column([[2, 2], [1, 1]], ["hb", "ha"])})
    assert one.digest() != other.digest()
    other.upsert(["c"], {"image": column([[0, 0, 0]], [None], [False])})
    assert one.digest() == other.digest(), "neither the order of writes nor rows and sources without vectors count"
    before = one.digest()
    one.optimise()
    assert one.digest() == before
    one.upsert(["a"], {"text": column([[1, 1]], ["other hash"])})
    assert one.digest() != before


def test_the_digest_keeps_names_and_hashes_apart(tmp_path):
    store = Store(uri=str(tmp_path))
    digests = set()
    for number, (ids, hashes) in enumerate(
        [(["a", "bc"], ["x", "y"]), (["ab", "c"], ["x", "y"]), (["a", "bc"], ["xy", ""])]
    ):
        table = store.catalog("films").embeddings(str(number))
        table.declare("text", 1)
        table.upsert(ids, {"text": column([[1], [1]], hashes)})
        digests.add(table.digest())
    assert len(digests) == 3


def test_recipes_do_not_mix(tmp_path):
    catalog = Store(uri=str(tmp_path)).catalog("films")
    one, other = catalog.embeddings("aaaa"), catalog.embeddings("bbbb")
    one.declare("text", 2)
    other.declare("text", 3)
    one.upsert(["a"], {"text": column([[1, 2]], ["h"])})
    assert (one.count(), other.count()) == (1, 0)
    assert catalog.embeddings("aaaa").sources() == {"text": 2}


def test_threads_write_different_sources_of_the_same_items(tmp_path):
    """No write may undo another's, though each writes whole rows. Stores of their own share no lock."""
    ids = [f"i{number}" for number in range(40)]
    sources = ["text", "image", "hybrid"]
    in_threads(upsert_source, [(str(tmp_path), ids, source, 4) for source in sources])
    _check_sources(tmp_path, ids, sources, 4)


def test_processes_write_different_sources_of_the_same_items(tmp_path):
    ids = [f"i{number}" for number in range(40)]
    sources = ["text", "image", "hybrid"]
    in_processes(upsert_source, [(str(tmp_path), ids, source, 4) for source in sources])
    _check_sources(tmp_path, ids, sources, 4)


def _check_sources(tmp_path, ids, sources, rounds):
    table = Store(uri=str(tmp_path)).catalog("films").embeddings("r1")
    assert table.count() == len(ids)
    rows = table.take(ids, sources)
    for source in sources:
        np.testing.assert_array_equal(matrix(rows, source), np.full((len(ids), 16), rounds - 1))
        assert {hashes[source] for hashes in table.hashes(ids).values()} == {f"{source}-{rounds - 1}"}


def test_threads_declare_the_same_source(tmp_path):
    def declare():
        Store(uri=str(tmp_path)).catalog("films").embeddings("r1").declare("text", 5)

    in_threads(declare, [()] * 6)
    assert Store(uri=str(tmp_path)).catalog("films").embeddings("r1").sources() == {"text": 5}


def test_adapted_vectors(tmp_path):
    catalog = Store(uri=str(tmp_path)).catalog("films")
    table = catalog.adapted("dmesr:1")
    ids, nothing = table.read_all()
    assert (ids, nothing.shape, nothing.dtype, table.input_hashes().num_rows) == ([], (0, 0), np.float32, 0)
    vectors = numbers(3, 257)
    assert table.upsert(["c", "a", "b"], vectors, ["3", "1", "2"]) == ["inserted"] * 3
    assert table.upsert(["a", "b"], vectors[:2], ["1", "new"]) == ["unchanged", "updated"]
    ids, matrix_NV = table.read_all()
    assert ids == ["a", "b", "c"]
    np.testing.assert_array_equal(matrix_NV, vectors[[1, 1, 0]])
    assert table.input_hashes().sort_by("item_id").to_pydict() == {
        "item_id": ["a", "b", "c"],
        "input_hash": ["1", "new", "3"],
    }
    assert table.take(["c", "x"], ["vector"])["found"].to_pylist() == [True, False]
    assert next(table.scan(["vector"])).num_rows == 3
    assert catalog.adapted("dmesr:1", 257).count() == 3
    with pytest.raises(ServiceError) as caught:
        catalog.adapted("dmesr:1", 256)
    assert caught.value.reason == "DIMENSION_MISMATCH"
    with pytest.raises(ServiceError, match="width"):
        table.upsert(["a"], numbers(1, 5), ["x"])
    table.delete(["a", "zz"])
    assert table.count() == 2
    table.drop()
    assert (table.count(), table.read_all()[0]) == (0, [])
    assert catalog.stats() == []


def test_adapted_tables_with_a_declared_width_are_empty_at_first(tmp_path):
    table = Store(uri=str(tmp_path)).catalog("films").adapted("dmesr:2", 4)
    ids, matrix_NV = table.read_all()
    assert (ids, matrix_NV.shape) == ([], (0, 4))
    assert table.take(["a"], ["vector"]).to_pylist() == [{"item_id": "a", "found": False, "vector": None}]
    assert table.dim == 4


def test_some_sources_of_some_items_after_many_writes(table):
    """Lance panicked here once its key index covered a part of the table: pictures are rarer than texts."""
    for name in ("text", "image"):
        table.declare(name, 16)
    writes = WRITES_BEFORE_LOOK + 5
    for write in range(writes):
        ids = [f"{write:03d}-{number}" for number in range(8)]
        table.upsert(ids, {"text": column(numbers(8, 16, seed=write), [f"t-{item_id}" for item_id in ids])})
        table.upsert(ids[:2], {"image": column(numbers(2, 16, seed=write), [f"i-{item_id}" for item_id in ids[:2]])})
    assert (table.count(), table.present("text"), table.present("image")) == (8 * writes, 8 * writes, 2 * writes)


def test_pins_come_and_go_while_others_look_at_them(tmp_path):
    table = Store(uri=str(tmp_path)).catalog("films").embeddings("r1")
    table.declare("text", 2)
    table.upsert(["a"], {"text": column([[1, 2]], ["h"])})
    version = table.version()

    def come_and_go(number: int) -> None:
        for turn in range(60):
            table.pin(f"pin-{number}-{turn}", version)
            table.unpin(f"pin-{number}-{turn}")

    in_threads(come_and_go, [(number,) for number in range(6)])
    assert table.pins() == set()
