"""EmbeddingService over a real socket: bulk reads, a team's own vectors, neighbours, pins."""

from __future__ import annotations

import time
from collections.abc import Iterable

import grpc
import numpy as np
import pyarrow as pa
import pytest
from dmesr.v1 import embeddings_pb2 as pb
from dmesr.v1 import enrichment_pb2, items_pb2
from dmesr_server.store import Store
from running_server import RunningServer
from wire import Stubs, failure_of, reason
from wire_vectors import add_items, arrow, floats, matrix, read, write, write_all

INSERTED, UPDATED = items_pb2.ROW_OUTCOME_INSERTED, items_pb2.ROW_OUTCOME_UPDATED
UNCHANGED, REJECTED = items_pb2.ROW_OUTCOME_UNCHANGED, items_pb2.ROW_OUTCOME_REJECTED


def test_what_is_written_is_read_back_whole_and_in_order(stubs: Stubs, catalog: str):
    ids = [f"{n:05}" for n in range(3_000)]
    vectors_ND = np.random.default_rng(1).normal(size=(3_000, 384)).astype(np.float32)
    add_items(stubs, catalog, ids)
    write_all(stubs, catalog, vectors_ND, ids)

    answers, table = read(stubs, catalog=catalog, recipe="ours")
    assert answers[0].rows == 3_000 == table.num_rows
    assert answers[0].version > 0
    assert len(answers[0].recipe_id) == 16
    # The first message is the schema alone; each other one a whole piece of about 3 MiB: gRPC by itself takes 4.
    assert pa.ipc.read_schema(pa.py_buffer(answers[0].data)).names == ["item_id", "found", "clip"]
    assert len(answers) >= 4
    assert max(answer.ByteSize() for answer in answers) < 4_000_000
    assert table.column("item_id").to_pylist() == ids
    np.testing.assert_array_equal(matrix(table, "clip"), vectors_ND)
    assert all(table.column("found").to_pylist())

    _, half = read(stubs, catalog=catalog, recipe="ours", data_type=pb.DATA_TYPE_FLOAT16)
    assert half.schema.field("clip").type == floats(384, pa.float16())
    np.testing.assert_array_equal(matrix(half, "clip"), vectors_ND.astype(np.float16))

    asked = ["02999", "nobody", "00000", "02999"]
    _, some = read(stubs, catalog=catalog, recipe="ours", item_ids=asked)
    assert some.column("item_id").to_pylist() == asked
    assert some.column("found").to_pylist() == [True, False, True, True]
    assert some.column("clip").is_null().to_pylist() == [False, True, False, False]
    np.testing.assert_array_equal(matrix(some.filter(some.column("found")), "clip"), vectors_ND[[2999, 0, 2999]])
    _, some_half = read(stubs, catalog=catalog, recipe="ours", item_ids=asked, data_type=pb.DATA_TYPE_FLOAT16)
    assert some_half.column("clip").is_null().to_pylist() == [False, True, False, False]


def test_long_ids_and_narrow_vectors_stay_under_the_message_limit(stubs: Stubs, catalog: str):
    ids = [f"{n:05}".ljust(250, "x") for n in range(12_000)]
    add_items(stubs, catalog, ids)
    for start in range(0, len(ids), 6_000):
        part = ids[start : start + 6_000]
        write(stubs, catalog, data=arrow(part, [[float(len(part))]] * len(part), floats(1)))
    answers, table = read(stubs, catalog=catalog, recipe="ours")
    assert table.num_rows == 12_000
    assert max(answer.ByteSize() for answer in answers) < 4_000_000


