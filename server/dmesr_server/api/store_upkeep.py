"""Calls that look after the store: compaction now, snapshots, and a check of all that is in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TypeVar

from dmesr.v1 import admin_pb2 as pb

from dmesr_server.api import recipes, translation, validation
from dmesr_server.api.parts import Parts
from dmesr_server.api.working import in_thread
from dmesr_server.errors import ServiceError
from dmesr_server.store import TableStats
from dmesr_server.upkeep import checking, snapshots

_SIGN_OF_LIFE_SECONDS = 5.0
_FRAME_BYTES = 64

_Result = TypeVar("_Result")


async def compact(parts: Parts, request: pb.CompactStoreRequest) -> AsyncIterator[pb.CompactStoreResponse]:
    """Tidies each table of a catalog, whether that is due or not."""
    row, catalog = await in_thread(parts.catalog, request.catalog)

    def stats() -> dict[str, TableStats]:
        return {table.name: table for table in catalog.stats()}

    before = await in_thread(stats)
    for table in await in_thread(catalog.tables):
        tidying = asyncio.ensure_future(in_thread(parts.housekeeper.tidy, row.name, table))
        async for _ in _meanwhile(tidying):
            yield pb.CompactStoreResponse(table=table.name)
        tidying.result()
        after = await in_thread(stats)
        if table.name in before and table.name in after:
            was, now = translation.table_stats([before[table.name], after[table.name]])
            yield pb.CompactStoreResponse(table=table.name, before=was, after=now)


async def snapshot(parts: Parts, request: pb.SnapshotStoreRequest) -> AsyncIterator[pb.SnapshotStoreResponse]:
    """Makes a snapshot."""
    validation.required(name=request.name)
    name = validation.new_name("name", request.name)
    root = parts.config.store.snapshots_folder
    if root is None:
        raise ServiceError(
            "SNAPSHOT_REFUSED",
            f"the store {parts.store.uri} is no local folder: copy it by the means of where it is (a bucket's "
            "versions), right after the control database",
        )
    step = "beginning"

    def tell(what: str) -> None:
        nonlocal step
        step = what

    def make() -> snapshots.Snapshot:
        with snapshots.disk_errors(f"the folder of snapshots {root} cannot be made"):
            root.mkdir(parents=True, exist_ok=True)
        return snapshots.make(
            store=parts.store,
            control=parts.control,
            artefacts=parts.config.artefacts_folder,
            folder=root / name,
            tell=tell,
        )

    making = asyncio.ensure_future(in_thread(make))
    async for _ in _meanwhile(making):
        yield pb.SnapshotStoreResponse(step=step)
    made = making.result()
    tables = [
        pb.SnapshotTable(catalog=catalog, name=content.name, rows=content.rows, digest=content.digest)
        for catalog, content in sorted(made.tables, key=lambda one: (one[0], one[1].name))
    ]
    yield pb.SnapshotStoreResponse(
        step="done",
        snapshot=pb.Snapshot(folder=str(made.folder), files=made.files, bytes=made.bytes, tables=tables),
    )


async def check(parts: Parts, request: pb.CheckStoreRequest) -> AsyncIterator[pb.CheckStoreResponse]:
    """Looks at everything in the stores."""
    catalog = validation.catalog_name(request.catalog) if request.catalog else None
    step = "beginning"

    def tell(what: str) -> None:
        nonlocal step
        step = what

    scope = checking.Scope(catalog=catalog, contents=not request.quick, read_only=parts.config.server.read_only)
    looking = asyncio.ensure_future(
        in_thread(
            checking.check,
            store=parts.store,
            control=parts.control,
            artefacts=parts.config.artefacts_folder,
            scope=scope,
            written=recipes.source_is_external,
            tell=tell,
        )
    )
    async for _ in _meanwhile(looking):
        yield pb.CheckStoreResponse(step=step)
    yield pb.CheckStoreResponse(step="done", report=_report(looking.result(), parts.config.limits.max_message_bytes))


def _report(done: checking.Checked, room: int) -> pb.StoreReport:
    report = pb.StoreReport(catalogs=done.catalogs, tables=done.tables, rows=done.rows, models=done.models)
    for one in done.findings:
        severity = pb.FindingSeverity.Value(f"FINDING_SEVERITY_{one.severity.name}")
        told = pb.StoreFinding(**{**vars(one), "severity": severity})
        room -= told.ByteSize() + _FRAME_BYTES
        if room < _FRAME_BYTES:
            break  # thousands of them: the first ones are enough to begin with
        report.findings.append(told)
    return report


async def _meanwhile(work: asyncio.Future[_Result]) -> AsyncIterator[None]:
    """Something every few seconds until the work is done. What is under way is finished, also for a caller who left."""
    while not (await asyncio.wait([work], timeout=_SIGN_OF_LIFE_SECONDS))[0]:
        yield None
