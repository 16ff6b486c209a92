"""AdminService: catalogs, the store, and what this server is."""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import AsyncIterator
from typing import Any

from dmesr.v1 import admin_pb2 as pb
from dmesr.v1 import admin_pb2_grpc
from grpc.aio import ServicerContext

from dmesr_server.api import access_control, store_upkeep, translation, validation
from dmesr_server.api.access import CALLER
from dmesr_server.api.parts import Parts
from dmesr_server.api.working import in_thread
from dmesr_server.enrichment import describers
from dmesr_server.store import SCHEMA_VERSION

_Context = ServicerContext[Any, Any]
_PACKAGES = (
    "dmesr",
    "grpcio",
    "protobuf",
    "lancedb",
    "pyarrow",
    "numpy",
    "sqlalchemy",
    "onnxruntime",
    "pillow",
    "sentence-transformers",
    "transformers",
    "torch",
    "vllm",
)


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """Manages catalogs and tells about the server."""

    def __init__(self, parts: Parts):
        self._parts = parts
        self._control = parts.control
        # "import" stands for whatever was brought in: what that was, its recipe says.
        configured = parts.config.enrichment
        self._describer, self._describer_is_mllm = configured.describer, False
        if configured.describer != describers.IMPORT:
            describer = describers.create(configured.describer, configured)
            self._describer, self._describer_is_mllm = describer.name, describer.is_mllm
        self._packages = {name: found for name in _PACKAGES if (found := _version(name)) is not None}

    async def CreateCatalog(self, request: pb.CreateCatalogRequest, context: _Context) -> pb.CreateCatalogResponse:
        """Creates a catalog."""
        return await in_thread(self._create, request)

    async def ListCatalogs(self, request: pb.ListCatalogsRequest, context: _Context) -> pb.ListCatalogsResponse:
        """Lists the catalogs."""
        return await in_thread(self._list)

    async def DropCatalog(self, request: pb.DropCatalogRequest, context: _Context) -> pb.DropCatalogResponse:
        """Drops a catalog with everything in it."""
        return await in_thread(self._drop, request)

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: _Context) -> pb.GetServerInfoResponse:
        """Tells versions, limits and what enrichment would use."""
        return await in_thread(self._info)

    async def GetStoreStats(self, request: pb.GetStoreStatsRequest, context: _Context) -> pb.GetStoreStatsResponse:
        """Tells what the tables hold."""
        return await in_thread(self._stats, request)

    async def CompactStore(
        self, request: pb.CompactStoreRequest, context: _Context
    ) -> AsyncIterator[pb.CompactStoreResponse]:
        """Compacts the tables and drops old versions now."""
        async for told in store_upkeep.compact(self._parts, request):
            yield told

    async def SnapshotStore(
        self, request: pb.SnapshotStoreRequest, context: _Context
    ) -> AsyncIterator[pb.SnapshotStoreResponse]:
        """Copies the whole store into a folder on the server."""
        async for told in store_upkeep.snapshot(self._parts, request):
            yield told

    async def CheckStore(
        self, request: pb.CheckStoreRequest, context: _Context
    ) -> AsyncIterator[pb.CheckStoreResponse]:
        """Looks for what is damaged, missing or left over."""
        async for told in store_upkeep.check(self._parts, request):
            yield told

    async def CreateToken(self, request: pb.CreateTokenRequest, context: _Context) -> pb.CreateTokenResponse:
        """Makes a bearer token."""
        return await in_thread(access_control.create, self._parts, request)

    async def ListTokens(self, request: pb.ListTokensRequest, context: _Context) -> pb.ListTokensResponse:
        """Lists the tokens."""
        return await in_thread(access_control.list_tokens, self._parts, request)

    async def RevokeToken(self, request: pb.RevokeTokenRequest, context: _Context) -> pb.RevokeTokenResponse:
        """Makes a token invalid for ever."""
        return await in_thread(access_control.revoke, self._parts, request)

    async def ListAuditEntries(
        self, request: pb.ListAuditEntriesRequest, context: _Context
    ) -> pb.ListAuditEntriesResponse:
        """Lists what the audit log holds."""
        return await in_thread(access_control.list_audit, self._parts, request)

    def _create(self, request: pb.CreateCatalogRequest) -> pb.CreateCatalogResponse:
        validation.required(name=request.name)
        row = self._control.catalogs.create(
            validation.new_name("name", request.name),
            validation.short_text("domain", request.domain) or "item",
            validation.language(request.language) or "en",
        )
        return pb.CreateCatalogResponse(catalog=translation.catalog(row, items=0))

    def _list(self) -> pb.ListCatalogsResponse:
        seen = (row for row in self._control.catalogs.list() if CALLER.get().may_see(row.name))
        rows = sorted(seen, key=lambda row: row.name)
        return pb.ListCatalogsResponse(
            catalogs=[translation.catalog(row, items=self._parts.store.catalog(row.name).items.count()) for row in rows]
        )

    def _drop(self, request: pb.DropCatalogRequest) -> pb.DropCatalogResponse:
        validation.required(name=request.name)
        name = self._control.catalogs.get(request.name).name
        # The data first: were the row to go first and the process to die, a new catalog of that name would find it.
        self._parts.store.drop_catalog(name)
        self._control.catalogs.drop(name)
        # Once more: what was on its way in while the row still stood.
        self._parts.store.drop_catalog(name)
        self._parts.live.forget(catalog=name)
        self._parts.serving.aliases_changed(catalog=name)
        shutil.rmtree(self._parts.config.artefacts_folder / name, ignore_errors=True)
        return pb.DropCatalogResponse()

    def _info(self) -> pb.GetServerInfoResponse:
        config = self._parts.config
        return pb.GetServerInfoResponse(
            version=self._packages.get("dmesr", ""),
            schema_version=SCHEMA_VERSION,
            limits=translation.limits(config.limits),
            describer=self._describer,
            describer_is_mllm=self._describer_is_mllm,
            encoder=config.enrichment.encoder.model,
            auto_enrich=config.enrichment.auto,
            live_enrichers=len(self._control.leases.live("enricher:")),
            packages=self._packages,
            workers=config.server.workers,
            worker=self._parts.worker,
            read_only=config.server.read_only,
            needs_token=config.server.needs_token,
        )

    def _stats(self, request: pb.GetStoreStatsRequest) -> pb.GetStoreStatsResponse:
        _, catalog = self._parts.catalog(request.catalog)
        tables = translation.table_stats(catalog.stats())
        return pb.GetStoreStatsResponse(tables=tables, uri=self._parts.config.store.uri)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