def test_two_sources_of_which_one_is_partly_absent(stubs: Stubs, catalog: str):
    add_items(stubs, catalog, ["a", "b", "c"])
    write(stubs, catalog, data=arrow(["a", "b", "c"], [[1, 2], [3, 4], [5, 6]], floats(2)), source="one")
    write(stubs, catalog, data=arrow(["b"], [[7, 8, 9]], floats(3)), source="two")
    _, table = read(stubs, catalog=catalog, recipe="ours")
    assert table.schema.names == ["item_id", "found", "one", "two"]
    assert table.column("two").to_pylist() == [None, [7, 8, 9], None]
    _, table = read(stubs, catalog=catalog, recipe="ours", sources=["two", "two"], data_type=pb.DATA_TYPE_FLOAT16)
    assert table.schema.names == ["item_id", "found", "two"]
    assert table.column("two").to_pylist() == [None, [7, 8, 9], None]

    stats = stubs.embeddings.GetEmbeddingStats(pb.GetEmbeddingStatsRequest(catalog=catalog, recipe="ours"))
    assert (stats.items, stats.rows) == (3, 3)
    assert [(s.source.name, s.source.dim, s.source.present, s.source.external) for s in stats.sources] == [
        ("one", 2, 3, True),
        ("two", 3, 1, True),
    ]
    assert [s.coverage for s in stats.sources] == pytest.approx([1, 1 / 3])
    norms = [np.hypot(1, 2), np.hypot(3, 4), np.hypot(5, 6)]
    units = np.array([[1, 2], [3, 4], [5, 6]]) / np.array(norms)[:, None]
    pairs = [units[0] @ units[1], units[0] @ units[2], units[1] @ units[2]]
    assert stats.sources[0].mean_norm == pytest.approx(np.mean(norms))
    assert stats.sources[0].mean_pair_cosine == pytest.approx(np.mean(pairs))
    assert stats.sources[1].mean_pair_cosine == 0

    (recipe,) = stubs.embeddings.ListRecipes(pb.ListRecipesRequest(catalog=catalog)).recipes
    assert (list(recipe.names), recipe.is_mllm, dict(recipe.description_recipes)) == (["ours"], False, {})


def test_a_read_is_of_one_version_and_an_old_one_stays_readable(stubs: Stubs, catalog: str):
    add_items(stubs, catalog, ["a", "b"])
    write(stubs, catalog, data=arrow(["a"], [[1.0]], floats(1)))
    pin = stubs.embeddings.PinEmbeddings(pb.PinEmbeddingsRequest(catalog=catalog, recipe="ours", holder="test"))
    write(stubs, catalog, data=arrow(["a", "b"], [[2.0], [3.0]], floats(1)))
    answers, table = read(stubs, catalog=catalog, recipe="ours", version=pin.version)
    assert (answers[0].version, answers[0].rows) == (pin.version, 1)
    assert table.column("clip").to_pylist() == [[1.0]]
    _, table = read(stubs, catalog=catalog, recipe="ours")
    assert table.column("clip").to_pylist() == [[2.0], [3.0]]
    again = stubs.embeddings.PinEmbeddings(pb.PinEmbeddingsRequest(catalog=catalog, recipe="ours"))
    assert again.digest != pin.digest
    assert again.version > pin.version

    failure = failure_of(lambda: read(stubs, catalog=catalog, recipe="ours", version=999))
    assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "VERSION_NOT_FOUND")
    stubs.embeddings.ReleasePin(pb.ReleasePinRequest(pin_id=pin.pin_id))
    gone = failure_of(lambda: stubs.embeddings.ReleasePin(pb.ReleasePinRequest(pin_id=pin.pin_id)))
    assert gone.reason == "VERSION_NOT_FOUND"


def test_a_stream_writes_an_item_again_and_again_in_its_order(stubs: Stubs, catalog: str):
    """However its messages fall into groups, of which one is looked at while the one before is written."""
    ids = [f"{n:03}" for n in range(50)]
    add_items(stubs, catalog, ids)

    def messages() -> Iterable[pb.WriteEmbeddingsRequest]:
        for turn in range(120):
            # The first item goes to and fro between two vectors, the others come to the second one at some time.
            vectors = [[float(turn % 2)], *([float(turn >= place)] for place in range(1, 50))]
            data = arrow(ids, vectors, floats(1))
            yield pb.WriteEmbeddingsRequest(
                catalog=catalog, recipe="ours", source="clip", data=data, create_recipe=True
            )

    answers = list(stubs.embeddings.WriteEmbeddings(messages()))
    told = [[row.outcome for row in answer.results] for answer in answers]
    assert told[0] == [INSERTED] * 50
    for turn, outcomes in enumerate(told[1:], start=1):
        assert outcomes == [UPDATED, *(UPDATED if turn == place else UNCHANGED for place in range(1, 50))], turn
    _, table = read(stubs, catalog=catalog, recipe="ours")
    assert table.column("item_id").to_pylist() == ids
    np.testing.assert_array_equal(matrix(table, "clip"), np.ones((50, 1)))


