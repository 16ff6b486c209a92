"""Who may do what: tokens with scopes for catalogs, made, expired and revoked while the server runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from dmesr.v1 import (
    admin_pb2 as pb,
)
from dmesr.v1 import (
    embeddings_pb2,
    enrichment_pb2,
    items_pb2,
    models_pb2,
    recommendations_pb2,
)
from dmesr_server.api.access import RULES, Place, Scope
from dmesr_server.api.read_only import READING
from google.protobuf import message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from running_server import RunningServer
from wire import Failure, Stubs, failure_of

FILES = (pb, embeddings_pb2, enrichment_pb2, items_pb2, models_pb2, recommendations_pb2)
METHODS = {
    f"{service.name}/{method.name}": method
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
BOOTSTRAP = "first-of-all"


def bearer(token: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {token}")]


ROOT = bearer(BOOTSTRAP)


def soon(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    server = RunningServer(tmp_path_factory.mktemp("guarded"), enricher=False, server__token=BOOTSTRAP).start()
    with grpc.insecure_channel(server.address) as channel:
        for name in ("films", "games"):
            Stubs.of(channel).admin.CreateCatalog(pb.CreateCatalogRequest(name=name), metadata=ROOT)
    yield server
    server.stop()


@pytest.fixture
def stubs(guarded: RunningServer) -> Iterator[Stubs]:
    with grpc.insecure_channel(guarded.address) as channel:
        yield Stubs.of(channel)


def made(stubs: Stubs, scope: pb.TokenScope.ValueType, *catalogs: str, ttl: int = 0, name: str = "someone"):
    request = pb.CreateTokenRequest(
        name=name, scope=scope, catalogs=catalogs, all_catalogs=not catalogs, ttl_seconds=ttl
    )
    return stubs.admin.CreateToken(request, metadata=ROOT)


def test_every_call_of_the_wire_is_in_the_table():
    assert set(RULES) == set(METHODS)
    for name, rule in RULES.items():
        fields = {field.name for field in METHODS[name].input_type.fields}
        needed = {"name"} if rule.place is Place.NAME else {"job_id"} if rule.place is Place.JOB else set()
        needed |= {"pin_id"} if rule.place is Place.PIN else set()
        if rule.place in (Place.EACH, Place.FIRST, Place.INHERITED, Place.FILTER):
            needed |= {"catalog"}
        assert needed | set(rule.subject) <= fields, name
        # A call with a catalog is held to it.
        assert "catalog" not in fields or "catalog" in needed, name
        # What changes something needs more than reading, and what reads needs no more but where it tells of the server.
        assert (rule.scope is Scope.READ) == (name in READING) or name in (
            "AdminService/ListTokens",
            "AdminService/ListAuditEntries",
            "AdminService/CheckStore",
        ), name
        assert rule.audited or rule.scope is not Scope.ADMIN or name in READING, name


def attempt(stubs: Stubs, name: str, metadata: list[tuple[str, str]], catalog: str) -> Failure | None:
    """Calls a method with a message about a catalog and nothing else; None when no refusal came of it."""
    method = METHODS[name]
    request_class = message_factory.GetMessageClass(method.input_type)
    answer_class = message_factory.GetMessageClass(method.output_type)
    fields = {field.name for field in method.input_type.fields}
    request = request_class(**({"catalog": catalog} if "catalog" in fields else {}))
    if RULES[name].place is Place.NAME:
        request = request_class(name=catalog)
    kind = ("stream" if method.client_streaming else "unary") + "_" + ("stream" if method.server_streaming else "unary")
    call = getattr(stubs.channel, kind)(f"/dmesr.v1.{name}", request_class.SerializeToString, answer_class.FromString)
    given = iter([request]) if method.client_streaming else request

    def run() -> None:
        answer = call(given, metadata=metadata, timeout=20)
        if method.server_streaming:
            list(answer)

    try:
        run()
    except grpc.RpcError as error:
        if error.code() not in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED):
            return None
        told = error
    else:
        return None

    def again() -> None:
        raise told

    return failure_of(again)


@pytest.mark.parametrize("scope", list(Scope))
def test_each_scope_opens_its_calls_and_no_others(stubs: Stubs, scope: Scope):
    own = bearer(made(stubs, pb.TokenScope.Value(f"TOKEN_SCOPE_{scope.name}"), "films").bearer_token)
    for name, rule in RULES.items():
        if name == "AdminService/DropCatalog":
            continue
        inside = attempt(stubs, name, own, "films")
        allowed = rule.scope <= scope and rule.place is not Place.ALL
        assert (inside is None) == allowed, (name, inside)
        if inside is not None:
            assert (inside.code, inside.reason) == (grpc.StatusCode.PERMISSION_DENIED, "OUT_OF_SCOPE")
            assert inside.metadata["needed_scope"] == rule.scope.name.lower()
            assert inside.metadata["method"] == name
        outside = attempt(stubs, name, own, "games")
        free = rule.place in (Place.NONE, Place.JOB, Place.PIN)
        assert (outside is None) == (free and rule.scope <= scope), (name, outside)
        assert attempt(stubs, name, [], "films").reason == "UNAUTHENTICATED"


def test_a_stream_that_changes_its_catalog_ends_there(stubs: Stubs):
    own = bearer(made(stubs, pb.TOKEN_SCOPE_WRITE, "films").bearer_token)
    batches = [
        items_pb2.UpsertItemsRequest(catalog=name, items=[items_pb2.Item(item_id="smuggled")])
        for name in ("films", "games")
    ]
    failure = failure_of(lambda: list(stubs.items.UpsertItems(iter(batches), metadata=own)))
    assert (failure.reason, failure.metadata["catalog"]) == ("OUT_OF_SCOPE", "games")
    listed = stubs.items.ListItems(items_pb2.ListItemsRequest(catalog="games"), metadata=ROOT)
    assert [item.item_id for item in listed.items] == []
    # An empty name is the default catalog, which is not its own either.
    failure = failure_of(lambda: stubs.items.ListItems(items_pb2.ListItemsRequest(), metadata=own))
    assert failure.metadata["catalog"] == "default"


def test_jobs_and_pins_belong_to_their_catalogs(stubs: Stubs):
    item = items_pb2.Item(item_id="1", attributes=[items_pb2.Attribute(name="title", values=["Heat"])])
    batch = items_pb2.UpsertItemsRequest(catalog="games", items=[item])
    list(stubs.items.UpsertItems(iter([batch]), metadata=ROOT))
    job = stubs.enrichment.StartJob(enrichment_pb2.StartJobRequest(catalog="games"), metadata=ROOT).job
    films, games = (bearer(made(stubs, pb.TOKEN_SCOPE_WRITE, name).bearer_token) for name in ("films", "games"))
    for call, request in (
        (stubs.enrichment.GetJob, enrichment_pb2.GetJobRequest(job_id=job.job_id)),
        (stubs.enrichment.CancelJob, enrichment_pb2.CancelJobRequest(job_id=job.job_id)),
    ):
        failure = failure_of(lambda c=call, r=request: c(r, metadata=films))
        assert (failure.reason, failure.metadata["catalog"]) == ("OUT_OF_SCOPE", "games")
        call(request, metadata=games)
    absent = enrichment_pb2.GetJobRequest(job_id="0" * 32)
    assert failure_of(lambda: stubs.enrichment.GetJob(absent, metadata=films)).reason == "JOB_NOT_FOUND"
    failure = failure_of(lambda: stubs.enrichment.ListJobs(enrichment_pb2.ListJobsRequest(), metadata=films))
    assert (failure.reason, failure.metadata["catalog"]) == ("OUT_OF_SCOPE", "*")


def test_only_ones_own_catalogs_are_listed(stubs: Stubs):
    own = bearer(made(stubs, pb.TOKEN_SCOPE_READ, "games").bearer_token)
    assert [one.name for one in stubs.admin.ListCatalogs(pb.ListCatalogsRequest(), metadata=own).catalogs] == ["games"]
    everything = stubs.admin.ListCatalogs(pb.ListCatalogsRequest(), metadata=ROOT).catalogs
    assert {"default", "films", "games"} <= {one.name for one in everything}


INFO = pb.GetServerInfoRequest()


def test_tokens_that_are_none(stubs: Stubs, guarded: RunningServer):
    right = made(stubs, pb.TOKEN_SCOPE_READ).bearer_token
    prefix, token_id, secret = right.split("_")
    wrong = {
        "missing": [],
        "unknown": [
            bearer(one)
            for one in (
                "x", f"{prefix}_{token_id}_{secret[:-1]}", f"{prefix}_{token_id}_", f"{prefix}_{'0' * 16}_{secret}",
                f"other_{token_id}_{secret}", f"{prefix}_{token_id.upper()}_{secret}", token_id, secret, "x" * 7000,
                f"{prefix}_{token_id}_{secret} ", "first-of-al",
            )
        ],
        "malformed": [
            [("authorization", right)],
            [("authorization", f"Basic {right}")],
            [("authorization", "Bearer ")],
            [*bearer(right), *bearer(right)],
        ],
    }  # fmt: skip
    for problem, cases in wrong.items():
        for metadata in cases or [[]]:
            failure = failure_of(lambda m=metadata: stubs.admin.GetServerInfo(INFO, metadata=m))
            assert failure.code is grpc.StatusCode.UNAUTHENTICATED
            if "x-" not in problem and metadata != bearer(f"{prefix}_{token_id}_{secret} "):
                assert failure.metadata["problem"] == problem, metadata
    assert stubs.admin.GetServerInfo(INFO, metadata=bearer(right)).needs_token
    assert stubs.admin.GetServerInfo(INFO, metadata=[("authorization", f"bearer {right}")]).needs_token
    assert secret not in guarded.log
    # Nothing on the disk holds the secret: it is kept as a hash.
    for file in guarded.store.glob("control.sqlite*"):
        assert secret.encode() not in file.read_bytes()


def test_a_token_is_revoked_without_a_restart_and_another_lives_on(stubs: Stubs):
    old, new = (made(stubs, pb.TOKEN_SCOPE_ADMIN, name="rotating") for _ in range(2))
    assert old.token.name == new.token.name
    assert old.token.token_id != new.token.token_id
    revoke = pb.RevokeTokenRequest(token_id=old.token.token_id)
    ended = stubs.admin.RevokeToken(revoke, metadata=bearer(new.bearer_token)).token
    assert (ended.revoked_by, ended.created_by) == ("rotating", "bootstrap")
    failure = failure_of(lambda: stubs.admin.GetServerInfo(INFO, metadata=bearer(old.bearer_token)))
    assert (failure.code, failure.metadata["problem"]) == (grpc.StatusCode.UNAUTHENTICATED, "revoked")
    assert stubs.admin.GetServerInfo(INFO, metadata=bearer(new.bearer_token)).version
    # Once more changes nothing of when and by whom.
    assert stubs.admin.RevokeToken(revoke, metadata=ROOT).token == ended
    absent = pb.RevokeTokenRequest(token_id="absent")
    assert failure_of(lambda: stubs.admin.RevokeToken(absent, metadata=ROOT)).reason == "TOKEN_NOT_FOUND"

    def listed(include_ended: bool) -> list[str]:
        request = pb.ListTokensRequest(include_ended=include_ended)
        return [one.token_id for one in stubs.admin.ListTokens(request, metadata=ROOT).tokens]

    assert (old.token.token_id in listed(True), old.token.token_id in listed(False)) == (True, False)
    assert new.token.token_id in listed(False)


def test_a_token_expires_by_itself(stubs: Stubs):
    short = made(stubs, pb.TOKEN_SCOPE_READ, ttl=1)
    lasting = made(stubs, pb.TOKEN_SCOPE_READ, ttl=3600)
    assert short.token.expire_time.seconds - short.token.create_time.seconds == 1

    def problem() -> str:
        try:
            stubs.admin.GetServerInfo(INFO, metadata=bearer(short.bearer_token))
        except grpc.RpcError as error:
            return str(error.details())
        return ""

    soon(lambda: "has expired" in problem())
    assert stubs.admin.GetServerInfo(INFO, metadata=bearer(lasting.bearer_token)).version


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("name", pb.CreateTokenRequest(scope=1, all_catalogs=True)),
        ("name", pb.CreateTokenRequest(name="Alice B", scope=1, all_catalogs=True)),
        ("name", pb.CreateTokenRequest(name="anonymous", scope=1, all_catalogs=True)),
        ("name", pb.CreateTokenRequest(name="bootstrap", scope=1, all_catalogs=True)),
        ("scope", pb.CreateTokenRequest(name="a", all_catalogs=True)),
        ("scope", pb.CreateTokenRequest(name="a", scope=7, all_catalogs=True)),
        ("catalogs", pb.CreateTokenRequest(name="a", scope=1)),
        ("catalogs", pb.CreateTokenRequest(name="a", scope=1, catalogs=["films"], all_catalogs=True)),
        ("ttl_seconds", pb.CreateTokenRequest(name="a", scope=1, all_catalogs=True, ttl_seconds=-1)),
        ("ttl_seconds", pb.CreateTokenRequest(name="a", scope=1, all_catalogs=True, ttl_seconds=2**62)),
    ],
)
def test_bad_tokens_are_not_made(stubs: Stubs, field: str, request_: pb.CreateTokenRequest):
    failure = failure_of(lambda: stubs.admin.CreateToken(request_, metadata=ROOT))
    assert (failure.reason, failure.fields) == ("INVALID_FIELD", [field])


def test_a_token_for_a_catalog_that_is_not_there_is_not_made(stubs: Stubs):
    request = pb.CreateTokenRequest(name="a", scope=1, catalogs=["films", "no-such"])
    failure = failure_of(lambda: stubs.admin.CreateToken(request, metadata=ROOT))
    assert (failure.reason, failure.metadata["catalog"]) == ("CATALOG_NOT_FOUND", "no-such")


def test_every_worker_sees_a_revocation(tmp_path: Path):
    server = RunningServer(tmp_path, enricher=False, server__token=BOOTSTRAP, server__workers=2).start()
    channels = []
    try:
        workers: dict[int, Stubs] = {}
        while len(workers) < 2:
            assert len(channels) < 200
            channels.append(grpc.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)]))
            stubs = Stubs.of(channels[-1])
            workers.setdefault(stubs.admin.GetServerInfo(INFO, metadata=ROOT).worker, stubs)
        token = made(workers[0], pb.TOKEN_SCOPE_READ)

        def let_in(number: int) -> bool:
            try:
                workers[number].admin.GetServerInfo(INFO, metadata=bearer(token.bearer_token))
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                    return False
                raise
            return True

        assert let_in(0)
        soon(lambda: let_in(1))
        workers[1].admin.RevokeToken(pb.RevokeTokenRequest(token_id=token.token.token_id), metadata=ROOT)
        assert not let_in(1)
        soon(lambda: not let_in(0))
    finally:
        for channel in channels:
            channel.close()
        server.stop()


def _reflected(channel: grpc.Channel, metadata: list[tuple[str, str]]) -> grpc.StatusCode:
    request = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    try:
        list(reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(request, metadata=metadata))
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def _healthy(channel: grpc.Channel, metadata: list[tuple[str, str]]) -> grpc.StatusCode:
    try:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), metadata=metadata)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_health_is_open_and_reflection_is_not_unless_told_otherwise(
    guarded: RunningServer, start_server: Callable[..., RunningServer]
):
    ok, stranger, none = grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED
    closed = start_server(
        enricher=False, server__token=BOOTSTRAP, server__open_health=False, server__open_reflection=True
    )
    silent = start_server(enricher=False, server__reflection=False)
    for server, without, with_token in (
        (guarded, (ok, stranger), (ok, ok)),
        (closed, (stranger, ok), (ok, ok)),
        (silent, (ok, none), (ok, none)),
    ):
        with grpc.insecure_channel(server.address) as channel:
            assert (_healthy(channel, []), _reflected(channel, [])) == without
            assert (_healthy(channel, ROOT), _reflected(channel, ROOT)) == with_token


def test_made_tokens_alone_let_in_where_that_is_told(start_server: Callable[..., RunningServer]):
    server = start_server(enricher=False)
    with grpc.insecure_channel(server.address) as channel:
        request = pb.CreateTokenRequest(name="alice", scope=pb.TOKEN_SCOPE_ADMIN, all_catalogs=True)
        token = Stubs.of(channel).admin.CreateToken(request).bearer_token
    server.stop()
    server.config = {"server__require_token": True}
    server.start()
    with grpc.insecure_channel(server.address) as channel:
        stubs = Stubs.of(channel)
        assert failure_of(lambda: stubs.admin.GetServerInfo(INFO)).reason == "UNAUTHENTICATED"
        assert stubs.admin.GetServerInfo(INFO, metadata=bearer(token)).needs_token
