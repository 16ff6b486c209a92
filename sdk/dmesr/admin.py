"""Administration: catalogs, the store, and what the server is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from dmesr import access, store_check
from dmesr.access import AuditEntry, NewToken, Token, TokenScope
from dmesr.arguments import one_id
from dmesr.bridge import EventLoopThread
from dmesr.rows import to_time
from dmesr.store_check import StoreReport
from dmesr.transport import SERVER_INFO, Rpc, Transport
from dmesr.v1 import admin_pb2

CREATE = Rpc("AdminService/CreateCatalog", admin_pb2.CreateCatalogRequest, admin_pb2.CreateCatalogResponse)
LIST = Rpc("AdminService/ListCatalogs", admin_pb2.ListCatalogsRequest, admin_pb2.ListCatalogsResponse, idempotent=True)
DROP = Rpc("AdminService/DropCatalog", admin_pb2.DropCatalogRequest, admin_pb2.DropCatalogResponse)
STATS = Rpc(
    "AdminService/GetStoreStats", admin_pb2.GetStoreStatsRequest, admin_pb2.GetStoreStatsResponse, idempotent=True
)
COMPACT = Rpc("AdminService/CompactStore", admin_pb2.CompactStoreRequest, admin_pb2.CompactStoreResponse)
SNAPSHOT = Rpc("AdminService/SnapshotStore", admin_pb2.SnapshotStoreRequest, admin_pb2.SnapshotStoreResponse)


@dataclass(frozen=True)
class Catalog:
    """A catalogue of items of one domain."""

    name: str
    domain: str  # what an item is, in the words that prompts use
    language: str  # of the descriptions, a BCP 47 tag
    create_time: datetime | None
    items: int  # in it now


@dataclass(frozen=True)
class Limits:
    """The limits that the server enforces. The SDK keeps to them by itself; they matter to other callers."""

    max_message_bytes: int
    max_items_per_batch: int
    max_ids_per_call: int
    max_item_id_bytes: int
    max_attribute_bytes: int  # of one item
    max_picture_bytes: int
    max_picture_pixels: int
    max_k: int
    max_histories_per_call: int


@dataclass(frozen=True)
class ServerInfo:
    """What the server is."""

    version: str
    schema_version: int  # of the store
    limits: Limits
    describer: str  # that a job uses when it names none
    describer_is_mllm: bool
    encoder: str  # that a job uses when it names none
    auto_enrich: bool  # upserts start enrichment by themselves
    live_enrichers: int
    packages: Mapping[str, str]  # versions by name
    workers: int = 1  # processes that answer at the address
    worker: int = 0  # which of them answered this time
    read_only: bool = False  # a replica: it refuses every call that would change something
    needs_token: bool = False  # every call must carry a bearer token


@dataclass(frozen=True)
class TableStats:
    """One table of the store."""

    name: str
    rows: int
    version: int
    bytes: int  # on disk, old versions too; of a remote store, about what the newest rows take
    files: int  # the same
    versions: int = 0  # that can still be read
    fragments: int = 0  # pieces that the newest version is in; compaction makes few of many


@dataclass(frozen=True)
class StoreStats:
    """What the tables of a catalog hold."""

    tables: tuple[TableStats, ...]
    uri: str  # where the store is


@dataclass(frozen=True)
class CompactedTable:
    """What compaction made of one table."""

    before: TableStats
    after: TableStats


@dataclass(frozen=True)
class SnapshotTable:
    """One table of a snapshot."""

    catalog: str
    name: str
    rows: int
    digest: str  # sha256 hex over its rows, vectors and pictures' bytes left out: those are held by their hash


@dataclass(frozen=True)
class Snapshot:
    """A copy of the whole store, in a folder on the server."""

    folder: str
    files: int
    bytes: int
    tables: tuple[SnapshotTable, ...]


def _table(one: admin_pb2.TableStats) -> TableStats:
    return TableStats(one.name, one.rows, one.version, one.bytes, one.files, one.versions, one.fragments)


def _catalog(one: admin_pb2.Catalog) -> Catalog:
    return Catalog(one.name, one.domain, one.language, to_time(one.create_time), one.items)


class AsyncAdmin:
    """Administration, for coroutines. See :class:`Admin` for what each call does."""

    def __init__(self, transport: Transport, catalog: str) -> None:
        self._transport = transport
        self._catalog_name = catalog

    async def create_catalog(self, name: str, *, domain: str = "item", language: str = "en") -> Catalog:
        """Creates a catalog."""
        request = admin_pb2.CreateCatalogRequest(name=one_id(name, name="name"), domain=domain, language=language)
        return _catalog((await self._transport.unary(CREATE, request)).catalog)

    async def list_catalogs(self) -> list[Catalog]:
        """Lists the catalogs by name."""
        answer = await self._transport.unary(LIST, admin_pb2.ListCatalogsRequest())
        return [_catalog(one) for one in answer.catalogs]

    async def drop_catalog(self, name: str) -> None:
        """Drops a catalog with everything in it."""
        await self._transport.unary(DROP, admin_pb2.DropCatalogRequest(name=one_id(name, name="name")))

    async def server_info(self) -> ServerInfo:
        """Tells what the server is."""
        answer = await self._transport.unary(SERVER_INFO, admin_pb2.GetServerInfoRequest())
        limits = answer.limits
        return ServerInfo(
            version=answer.version,
            schema_version=answer.schema_version,
            limits=Limits(
                max_message_bytes=limits.max_message_bytes,
                max_items_per_batch=limits.max_items_per_batch,
                max_ids_per_call=limits.max_ids_per_call,
                max_item_id_bytes=limits.max_item_id_bytes,
                max_attribute_bytes=limits.max_attribute_bytes,
                max_picture_bytes=limits.max_picture_bytes,
                max_picture_pixels=limits.max_picture_pixels,
                max_k=limits.max_k,
                max_histories_per_call=limits.max_histories_per_call,
            ),
            describer=answer.describer,
            describer_is_mllm=answer.describer_is_mllm,
            encoder=answer.encoder,
            auto_enrich=answer.auto_enrich,
            live_enrichers=answer.live_enrichers,
            packages=dict(answer.packages),
            workers=answer.workers,
            worker=answer.worker,
            read_only=answer.read_only,
            needs_token=answer.needs_token,
        )

    async def store_stats(self) -> StoreStats:
        """Tells what the tables of the client's catalog hold."""
        answer = await self._transport.unary(STATS, admin_pb2.GetStoreStatsRequest(catalog=self._catalog_name))
        return StoreStats(
            tables=tuple(_table(one) for one in answer.tables),
            uri=answer.uri,
        )

    async def compact_store(self) -> list[CompactedTable]:
        """Compacts the tables of the client's catalog now."""
        request = admin_pb2.CompactStoreRequest(catalog=self._catalog_name)

        async def attempt(_: float | None) -> list[CompactedTable]:
            return [
                CompactedTable(before=_table(told.before), after=_table(told.after))
                async for told in self._transport.stream(COMPACT, request)
                if told.HasField("after")
            ]

        return await self._transport.retrying(attempt, seconds=None, idempotent=COMPACT.idempotent)

    async def snapshot_store(self, name: str) -> Snapshot:
        """Copies the whole store into a folder on the server."""
        request = admin_pb2.SnapshotStoreRequest(name=one_id(name, name="name"))

        async def attempt(_: float | None) -> admin_pb2.Snapshot:
            made = admin_pb2.Snapshot()
            async for told in self._transport.stream(SNAPSHOT, request):
                made = told.snapshot
            return made

        made = await self._transport.retrying(attempt, seconds=None, idempotent=SNAPSHOT.idempotent)
        return Snapshot(
            folder=made.folder,
            files=made.files,
            bytes=made.bytes,
            tables=tuple(SnapshotTable(one.catalog, one.name, one.rows, one.digest) for one in made.tables),
        )

    async def check_store(self, *, catalog: str = "", quick: bool = False) -> StoreReport:
        """Looks for what is damaged, missing or left over."""
        return await store_check.check_store(self._transport, catalog=catalog, quick=quick)

    async def create_token(
        self,
        name: str,
        *,
        scope: TokenScope | str,
        catalogs: Iterable[str] | None,
        ttl: timedelta | None = None,
    ) -> NewToken:
        """Makes a bearer token."""
        return await access.create_token(self._transport, name, scope=scope, catalogs=catalogs, ttl=ttl)

    async def list_tokens(self, *, include_ended: bool = False) -> list[Token]:
        """Lists the tokens, oldest first."""
        return await access.list_tokens(self._transport, include_ended=include_ended)

    async def revoke_token(self, token_id: str) -> Token:
        """Makes a token invalid for ever."""
        return await access.revoke_token(self._transport, token_id)

    async def list_audit(
        self, *, since: datetime | None = None, catalog: str = "", method: str = "", who: str = ""
    ) -> AsyncIterator[AuditEntry]:
        """Reads the audit log, newest first."""
        async for entry in access.list_audit(self._transport, since=since, catalog=catalog, method=method, who=who):
            yield entry