def test_each_bad_row_is_refused_alone(stubs: Stubs, catalog: str):
    add_items(stubs, catalog, ["a", "b", "c", "d", "e"])
    nan, inf = float("nan"), float("inf")
    ids = ["a", "b", "c", "nobody", "", None, "a", "a", "d", "e"]
    vectors = [[1, 2], [nan, 2], [1, -inf], [1, 2], [1, 2], [1, 2], [1, 2], [9, 9], None, [5, 6]]
    results = write(stubs, catalog, data=arrow(ids, vectors, floats(2)))
    said = [reason(r.problem) if r.outcome == REJECTED else r.outcome for r in results]
    assert said == [
        INSERTED,
        "NON_FINITE_VECTOR",
        "NON_FINITE_VECTOR",
        "ITEM_NOT_FOUND",
        "INVALID_ITEM_ID",
        "INVALID_ITEM_ID",
        UNCHANGED,
        "DUPLICATE_ITEM_ID",
        "VECTOR_MISSING",
        INSERTED,
    ]
    assert results[1].problem.metadata == {"item_id": "b", "position": "0", "actual": "nan"}
    results = write(stubs, catalog, data=arrow(["a", "e"], [[1, 2], [5, 7]], floats(2, pa.float16())))
    assert [r.outcome for r in results] == [UNCHANGED, UPDATED]
    _, table = read(stubs, catalog=catalog, recipe="ours")
    assert table.column("item_id").to_pylist() == ["a", "e"]


GOOD = arrow(["a"], [[1, 2]], floats(2))
BAD_DATA = {
    "nothing": (b"", "MALFORMED_ARROW"),
    "no arrow": (b"hello, this is no arrow stream", "MALFORMED_ARROW"),
    "cut short": (GOOD[:-60], "MALFORMED_ARROW"),
    "double": (arrow(["a"], [[1, 2]], floats(2, pa.float64())), "UNSUPPORTED_DTYPE"),
    "list of any length": (arrow(["a"], [[1, 2]], pa.list_(pa.float32())), "UNSUPPORTED_DTYPE"),
    "other width": (arrow(["a"], [[1, 2, 3]], floats(3)), "DIMENSION_MISMATCH"),
    "no width": (arrow(["a"], [[]], floats(0)), "DIMENSION_MISMATCH"),
}


def _other_columns() -> bytes:
    table = pa.table({"id": ["a"], "vector": pa.array([[1.0]], floats(1))})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("case", [*BAD_DATA, "other columns"])
def test_data_of_another_kind_is_refused_as_a_whole(stubs: Stubs, catalog: str, case: str):
    add_items(stubs, catalog, ["a"])
    write(stubs, catalog, data=GOOD)
    data, said = BAD_DATA.get(case, (_other_columns(), "MALFORMED_ARROW"))
    failure = failure_of(lambda: write(stubs, catalog, data=data))
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, said)
    if case == "other width":
        assert failure.metadata == {"source": "clip", "expected": "2", "actual": "3", "item_id": "a"}
    _, table = read(stubs, catalog=catalog, recipe="ours")
    assert table.column("clip").to_pylist() == [[1, 2]]


@pytest.mark.parametrize("source", ["", "Text", "a b", "x" * 64, "item_id", "found", "a_present", "../x", "1st"])
def test_bad_source_names_are_refused(stubs: Stubs, catalog: str, source: str):
    add_items(stubs, catalog, ["a"])
    failure = failure_of(lambda: write(stubs, catalog, data=GOOD, source=source))
    assert (failure.reason, failure.fields) == ("INVALID_FIELD", ["source"])


def test_recipes_are_made_only_when_asked_for(stubs: Stubs, catalog: str):
    add_items(stubs, catalog, ["a"])
    failure = failure_of(lambda: write(stubs, catalog, data=GOOD, create=False))
    assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "RECIPE_NOT_FOUND")
    # In a recipe of one's own every source name is free, also those that enrichment uses elsewhere.
    assert write(stubs, catalog, data=GOOD, source="text")[0].outcome == INSERTED
    assert write(stubs, catalog, data=GOOD, source="text", create=False)[0].outcome == UNCHANGED
    failure = failure_of(lambda: read(stubs, catalog=catalog, recipe="ours", sources=["hybrid"]))
    assert (failure.reason, failure.metadata) == ("SOURCE_NOT_FOUND", {"source": "hybrid", "sources": "text"})


def test_sources_of_enrichment_cannot_be_written(stubs: Stubs, catalog: str):
    add_items(stubs, catalog, ["a"])
    stubs.enrichment.StartJob(enrichment_pb2.StartJobRequest(catalog=catalog))  # makes and binds the recipe
    for source in ("original", "text", "image", "hybrid", "reflect"):
        failure = failure_of(lambda source=source: write(stubs, catalog, data=GOOD, source=source, recipe="default"))
        assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "SOURCE_READ_ONLY")
    assert write(stubs, catalog, data=GOOD, source="clip", recipe="default")[0].outcome == INSERTED


