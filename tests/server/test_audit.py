"""The audit log: every admin action and every refused attempt, in order, and nothing of it is ever changed."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import grpc
import pytest
import tiny_artefact
from dmesr.v1 import admin_pb2 as pb
from dmesr.v1 import enrichment_pb2, items_pb2, models_pb2
from published import LEARNED, fill, promote, publish
from running_server import RunningServer
from wire import Stubs, failure_of

ROOT = [("authorization", "Bearer first-of-all")]


def entries(stubs: Stubs, metadata=(), **filters) -> list[pb.AuditEntry]:
    """What the log holds, oldest first."""
    answer = stubs.admin.ListAuditEntries(pb.ListAuditEntriesRequest(**filters), metadata=metadata)
    return list(answer.entries)[::-1]


@pytest.fixture
def opened(start_server: Callable[..., RunningServer]) -> Iterator[tuple[Stubs, RunningServer]]:
    server = start_server(enricher=False)
    with grpc.insecure_channel(server.address) as channel:
        yield Stubs.of(channel), server


def test_admin_actions_are_told_with_their_subject_and_outcome(opened: tuple[Stubs, RunningServer], tmp_path: Path):
    stubs, _ = opened
    admin, models = stubs.admin, stubs.models
    create = pb.CreateCatalogRequest(name="films", domain="film")
    admin.CreateCatalog(create, metadata=[("x-request-id", "mine-1")])
    assert failure_of(lambda: admin.CreateCatalog(create)).reason == "CATALOG_EXISTS"
    recipe_id = fill(stubs, "films")
    publish(stubs, "films", tiny_artefact.write(tmp_path / "v1", recipe_id=recipe_id, items=LEARNED))
    publish(stubs, "films", tiny_artefact.write(tmp_path / "v2", recipe_id=recipe_id, items={"a": (1, [0.0] * 5)}))
    promote(stubs, "films", "tiny:1")
    promote(stubs, "films", "tiny:2")
    models.RollbackModel(models_pb2.RollbackModelRequest(catalog="films"))
    models.DeleteModel(models_pb2.DeleteModelRequest(catalog="films", model="tiny:2"))
    list(admin.CompactStore(pb.CompactStoreRequest(catalog="films")))
    list(admin.SnapshotStore(pb.SnapshotStoreRequest(name="monday")))
    edit = enrichment_pb2.EditDescriptionRequest(catalog="films", item_id="absent", route="text", text="A film.")
    edited = failure_of(lambda: stubs.enrichment.EditDescription(edit)).reason
    admin.DropCatalog(pb.DropCatalogRequest(name="films"))
    # What reads, and what fills a catalog, is no admin action.
    admin.ListCatalogs(pb.ListCatalogsRequest())
    list(stubs.items.UpsertItems(iter([items_pb2.UpsertItemsRequest(items=[items_pb2.Item(item_id="1")])])))

    told = entries(stubs)
    assert {(one.who, one.token_id) for one in told} == {("anonymous", "")}
    assert all(one.peer.startswith("ipv4:127.0.0.1:") and one.HasField("end_time") for one in told)
    assert told[0].request_id == "mine-1"
    assert len({one.request_id for one in told}) == len(told)
    assert [one.number for one in told] == sorted(one.number for one in told)
    promoted = [one for one in told if one.method == "ModelService/PromoteModel"]
    assert {one.outcome for one in promoted} <= {"OK", "FAILED_PRECONDITION"}  # until the model is ready
    assert [one.subject.split()[0] for one in promoted if one.outcome == "OK"] == ["model=tiny:1", "model=tiny:2"]
    others = [one for one in told if one.method != "ModelService/PromoteModel"]
    assert [(one.method.partition("/")[2], one.catalog, one.outcome, one.reason) for one in others] == [
        ("CreateCatalog", "films", "OK", ""),
        ("CreateCatalog", "films", "ALREADY_EXISTS", "CATALOG_EXISTS"),
        ("PublishModel", "films", "OK", ""),
        ("PublishModel", "films", "OK", ""),
        ("RollbackModel", "films", "OK", ""),
        ("DeleteModel", "films", "OK", ""),
        ("CompactStore", "films", "OK", ""),
        ("SnapshotStore", "", "OK", ""),
        ("EditDescription", "films", "NOT_FOUND", edited),
        ("DropCatalog", "films", "OK", ""),
    ]
    assert others[0].subject == "name=films domain=film"
    assert others[2].subject == "name=tiny"
    assert others[5].subject == "model=tiny:2"
    assert "item_id=absent route=text" in others[8].subject


def test_the_log_is_read_by_filters_and_pages(opened: tuple[Stubs, RunningServer]):
    stubs, _ = opened
    for number in range(5):
        stubs.admin.CreateCatalog(pb.CreateCatalogRequest(name=f"c{number}"))
    stubs.admin.DropCatalog(pb.DropCatalogRequest(name="c0"))
    everything = entries(stubs)
    assert len(everything) == 6
    assert [one.method for one in entries(stubs, catalog="c0")] == [
        "AdminService/CreateCatalog",
        "AdminService/DropCatalog",
    ]
    for method in ("DropCatalog", "AdminService/DropCatalog"):
        assert [one.catalog for one in entries(stubs, method=method)] == ["c0"]
    for nothing in ({"method": "Catalog"}, {"method": "%"}, {"catalog": "' OR 1=1 --"}, {"who": "x"}):
        assert entries(stubs, **nothing) == []
    assert entries(stubs, who="anonymous", since=everything[3].time) == everything[3:]
    pages, token = [], ""
    while True:
        request = pb.ListAuditEntriesRequest(page_size=4, page_token=token)
        answer = stubs.admin.ListAuditEntries(request)
        pages.append([one.number for one in answer.entries])
        token = answer.next_page_token
        if not token:
            break
    assert [len(page) for page in pages] == [4, 2]
    assert [number for page in pages for number in page] == [one.number for one in everything][::-1]
    for wrong in (
        pb.ListAuditEntriesRequest(page_token="nonsense"),
        pb.ListAuditEntriesRequest(page_size=-1),
        pb.ListAuditEntriesRequest(since={"seconds": 2**60}),
    ):
        failure = failure_of(lambda r=wrong: stubs.admin.ListAuditEntries(r))
        assert failure.code is grpc.StatusCode.INVALID_ARGUMENT


def test_refused_attempts_are_told_with_who_made_them(start_server: Callable[..., RunningServer]):
    server = start_server(enricher=False, server__token="first-of-all")
    with grpc.insecure_channel(server.address) as channel:
        stubs = Stubs.of(channel)
        token = stubs.admin.CreateToken(
            pb.CreateTokenRequest(name="reader", scope=pb.TOKEN_SCOPE_READ, catalogs=["default"]), metadata=ROOT
        )
        reader = [("authorization", f"Bearer {token.bearer_token}")]
        drop = pb.DropCatalogRequest(name="default")
        assert failure_of(lambda: stubs.admin.DropCatalog(drop, metadata=reader)).reason == "OUT_OF_SCOPE"
        assert failure_of(lambda: stubs.admin.DropCatalog(drop)).reason == "UNAUTHENTICATED"
        upload = iter([models_pb2.PublishModelRequest(name="tiny", file_name="manifest.json")])
        assert failure_of(lambda: stubs.models.PublishModel(upload, metadata=reader)).reason == "OUT_OF_SCOPE"
        # An attempt at what is no admin action is none either.
        assert failure_of(lambda: stubs.items.ListItems(items_pb2.ListItemsRequest())).reason == "UNAUTHENTICATED"
        told = entries(stubs, ROOT)
        assert [(one.who, one.method.partition("/")[2], one.outcome, one.reason) for one in told] == [
            ("bootstrap", "CreateToken", "OK", ""),
            ("reader", "DropCatalog", "PERMISSION_DENIED", "OUT_OF_SCOPE"),
            ("anonymous", "DropCatalog", "UNAUTHENTICATED", "UNAUTHENTICATED"),
            ("reader", "PublishModel", "PERMISSION_DENIED", "OUT_OF_SCOPE"),
        ]
        assert told[0].subject == "name=reader scope=TOKEN_SCOPE_READ catalogs=default"
        assert [one.token_id for one in told] == ["", token.token.token_id, "", token.token.token_id]
        assert token.bearer_token.rpartition("_")[2] not in str(told)
        # Strangers cannot fill the disk: of what comes without a token, a minute's worth is bounded.
        for _ in range(80):
            failure_of(lambda: stubs.admin.DropCatalog(drop))
        assert 60 <= len(entries(stubs, ROOT, who="anonymous")) < 81
        # The admin of one catalog reads what was about it, and nothing else.
        request = pb.CreateTokenRequest(name="owner", scope=pb.TOKEN_SCOPE_ADMIN, catalogs=["default"])
        owner = [("authorization", f"Bearer {stubs.admin.CreateToken(request, metadata=ROOT).bearer_token}")]
        assert {one.catalog for one in entries(stubs, owner, catalog="default")} == {"default"}
        assert failure_of(lambda: entries(stubs, owner)).reason == "OUT_OF_SCOPE"


def test_the_database_itself_refuses_to_change_the_log(opened: tuple[Stubs, RunningServer]):
    stubs, server = opened
    stubs.admin.CreateCatalog(pb.CreateCatalogRequest(name="films"))
    with closing(sqlite3.connect(server.store / "control.sqlite")) as database:
        for table in ("audit_entries", "audit_outcomes"):
            for change in (f"DELETE FROM {table}", f"UPDATE {table} SET number = number + 100"):
                with pytest.raises(sqlite3.IntegrityError, match="only grows"):
                    database.execute(change)


def test_without_its_log_an_action_does_not_begin_and_its_answer_is_never_lost(opened: tuple[Stubs, RunningServer]):
    stubs, server = opened
    block = "CREATE TRIGGER broken BEFORE INSERT ON {} BEGIN SELECT RAISE(ABORT, 'no more'); END"
    with closing(sqlite3.connect(server.store / "control.sqlite")) as database:
        database.execute(block.format("audit_entries"))
        database.commit()
        failure = failure_of(lambda: stubs.admin.CreateCatalog(pb.CreateCatalogRequest(name="films")))
        assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
        assert "refused before it began: the audit log cannot be written" in failure.message
        assert [one.name for one in stubs.admin.ListCatalogs(pb.ListCatalogsRequest()).catalogs] == ["default"]
        # What is no admin action goes on.
        list(stubs.items.UpsertItems(iter([items_pb2.UpsertItemsRequest(items=[items_pb2.Item(item_id="1")])])))

        database.execute("DROP TRIGGER broken")
        database.execute(block.format("audit_outcomes"))
        database.commit()
        assert stubs.admin.CreateCatalog(pb.CreateCatalogRequest(name="films")).catalog.name == "films"
        (entry,) = entries(stubs)
        assert (entry.method, entry.outcome, entry.HasField("end_time")) == ("AdminService/CreateCatalog", "", False)
    assert f"the audit log lacks that its entry {entry.number} ended with OK" in server.log


class _WithToken(
    grpc.UnaryUnaryClientInterceptor, grpc.StreamUnaryClientInterceptor, grpc.StreamStreamClientInterceptor
):
    """Sends a token with every call."""

    def __init__(self, token: str):
        self._metadata = [("authorization", f"Bearer {token}")]

    def _call(self, continuation, details, request):
        return continuation(details._replace(metadata=self._metadata), request)

    intercept_unary_unary = intercept_stream_unary = intercept_stream_stream = _call


def test_who_promoted_is_whose_token_it_was(start_server: Callable[..., RunningServer], tmp_path: Path):
    server = start_server(enricher=False, server__token="first-of-all")
    with grpc.insecure_channel(server.address) as channel:
        request = pb.CreateTokenRequest(name="alice", scope=pb.TOKEN_SCOPE_ADMIN, catalogs=["default"])
        token = Stubs.of(channel).admin.CreateToken(request, metadata=ROOT)
        stubs = Stubs.of(grpc.intercept_channel(channel, _WithToken(token.bearer_token)))
        recipe_id = fill(stubs, "")
        publish(stubs, "", tiny_artefact.write(tmp_path / "v1", recipe_id=recipe_id, items=LEARNED))
        promote(stubs, "", "tiny:1")
        traced = stubs.models.GetModel(models_pb2.GetModelRequest(model="tiny:1", lineage=True)).lineage
        assert (traced.published_by, [move.actor for move in traced.moves]) == ("alice", ["alice"])
        told = entries(stubs, catalog="default", who="alice")
        assert {(one.token_id, one.catalog) for one in told} == {(token.token.token_id, "default")}
