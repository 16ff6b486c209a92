"""Arrow and NumPy: what is copied, what is not, and which vectors are refused before they travel."""

from __future__ import annotations

from pathlib import Path

import dmesr
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dmesr.arrow import VectorCollector, encode_vectors
from dmesr.vectors import Embeddings, checked, query_vector, streams_of

END = b"\xff\xff\xff\xff\x00\x00\x00\x00"


def pieces_of(table: pa.Table, rows: int) -> list[bytes]:
    """A table as the server sends it: the schema, then record batches, then the end."""
    batches = table.combine_chunks().to_batches(max_chunksize=rows)
    return [table.schema.serialize().to_pybytes(), *(batch.serialize().to_pybytes() for batch in batches), END]


def table_of(vectors: list[list[float] | None], *, dtype: pa.DataType | None = None) -> pa.Table:
    return pa.table(
        {
            "item_id": [str(n) for n in range(len(vectors))],
            "found": [vector is not None for vector in vectors],
            "text": pa.array(vectors, pa.list_(dtype or pa.float32(), 2)),
        }
    )


def collected(pieces: list[bytes], rows: int) -> VectorCollector:
    collector = VectorCollector()
    collector.expect(rows)
    for piece in pieces:
        collector.feed(piece)
    return collector


@pytest.mark.parametrize("dtype", [pa.float32(), pa.float16()])
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_batches_of_any_size_make_the_same_matrix(rows: int, dtype: pa.DataType):
    vectors = [[1.0, 2.0], None, [3.0, 4.0], None, [5.0, 6.0]]
    collector = collected(pieces_of(table_of(vectors, dtype=dtype), rows), 5)
    assert collector.ids == ["0", "1", "2", "3", "4"]
    assert collector.vectors["text"].dtype == dtype.to_pandas_dtype()
    np.testing.assert_array_equal(collector.vectors["text"], [[1, 2], [0, 0], [3, 4], [0, 0], [5, 6]])
    np.testing.assert_array_equal(collector.present["text"], [True, False, True, False, True])
    np.testing.assert_array_equal(collector.found_N, [True, False, True, False, True])


def test_what_fits_in_one_batch_is_not_copied():
    pieces = pieces_of(table_of([[1.0, 2.0], [3.0, 4.0]]), 2)
    matrix = collected(pieces, 2).vectors["text"]
    assert not matrix.flags.writeable
    start = np.frombuffer(pieces[1], np.uint8).ctypes.data
    assert start <= matrix.ctypes.data < start + len(pieces[1])


def test_what_lies_under_a_null_does_not_come_through():
    hidden = pa.FixedSizeListArray.from_arrays(
        pa.array([1.0, 2.0, 9.0, 9.0], pa.float32()), 2, mask=pa.array([False, True])
    )
    table = pa.table({"item_id": ["a", "b"], "found": [True, True], "text": hidden})
    for rows in (1, 2):
        np.testing.assert_array_equal(collected(pieces_of(table, rows), 2).vectors["text"], [[1, 2], [0, 0]])


def test_a_read_that_starts_anew_leaves_nothing_behind():
    collector = collected(pieces_of(table_of([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), 1)[:-2], 3)
    collector.rewind(0)
    for piece in pieces_of(table_of([[7.0, 8.0], None, None]), 3):
        collector.feed(piece)
    np.testing.assert_array_equal(collector.vectors["text"], [[7, 8], [0, 0], [0, 0]])

    later = collected(pieces_of(table_of([[1.0, 2.0], [3.0, 4.0]]), 1), 3)
    for piece in pieces_of(table_of([[5.0, 6.0]]), 1):
        later.feed(piece)
    later.rewind(1)
    for piece in pieces_of(table_of([None, [5.0, 6.0]]), 2):
        later.feed(piece)
    np.testing.assert_array_equal(later.vectors["text"], [[1, 2], [0, 0], [5, 6]])


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([b"this is no Arrow at all"], "cannot be decoded"),
        (pieces_of(table_of([[1.0, 2.0]]), 1)[1:], "before their schema"),
        (pieces_of(table_of([[1.0, 2.0], [3.0, 4.0]]), 2), "announced 1 rows and sent 2"),
        ([table_of([[1.0, 2.0]]).schema.serialize().to_pybytes(), pa.schema([]).serialize().to_pybytes()], "changed"),
    ],
)
def test_a_malformed_stream_is_told(pieces: list[bytes], message: str):
    with pytest.raises(dmesr.MalformedArrow, match=message):
        collected(pieces, 1)


def embeddings() -> Embeddings:
    collector = collected(pieces_of(table_of([[1.0, 2.0], None, [3.0, 4.0]]), 1), 3)
    assert collector.found_N is not None
    return Embeddings(collector.ids, collector.found_N, "r1", None, 7, collector.vectors, collector.present)