def _nearest(stubs: Stubs, **request: object) -> list[tuple[str, float]]:
    answer = stubs.embeddings.FindNeighbours(pb.FindNeighboursRequest(**request))
    return [(found.item_id, round(found.similarity, 5)) for found in answer.neighbours]


def test_neighbours_of_an_item_and_of_a_vector(stubs: Stubs, catalog: str):
    add_items(stubs, catalog, ["a", "b", "c", "d", "bare"])
    vectors = [[1, 0], [2, 2], [0, 3], [-1, 0]]
    write(stubs, catalog, data=arrow(["a", "b", "c", "d"], vectors, floats(2)))
    where = {"catalog": catalog, "recipe": "ours", "source": "clip"}
    assert _nearest(stubs, **where, item_id="a") == [("b", 0.70711), ("c", 0.0), ("d", -1.0)]
    query = np.array([0, 5], "<f4").tobytes()
    assert _nearest(stubs, **where, vector=query, k=2) == [("c", 1.0), ("b", 0.70711)]

    def fails(**request: object) -> tuple[str, list[str]]:
        failure = failure_of(lambda: _nearest(stubs, **(where | request)))
        return failure.reason, failure.fields

    assert fails(item_id="nobody") == ("ITEM_NOT_FOUND", [])
    assert fails(item_id="bare") == ("VECTOR_MISSING", [])
    assert fails(item_id="a", k=51) == ("INVALID_FIELD", ["k"])
    assert fails() == ("INVALID_FIELD", ["query"])
    assert fails(vector=b"123") == ("INVALID_FIELD", ["vector"])
    assert fails(vector=query * 2) == ("DIMENSION_MISMATCH", [])
    assert fails(vector=np.array([np.nan, 0], "<f4").tobytes()) == ("NON_FINITE_VECTOR", [])
    assert fails(item_id="a", source="text") == ("SOURCE_NOT_FOUND", [])


def test_reads_of_what_is_not_there_are_refused(stubs: Stubs, catalog: str):
    def fails(**request: object) -> str:
        return failure_of(lambda: read(stubs, **request)).reason

    assert fails(catalog="nowhere", recipe="x") == "CATALOG_NOT_FOUND"
    assert fails(catalog=catalog, recipe="x") == "RECIPE_NOT_FOUND"
    assert fails(catalog=catalog, model="x") == "MODEL_NOT_FOUND"
    assert fails(catalog=catalog, recipe="x", version=-1) == "INVALID_FIELD"
    assert fails(catalog=catalog, recipe="x", item_ids=map(str, range(2_001))) == "REQUEST_TOO_LARGE"


def test_a_pin_of_nothing_and_a_bad_time_are_refused(stubs: Stubs, catalog: str):
    request = pb.PinEmbeddingsRequest(catalog=catalog, recipe="ours", ttl_seconds=-1)
    assert failure_of(lambda: stubs.embeddings.PinEmbeddings(request)).fields == ["ttl_seconds"]
    request = pb.PinEmbeddingsRequest(catalog=catalog, recipe="ours")
    assert failure_of(lambda: stubs.embeddings.PinEmbeddings(request)).reason == "RECIPE_NOT_FOUND"
    assert failure_of(lambda: stubs.embeddings.ReleasePin(pb.ReleasePinRequest())).fields == ["pin_id"]


def test_expired_pins_are_swept(stubs: Stubs, catalog: str, api_server: RunningServer):
    add_items(stubs, catalog, ["a"])
    write(stubs, catalog, data=arrow(["a"], [[1.0]], floats(1)))
    request = pb.PinEmbeddingsRequest(catalog=catalog, recipe="ours", ttl_seconds=1)
    pin = stubs.embeddings.PinEmbeddings(request)
    table = Store(uri=str(api_server.store)).catalog(catalog).embeddings(pin.recipe_id)
    assert _tags(table) != []
    deadline = time.monotonic() + 15
    while _tags(table) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert _tags(table) == []


def _tags(table: object) -> Iterable[str]:
    return sorted(table._table._open(create=False).tags.list())  # type: ignore[attr-defined]


def test_a_reader_that_stops_half_way_disturbs_nobody(stubs: Stubs, catalog: str):
    ids = [f"{n:05}" for n in range(4_000)]
    add_items(stubs, catalog, ids)
    write_all(stubs, catalog, np.ones((4_000, 384), np.float32), ids)
    request = pb.ReadEmbeddingsRequest(catalog=catalog, recipe="ours")
    call = stubs.embeddings.ReadEmbeddings(request)
    next(call)
    call.cancel()
    assert read(stubs, catalog=catalog, recipe="ours")[1].num_rows == 4_000
