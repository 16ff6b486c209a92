"""Calls that look after the store: compaction now, and snapshots."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TypeVar

from dmesr.v1 import admin_pb2 as pb

from dmesr_server.api import translation, validation
from dmesr_server.api.parts import Parts
from dmesr_server.errors import ServiceError
from dmesr_server.store import TableStats
from dmesr_server.upkeep import snapshots

_SIGN_OF_LIFE_SECONDS = 5.0

_Result = TypeVar("_Result")


async def compact(parts: Parts, request: pb.CompactStoreRequest) -> AsyncIterator[pb.CompactStoreResponse]:
    """Tidies each table of a catalog, whether that is due or not."""
    row, catalog = await asyncio.to_thread(parts.catalog, request.catalog)

    def stats() -> dict[str, TableStats]:
        return {table.name: table for table in catalog.stats()}

    before = await asyncio.to_thread(stats)
    for table in await asyncio.to_thread(catalog.tables):
        tidying = asyncio.ensure_future(asyncio.to_thread(parts.housekeeper.tidy, row.name, table))
        async for _ in _meanwhile(tidying):
            yield pb.CompactStoreResponse(table=table.name)
        tidying.result()
        after = await asyncio.to_thread(stats)
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

    making = asyncio.ensure_future(asyncio.to_thread(make))
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


async def _meanwhile(work: asyncio.Future[_Result]) -> AsyncIterator[None]:
    """Something every few seconds until the work is done. What is under way is finished, also for a caller who left."""
    while not (await asyncio.wait([work], timeout=_SIGN_OF_LIFE_SECONDS))[0]:
        yield None
