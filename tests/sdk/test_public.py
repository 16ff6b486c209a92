"""The public surface: which names there are, one async core with one sync face, and calls that the wire has."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from importlib import import_module

import dmesr
import dmesr.aio
import pytest
from dmesr import admin, client, embeddings, enrichment, items, jobs, models, pins
from dmesr.transport import Rpc
from google.protobuf import symbol_database

ERRORS = re.findall(
    r"\w+",
    """
    Aborted AliasNotFound AlreadyExists ApiError AttributesTooLarge CatalogExists CatalogNotFound ClientClosed
    OutOfScope Overloaded StreamIdle TokenNotFound
    CorrectionNotFound NoPrompt ReadOnly RouteNotApplicable SnapshotRefused
    DeadlineExceeded DescriberUnavailable DescriptionUnusable DimensionMismatch DmesrError DuplicateItemId
    EncoderUnavailable FailedPrecondition Internal InvalidArgument InvalidArtefact InvalidAttribute
    InvalidField InvalidFilter InvalidInput InvalidItemId InvalidPageToken ItemNotFound JobFailed JobNotFound LeaseLost
    MalformedArrow ModelExists ModelInUse ModelNotFound ModelNotReady NoEarlierModel NoEnricher NonFiniteVector
    NotFound
    PermissionDenied PictureDecoderFailed PictureFetchFailed PictureFileNotFound PictureHashMismatch
    PictureNotFound PictureTooLarge PictureTooManyPixels PictureUnreadable PictureUriNotAllowed
    RecipeNotFound RequestTooLarge
    ResourceExhausted ServerUnavailable SourceNotFound SourceReadOnly StoreFull StoreUnavailable
    Unauthenticated Unavailable UnknownRoute UnsupportedDtype VectorMissing VersionNotFound Violation
    WrongJobState
    """,
)
VALUES = re.findall(
    r"\w+",
    """
    Alias Catalog Client DeleteSummary Description Descriptions Drift EmbeddingStats Embeddings EnrichmentStats Estimate
    Moved SourceDrift
    AliasMove ItemDrift Lineage SourceCoverage
    ImportedDescription Item ItemsFound Job JobState JobStatus KEEP_PICTURE Limits Model ModelState Neighbour
    Pin Problem PromptPreview PromptTurn Provenance Recipe RefinementStats RouteStats
    Recommendation Recommendations RejectedRow RetryPolicy RouteEstimate
    RouteProgress ServerInfo Source SourceStats StoreStats Strategy TLS TableStats Timeout TrafficSplit UpsertSummary
    AuditEntry NewToken Token TokenScope
    FindingSeverity StoreFinding StoreReport
    CompactedTable IndexStats Neighbours Snapshot SnapshotTable VectorBatch VectorBatches VectorCache
    """,
)
MODULES = ["aio", "errors", "readers"]

FACES = [
    (client.Client, client.AsyncClient),
    (items.Items, items.AsyncItems),
    (enrichment.Enrichment, enrichment.AsyncEnrichment),
    (embeddings.CatalogEmbeddings, embeddings.AsyncCatalogEmbeddings),
    (models.Models, models.AsyncModels),
    (admin.Admin, admin.AsyncAdmin),
    (jobs.Job, jobs.AsyncJob),
    (pins.Pin, pins.AsyncPin),
]


def test_the_public_names_are_these():
    assert sorted(dmesr.__all__) == sorted([*ERRORS, *VALUES, *MODULES, "connect", "drift", "__version__"])
    assert all(hasattr(dmesr, name) for name in dmesr.__all__)


def test_the_public_names_of_the_async_face_are_these():
    assert sorted(dmesr.aio.__all__) == sorted(["connect", *(face.__name__ for _, face in FACES)])
    assert inspect.signature(dmesr.connect).parameters == inspect.signature(dmesr.aio.connect).parameters


def _public(face: type) -> dict[str, object]:
    return {name: member for name, member in inspect.getmembers(face) if not name.startswith("_") and name != "of"}


def _plain(annotation: str) -> str:
    """The sync annotation that an async one stands for."""
    return annotation.replace("Async", "")


@pytest.mark.parametrize(("sync", "core"), FACES, ids=lambda face: face.__name__)
def test_both_faces_have_the_same_calls(sync: type, core: type):
    assert _public(sync).keys() == _public(core).keys()
    for name, call in _public(sync).items():
        other = _public(core)[name]
        if isinstance(call, property):
            assert isinstance(other, property), name
            continue
        assert not inspect.iscoroutinefunction(call), name
        awaited = inspect.iscoroutinefunction(other)
        iterated = inspect.isasyncgenfunction(other)
        assert awaited or iterated or name in ("catalog", "batches"), (
            f"{core.__name__}.{name} is neither coroutine nor iterator"
        )
        ours, theirs = inspect.signature(call), inspect.signature(other)
        assert list(ours.parameters) == list(theirs.parameters), name
        for parameter in ours.parameters.values():
            twin = theirs.parameters[parameter.name]
            assert (parameter.kind, parameter.default) == (twin.kind, twin.default), f"{name}: {parameter.name}"
        assert _plain(str(theirs.return_annotation)) == str(ours.return_annotation), name


@pytest.mark.parametrize(("sync", "core"), FACES, ids=lambda face: face.__name__)
def test_every_public_call_is_documented(sync: type, core: type):
    for face in (sync, core):
        assert [name for name, call in _public(face).items() if not inspect.getdoc(call)] == []


RPCS = {
    rpc.name: rpc
    for module in (
        "access", "admin", "descriptions", "embeddings", "enrichment", "enrichment_stats", "estimates", "items", "jobs",
        "models", "neighbours", "pictures", "pins", "previews", "reads", "recommendations", "store_check", "transport",
        "writes",
    )
    for rpc in vars(import_module(f"dmesr.{module}")).values()
    if isinstance(rpc, Rpc)
}  # fmt: skip


def test_the_sdk_makes_every_call_of_the_wire():
    pool = symbol_database.Default().pool
    on_the_wire = set()
    for noun in ("items", "enrichment", "embeddings", "models", "recommendations", "admin"):
        for service in pool.FindFileByName(f"dmesr/v1/{noun}.proto").services_by_name.values():
            for method in service.methods:
                name = f"{service.name}/{method.name}"
                on_the_wire.add(name)
                assert method.input_type == RPCS[name].request.DESCRIPTOR, name
                assert method.output_type == RPCS[name].response.DESCRIPTOR, name
    assert set(RPCS) == on_the_wire


def test_only_reads_and_calls_with_an_identity_are_sent_twice():
    assert {name for name, rpc in RPCS.items() if not rpc.idempotent} == {
        "AdminService/CompactStore",
        "AdminService/CreateCatalog",
        "AdminService/CreateToken",
        "AdminService/DropCatalog",
        "AdminService/SnapshotStore",
        "EmbeddingService/PinEmbeddings",
        "EmbeddingService/ReleasePin",
        "EmbeddingService/WriteEmbeddings",
        "EnrichmentService/CancelJob",
        "EnrichmentService/EditDescription",
        "EnrichmentService/ImportDescriptions",
        "ItemService/DeleteItems",
        "ItemService/UploadPictures",
        "ItemService/UpsertItems",
        "ModelService/DeleteModel",
        "ModelService/PromoteModel",
        "ModelService/RollbackModel",
    }


def test_importing_loads_neither_arrow_nor_numpy_nor_a_second_event_loop():
    code = """
import dmesr, sys, threading
print(sorted({'numpy', 'pyarrow', 'rich', 'torch'} & set(sys.modules)), threading.active_count())
"""
    shown = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["[]", "1"]