class Admin:
    """Administration of the server."""

    def __init__(self, core: AsyncAdmin, loop: EventLoopThread) -> None:
        self._core = core
        self._loop = loop

    def create_catalog(self, name: str, *, domain: str = "item", language: str = "en") -> Catalog:
        """Creates a catalog.

        Args:
            name: Lower-case letters, digits, "-" and "_", at most 63.
            domain: What an item is, in the words that prompts use: "film", "restaurant", "video game".
            language: The language of the descriptions as a BCP 47 tag.

        Raises:
            CatalogExists: There is one of that name.
        """
        return self._loop.run(self._core.create_catalog(name, domain=domain, language=language))

    def list_catalogs(self) -> list[Catalog]:
        """Lists the catalogs by name."""
        return self._loop.run(self._core.list_catalogs())

    def drop_catalog(self, name: str) -> None:
        """Drops a catalog with its items, pictures, descriptions, vectors and models.

        Raises:
            CatalogNotFound: There is none of that name.
        """
        return self._loop.run(self._core.drop_catalog(name))

    def server_info(self) -> ServerInfo:
        """Tells versions, limits and what enrichment would use."""
        return self._loop.run(self._core.server_info())

    def store_stats(self) -> StoreStats:
        """Tells what the tables of the client's catalog hold."""
        return self._loop.run(self._core.store_stats())

    def compact_store(self) -> list[CompactedTable]:
        """Compacts the tables of the client's catalog and drops old versions now; pinned ones stay.

        The server does so by itself when it is due. Takes minutes for a large table in many pieces.

        Returns:
            What each table was like, and what it is like now.
        """
        return self._loop.run(self._core.compact_store())

    def snapshot_store(self, name: str) -> Snapshot:
        """Copies all catalogs, the control database and the models into a folder on the server, while calls go on.

        `dmesr-cli store restore` makes a store of it again.

        Args:
            name: The folder's name under the server's folder of snapshots (`store.snapshots`); none may be there yet.

        Raises:
            SnapshotRefused: The name is taken, or the store is not of a kind that can be copied.
        """
        return self._loop.run(self._core.snapshot_store(name))

    def check_store(self, *, catalog: str = "", quick: bool = False) -> StoreReport:
        """Looks for what is damaged, missing or left over in the stores. Calls go on meanwhile; nothing is changed.

        Reads everything once, so it takes as long as reading the whole store.

        Args:
            catalog: Only this one; all when empty.
            quick: Follow pointers and count rows, but read neither vectors nor pictures nor models' files.

        Raises:
            CatalogNotFound: There is none of that name.
        """
        return self._loop.run(self._core.check_store(catalog=catalog, quick=quick))

    def create_token(
        self,
        name: str,
        *,
        scope: TokenScope | str,
        catalogs: Iterable[str] | None,
        ttl: timedelta | None = None,
    ) -> NewToken:
        """Makes a bearer token. What it answers is the only place where the token can ever be read.

        To rotate a token, make another of the same name, hand it out, then revoke the old one.

        Args:
            name: Whose it is: lower-case letters, digits, "-" and "_", at most 63.
            scope: "read", "write" or "admin"; each holds those before it.
            catalogs: For which catalogs it is good; None for all, those to come too.
            ttl: How long it lives; None for ever.

        Raises:
            CatalogNotFound: One of the catalogs does not exist.
            OutOfScope: The caller may not make tokens.
        """
        return self._loop.run(self._core.create_token(name, scope=scope, catalogs=catalogs, ttl=ttl))

    def list_tokens(self, *, include_ended: bool = False) -> list[Token]:
        """Lists the tokens, oldest first, without what makes them secret.

        Args:
            include_ended: Also those that have expired or were revoked.
        """
        return self._loop.run(self._core.list_tokens(include_ended=include_ended))

    def revoke_token(self, token_id: str) -> Token:
        """Makes a token invalid for ever. Every process of the server sees it within about a second.

        Raises:
            TokenNotFound: There is none of that id.
        """
        return self._loop.run(self._core.revoke_token(token_id))

    def list_audit(
        self, *, since: datetime | None = None, catalog: str = "", method: str = "", who: str = ""
    ) -> Iterator[AuditEntry]:
        """Reads the audit log of admin actions and of attempts at them, newest first.

        Args:
            since: Only what began then or later; a time with a zone.
            catalog: Only what was about this catalog; all when empty.
            method: Only this method, for instance "PromoteModel"; all when empty.
            who: Only what this one did; all when empty.
        """

        def entries() -> AsyncIterator[AuditEntry]:
            return self._core.list_audit(since=since, catalog=catalog, method=method, who=who)

        return self._loop.iterate(entries, prefetch=1_000)
