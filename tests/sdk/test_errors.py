"""The tree of errors: one class for each reason of the wire, below the parent that its gRPC code chooses."""

from __future__ import annotations

import pickle

import dmesr
import grpc
import pytest
from dmesr import errors
from dmesr.admin import CREATE, LIST
from dmesr.rows import reason_name
from dmesr.v1 import admin_pb2, errors_pb2

from .peer import Peer, refuse

REASONS = sorted(
    name.removeprefix("ERROR_REASON_")
    for name in errors_pb2.ErrorReason.keys()  # noqa: SIM118 (an enum wrapper, not a dict)
    if name != "ERROR_REASON_UNSPECIFIED"
)
# The states a job can be in are called JobState, so the reason's class has another name there.
NAMES = {"JOB_STATE": "WrongJobState"}
# gRPC codes as the comments of errors.proto state them.
CODES = {
    "CATALOG_NOT_FOUND": errors.NotFound,
    "CATALOG_EXISTS": errors.AlreadyExists,
    "JOB_STATE": errors.FailedPrecondition,
    "LEASE_LOST": errors.Aborted,
    "DIMENSION_MISMATCH": errors.InvalidArgument,
    "STORE_FULL": errors.ResourceExhausted,
    "STORE_UNAVAILABLE": errors.Unavailable,
    "UNAUTHENTICATED": errors.Unauthenticated,
    "INTERNAL": errors.Internal,
}


@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_has_its_class(reason: str):
    name = NAMES.get(reason, "".join(part.capitalize() for part in reason.split("_")))
    error = errors.by_reason(reason, "what was wrong", metadata={"item_id": "1"})
    assert type(error) is getattr(dmesr, name)
    assert (error.reason, error.message, str(error)) == (reason, "what was wrong", "what was wrong")
    assert error.metadata == {"item_id": "1"}
    assert isinstance(error, CODES.get(reason, dmesr.ApiError))
    assert error.code is type(error).class_code


def test_every_class_has_its_reason():
    assert sorted(errors._REASONS) == REASONS


def test_the_tree_is_the_one_in_the_docstring():
    def below(kind: type[dmesr.DmesrError]) -> set[str]:
        return {kind.__name__}.union(*(below(child) for child in kind.__subclasses__()))

    drawn = set((errors.__doc__ or "").replace("(", " ").split())
    assert below(dmesr.DmesrError) <= drawn


@pytest.mark.parametrize(
    "error",
    [
        dmesr.ItemNotFound("no item '1'", metadata={"item_id": "1"}),
        dmesr.InvalidField("k: is 0", violations=[dmesr.Violation("k", "is 0")]),
        dmesr.ServerUnavailable("gone", target="127.0.0.1:1"),
        dmesr.JobFailed("job 1 failed", job_id="1", reason="STORE_FULL"),
    ],
)
def test_errors_survive_another_process(error: dmesr.DmesrError):
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


def test_a_reason_of_a_newer_server_is_told_by_its_parent(peer: Peer):
    peer.answer(LIST, lambda _, context: refuse(context, grpc.StatusCode.NOT_FOUND, "SHELF_NOT_FOUND", "no shelf"))
    with dmesr.connect(peer.address) as client, pytest.raises(dmesr.NotFound) as caught:
        client.admin.list_catalogs()
    assert (type(caught.value), caught.value.reason) == (dmesr.NotFound, "SHELF_NOT_FOUND")
    assert reason_name(9_999) == "9999"


def test_the_status_comes_whole(peer: Peer):
    def create(request: admin_pb2.CreateCatalogRequest, context: grpc.ServicerContext) -> None:
        refuse(
            context,
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_FIELD",
            "name: is 'A B'",
            violations={"name": "is 'A B'"},
            field="name",
        )

    peer.answer(CREATE, create)
    with dmesr.connect(peer.address) as client, pytest.raises(dmesr.InvalidField) as caught:
        client.admin.create_catalog("A B")
    assert caught.value.violations == (dmesr.Violation("name", "is 'A B'"),)
    assert caught.value.metadata == {"field": "name"}
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT


def test_a_server_of_something_else_is_named_as_such(peer: Peer):
    with dmesr.connect(peer.address) as client, pytest.raises(dmesr.ApiError, match="has no AdminService/ListCatalogs"):
        client.admin.list_catalogs()


def test_a_bare_status_keeps_its_code(peer: Peer):
    peer.answer(LIST, lambda _, context: context.abort(grpc.StatusCode.PERMISSION_DENIED, "by the proxy"))
    with dmesr.connect(peer.address) as client, pytest.raises(dmesr.PermissionDenied, match="by the proxy") as caught:
        client.admin.list_catalogs()
    assert caught.value.reason == ""
