"""FindNeighbours over a real socket: filters, indexes made in the background, and texts encoded by the enricher."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest
from dmesr.v1 import embeddings_pb2 as pb
from dmesr.v1 import enrichment_pb2, items_pb2
from running_server import RunningServer
from wire import Stubs, failure_of
from wire_vectors import add_items, arrow, floats, write


def ids_of(answer: pb.FindNeighboursResponse) -> list[str]:
    return [found.item_id for found in answer.neighbours]


def put_items(stubs: Stubs, catalog: str, **titles: str) -> None:
    items = [
        items_pb2.Item(
            item_id=item_id,
            attributes=[
                items_pb2.Attribute(name="title", values=[title]),
                items_pb2.Attribute(name="kind", values=[item_id[0]]),
            ],
        )
        for item_id, title in titles.items()
    ]
    list(stubs.items.UpsertItems(iter([items_pb2.UpsertItemsRequest(catalog=catalog, items=items)])))


def test_a_filter_is_applied_before_the_nearest_are_taken(stubs: Stubs, catalog: str):
    put_items(stubs, catalog, a1="x", a2="x", b1="x", b2="x", b3="x")
    vectors = [[1, 0], [1, 0.1], [0.5, 1], [0, 1], [-1, 0]]
    write(stubs, catalog, data=arrow(["a1", "a2", "b1", "b2", "b3"], vectors, floats(2)))
    where = {"catalog": catalog, "recipe": "ours", "source": "clip", "item_id": "a1", "k": 2}
    assert ids_of(stubs.embeddings.FindNeighbours(pb.FindNeighboursRequest(**where))) == ["a2", "b1"]
    answer = stubs.embeddings.FindNeighbours(pb.FindNeighboursRequest(**where, filter='kind = "b"'))
    assert (ids_of(answer), answer.exact, len(answer.recipe_id)) == (["b1", "b2"], True, 16)
    none = stubs.embeddings.FindNeighbours(pb.FindNeighboursRequest(**where, filter='kind = "c"'))
    assert ids_of(none) == []
    bad = failure_of(lambda: stubs.embeddings.FindNeighbours(pb.FindNeighboursRequest(**where, filter="kind =")))
    assert (bad.code, bad.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FILTER")


def test_a_text_without_an_enricher_or_an_encoder_is_refused(stubs: Stubs, catalog: str):
    put_items(stubs, catalog, a1="x")
    write(stubs, catalog, data=arrow(["a1"], [[1, 0]], floats(2)))
    where = {"catalog": catalog, "source": "clip"}

    def fails(**request: object) -> tuple[str, list[str]]:
        said = failure_of(lambda: stubs.embeddings.FindNeighbours(pb.FindNeighboursRequest(**(where | request))))
        assert said.code in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT)
        return said.reason, said.fields

    assert fails(recipe="ours", text="x") == ("ENCODER_UNAVAILABLE", [])  # nobody knows how these were made
    assert fails(recipe="ours", text="  ") == ("INVALID_FIELD", ["text"])
    assert fails(recipe="ours", text="x" * 70_000) == ("INVALID_FIELD", ["text"])


def test_an_index_is_made_in_the_background_and_told_of(start_server: Callable[..., RunningServer]):
    server = start_server(enricher=False, store__index_threshold_rows=300, store__index_poll_seconds=0.2)
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((20, 16)) * 2
    vectors_ND = (centres[generator.integers(0, 20, 400)] + generator.standard_normal((400, 16))).astype(np.float32)
    ids = [f"{n:03}" for n in range(400)]
    with grpc.insecure_channel(server.address) as channel:
        stubs = Stubs.of(channel)
        add_items(stubs, "default", ids)
        write(stubs, "default", data=arrow(ids[:200], vectors_ND[:200].tolist(), floats(16)))
        request = pb.FindNeighboursRequest(recipe="ours", source="clip", item_id="007", k=5)
        answer = stubs.embeddings.FindNeighbours(request)
        assert answer.exact
        write(stubs, "default", data=arrow(ids[200:], vectors_ND[200:].tolist(), floats(16)))
        deadline = time.monotonic() + 120
        while stubs.embeddings.FindNeighbours(request).exact and time.monotonic() < deadline:
            time.sleep(0.2)
        found = stubs.embeddings.FindNeighbours(request)
        assert (found.exact, len(found.neighbours), "007" in ids_of(found)) == (False, 5, False)
        for _ in range(10):  # meanwhile the matrix is made, by which searches go from then on
            time.sleep(0.1)
            again = stubs.embeddings.FindNeighbours(request)
            assert (again.exact, ids_of(again)) == (False, ids_of(found))
            assert [one.similarity for one in again.neighbours] == pytest.approx(
                [one.similarity for one in found.neighbours], abs=1e-5
            )
        request.exact = True
        exact = stubs.embeddings.FindNeighbours(request)
        assert exact.exact
        assert len(set(ids_of(exact)) & set(ids_of(found))) >= 4
        stats = stubs.embeddings.GetEmbeddingStats(pb.GetEmbeddingStatsRequest(recipe="ours"))
        index = stats.sources[0].index
        assert (index.kind, index.indexed_rows, index.unindexed_rows) == ("IVF_RQ", 400, 0)
        assert (index.recall_at_10 >= 0.97, index.recall_sample) == (True, 100)
        assert abs(index.build_time.ToSeconds() - time.time()) < 300


def test_a_text_finds_what_is_like_it(start_server: Callable[..., RunningServer]):
    server = start_server()
    with grpc.insecure_channel(server.address) as channel:
        stubs = Stubs.of(channel)
        titles = {
            "a1": "a story of pirates on the open sea",
            "a2": "how to bake bread at home",
            "b1": "sailing ships and treasure islands",
            "b2": "cakes, pastry and other sweet things",
        }
        put_items(stubs, "default", **titles)
        job = stubs.enrichment.StartJob(enrichment_pb2.StartJobRequest()).job
        for update in stubs.enrichment.WatchJob(enrichment_pb2.WatchJobRequest(job_id=job.job_id)):
            state = update.job.state
        assert state == enrichment_pb2.JOB_STATE_SUCCEEDED
        request = pb.FindNeighboursRequest(source="original", text="a captain and his crew sail away", k=2)
        answer = stubs.embeddings.FindNeighbours(request)
        assert (set(ids_of(answer)), answer.exact) == ({"a1", "b1"}, True)
        request.filter = 'kind = "b"'
        assert ids_of(stubs.embeddings.FindNeighbours(request)) == ["b1", "b2"]
        # Many at once, some of them the same.
        texts = ["bread and cake", "the sea", "bread and cake"] * 4
        calls = [
            stubs.embeddings.FindNeighbours.future(pb.FindNeighboursRequest(source="original", text=text, k=1))
            for text in texts
        ]
        found = [ids_of(call.result())[0][0:2] for call in calls]
        assert set(found[0::3]) <= {"a2", "b2"}
        assert set(found[1::3]) <= {"a1", "b1"}
        # The API process has loaded no model for it.
        assert "torch" not in Path(f"/proc/{server.api_pid}/maps").read_text()

    # No enricher: one clear error, and the address that a killed one left behind does no harm.
    server.stop()
    (server.store / "run").mkdir(exist_ok=True)
    (server.store / "run" / "encoder-1").write_text(str(server.store / "nobody.sock"))
    lonely = RunningServer(server.store.parent, enricher=False)
    lonely.start()
    try:
        with grpc.insecure_channel(lonely.address) as channel:
            stubs = Stubs.of(channel)
            request = pb.FindNeighboursRequest(source="original", text="the sea")
            said = failure_of(lambda: stubs.embeddings.FindNeighbours(request))
            assert (said.code, said.reason) == (grpc.StatusCode.UNAVAILABLE, "NO_ENRICHER")
            assert "dmesr-cli enricher" in said.message
    finally:
        lonely.stop()


def test_the_api_process_imports_no_torch():
    code = "import sys, dmesr_server.app; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