def test_embeddings_as_a_table_and_a_file(tmp_path: Path):
    table = embeddings().to_arrow()
    assert table.column_names == ["item_id", "found", "text"]
    assert table["text"].to_pylist() == [[1.0, 2.0], None, [3.0, 4.0]]
    assert table["text"].type == pa.list_(pa.float32(), 2)
    embeddings().to_parquet(tmp_path / "vectors.parquet")
    assert pq.read_table(tmp_path / "vectors.parquet").to_pydict() == table.to_pydict()


def test_a_table_shares_the_matrix():
    found = embeddings()
    values = found.to_arrow()["text"].chunk(0).values.buffers()[1]
    assert values.address == found.matrix("text").ctypes.data


def test_tensors():
    torch = pytest.importorskip("torch")
    found = embeddings()
    tensor = found.to_torch("text")
    assert tensor.dtype == torch.float32
    assert tensor.tolist() == [[1.0, 2.0], [0.0, 0.0], [3.0, 4.0]]
    collector = collected(pieces_of(table_of([[1.0, 2.0]]), 1), 1)
    assert collector.found_N is not None
    one = Embeddings(["0"], collector.found_N, "r1", None, 7, collector.vectors, collector.present)
    assert one.to_torch("text").add_(1).tolist() == [[2.0, 3.0]]
    assert one.matrix("text").tolist() == [[1.0, 2.0]]


def test_a_source_that_was_not_read_is_named():
    found = embeddings()
    assert (found.sources, len(found)) == (("text",), 3)
    assert repr(found) == "<Embeddings text [3, 2]; recipe r1, version 7>"
    for call in (found.matrix, found.present, found.to_torch):
        with pytest.raises(dmesr.InvalidInput, match="no source 'image' in what was read; there is text"):
            call("image")


ONE = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("ids", "vectors", "width", "message"),
    [
        (["a", "b"], np.ones(3, np.float32), None, r"items 'a' to 'b': vectors have shape \(3,\)"),
        (["a", "b"], np.ones((2, 3)), None, r"shape \(2, 3\) are float64; .* \.astype\(np\.float32\)"),
        (["a", "b"], np.ones((2, 3), ">f4"), None, "native byte order"),
        (["a", "b"], np.ones((2, 3), np.int64), None, "are int64"),
        (["a", "b", "c"], ONE, None, r"items 'a' to 'c': 3 item ids, but vectors of shape \(2, 3\)"),
        (["a", "b"], ONE, 4, r"vectors of shape \(2, 3\), but the batches before are 4 wide"),
        (["a", "b"], np.ones((2, 0), np.float32), None, "hold no numbers"),
        ("ab", ONE, None, "one string"),
        ([1, 2], ONE, None, r"item_ids\[0\] is 1 of type int"),
    ],
)
def test_vectors_that_cannot_be_right_are_refused(ids: list[str], vectors: np.ndarray, width: int | None, message: str):
    with pytest.raises(dmesr.InvalidInput, match=message):
        checked(ids, vectors, source="clip", width=width)


def test_messages_keep_to_their_size():
    ids = [f"item {n}" for n in range(1_000)]
    vectors = np.random.default_rng(0).standard_normal((1_000, 100), dtype=np.float32)
    messages = [b"".join(parts) for parts in streams_of(ids, {"vector": vectors}, max_rows=10_000, max_bytes=50_000)]
    assert max(map(len, messages)) < 60_000
    tables = [pa.ipc.open_stream(message).read_all() for message in messages]
    assert [item_id for table in tables for item_id in table["item_id"].to_pylist()] == ids
    back = np.concatenate([table["vector"].combine_chunks().flatten().to_numpy() for table in tables])
    np.testing.assert_array_equal(back.reshape(1_000, 100), vectors)
    both = {"one": vectors, "two": vectors.astype(np.float16)}
    assert len(list(streams_of(ids, both, max_rows=300, max_bytes=1 << 30))) == 4
    with pytest.raises(dmesr.InvalidInput, match="one vector of width 200 has 616 bytes"):
        list(streams_of(ids, both, max_rows=10, max_bytes=500))


def test_rows_that_do_not_lie_together_are_gathered():
    wide = np.arange(12, dtype=np.float16).reshape(3, 4)
    for view in (wide[:, ::2], np.asfortranarray(wide), wide[::-1]):
        table = pa.ipc.open_stream(b"".join(encode_vectors(["a", "b", "c"], {"vector": view}))).read_all()
        np.testing.assert_array_equal(table["vector"].combine_chunks().flatten().to_numpy().reshape(view.shape), view)


def test_query_vectors():
    assert query_vector([1, 2.5]) == np.array([1, 2.5], "<f4").tobytes()
    for wrong in ([], [[1.0]], ["a"], 1.0):
        with pytest.raises(dmesr.InvalidInput, match="expected one row of numbers"):
            query_vector(wrong)
