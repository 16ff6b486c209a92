"""The clients: one async core, and its sync face."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from dmesr.admin import Admin, AsyncAdmin
from dmesr.arguments import one_id
from dmesr.bridge import EventLoopThread, event_loop_thread
from dmesr.connection import TLS, Timeout
from dmesr.embeddings import AsyncCatalogEmbeddings, CatalogEmbeddings
from dmesr.enrichment import AsyncEnrichment, Enrichment
from dmesr.items import AsyncItems, Items
from dmesr.models import AsyncModels, Models
from dmesr.recommendations import How, Recommendations, recommend, recommend_batch
from dmesr.retrying import RetryPolicy
from dmesr.tracing import Wanted
from dmesr.transport import Transport
from dmesr.vector_cache import VectorCache


class AsyncClient:
    """A client of one catalog of a server, for coroutines. Made by :func:`dmesr.aio.connect`.

    Attributes:
        items: The catalogue's items and their pictures.
        enrichment: Jobs and descriptions.
        embeddings: Vectors.
        models: Published models.
        admin: Catalogs, the store, the server itself.
    """

    def __init__(self, transport: Transport, catalog: str, *, cache: VectorCache | None = None) -> None:
        self._transport = transport
        self._cache = cache
        self._catalog = one_id(catalog, name="catalog")
        self.items = AsyncItems(transport, catalog)
        self.enrichment = AsyncEnrichment(transport, catalog)
        self.embeddings = AsyncCatalogEmbeddings(transport, catalog, cache=cache)
        self.models = AsyncModels(transport, catalog)
        self.admin = AsyncAdmin(transport, catalog)

    @property
    def catalog_name(self) -> str:
        """The catalog that every call is about."""
        return self._catalog

    @property
    def target(self) -> str:
        """The server's address."""
        return self._transport.target

    def catalog(self, name: str) -> AsyncClient:
        """A client of another catalog over the same connection; closing either closes both."""
        return AsyncClient(self._transport, name, cache=self._cache)

    async def recommend(
        self,
        *,
        history: Iterable[str],
        k: int = 10,
        model: str = "production",
        exclude_seen: bool = True,
        allow: Iterable[str] | None = None,
        deny: Iterable[str] | None = None,
        filter: str | None = None,
        fallback: str | None = None,
        unit: str | None = None,
        attributes: Iterable[str] = (),
    ) -> Recommendations:
        """Recommends for one history."""
        how = How(
            k=k,
            exclude_seen=exclude_seen,
            allow=allow,
            deny=deny,
            filter=filter,
            fallback=fallback,
            attributes=attributes,
        )
        return await recommend(self._transport, self._catalog, history=history, model=model, unit=unit, how=how)

    async def recommend_batch(
        self,
        *,
        histories: Iterable[Iterable[str]],
        k: int = 10,
        model: str = "production",
        exclude_seen: bool = True,
        allow: Iterable[str] | None = None,
        deny: Iterable[str] | None = None,
        filter: str | None = None,
        fallback: str | None = None,
        unit: str | None = None,
        attributes: Iterable[str] = (),
    ) -> list[Recommendations]:
        """Recommends for many histories with the same settings."""
        how = How(
            k=k,
            exclude_seen=exclude_seen,
            allow=allow,
            deny=deny,
            filter=filter,
            fallback=fallback,
            attributes=attributes,
        )
        return await recommend_batch(
            self._transport, self._catalog, histories=histories, model=model, unit=unit, how=how
        )

    async def close(self) -> None:
        """Ends what is under way and closes the connection."""
        await self._transport.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class Client:
    """A client of one catalog of a server. Made by :func:`dmesr.connect`. Threads may share it.

    Attributes:
        items: The catalogue's items and their pictures.
        enrichment: Jobs and descriptions.
        embeddings: Vectors.
        models: Published models.
        admin: Catalogs, the store, the server itself.
    """

    def __init__(self, core: AsyncClient, loop: EventLoopThread) -> None:
        self._core = core
        self._loop = loop
        self.items = Items(core.items, loop)
        self.enrichment = Enrichment(core.enrichment, loop)
        self.embeddings = CatalogEmbeddings(core.embeddings, loop)
        self.models = Models(core.models, loop)
        self.admin = Admin(core.admin, loop)

    @property
    def catalog_name(self) -> str:
        """The catalog that every call is about."""
        return self._core.catalog_name

    @property
    def target(self) -> str:
        """The server's address."""
        return self._core.target

    def catalog(self, name: str) -> Client:
        """A client of another catalog over the same connection; closing either closes both."""
        return Client(self._core.catalog(name), self._loop)

    def recommend(
        self,
        *,
        history: Iterable[str],
        k: int = 10,
        model: str = "production",
        exclude_seen: bool = True,
        allow: Iterable[str] | None = None,
        deny: Iterable[str] | None = None,
        filter: str | None = None,
        fallback: str | None = None,
        unit: str | None = None,
        attributes: Iterable[str] = (),
    ) -> Recommendations:
        """Recommends for one history.

        Args:
            history: What the user has interacted with, oldest first. Ids that the model does not know are skipped and
                named in the answer; without any known one the answer holds popular items.
            k: How many.
            model: The alias, name or "name:version".
            exclude_seen: Leave out the items of the history.
            allow: Only among these items; among all when None.
            deny: Never these items.
            filter: Only items whose attributes meet this, for instance 'genres has "Comedy" and year >= 1990'
                (docs/filters.md). Like `allow` and `deny` it leaves k items wherever k exist.
            fallback: The item that the user looks at: without a known history, items near to it come instead of
                popular ones.
            unit: The user or session. Where the alias's traffic is split (`models.split`), the same one is always
                answered by the same side.
            attributes: Attributes to return with each item, for instance ("title",).

        Raises:
            ModelNotFound: No such model or alias.
            ModelNotReady: The model's items are not adapted yet.
            InvalidFilter: The filter cannot be read.
        """
        return self._loop.run(
            self._core.recommend(
                history=history,
                k=k,
                model=model,
                exclude_seen=exclude_seen,
                allow=allow,
                deny=deny,
                filter=filter,
                fallback=fallback,
                unit=unit,
                attributes=attributes,
            )
        )

    def recommend_batch(
        self,
        *,
        histories: Iterable[Iterable[str]],
        k: int = 10,
        model: str = "production",
        exclude_seen: bool = True,
        allow: Iterable[str] | None = None,
        deny: Iterable[str] | None = None,
        filter: str | None = None,
        fallback: str | None = None,
        unit: str | None = None,
        attributes: Iterable[str] = (),
    ) -> list[Recommendations]:
        """Recommends for many histories with the same settings, all by the same model version.

        Args:
            histories: One list of item ids for each user, oldest first; however many.
            k: How many for each.
            model: The alias, name or "name:version".
            exclude_seen: Leave out the items of each history from its list.
            allow: Only among these items; among all when None.
            deny: Never these items.
            filter: Only items whose attributes meet this; see `recommend`.
            fallback: The item whose neighbours stand in for a history of which nothing is known.
            unit: Which side of a split alias answers, as in `recommend`; one for all histories.
            attributes: Attributes to return with each item.

        Returns:
            The lists in the order of the histories.

        Raises:
            ModelNotFound: No such model or alias.
            ModelNotReady: The model's items are not adapted yet.
            InvalidFilter: The filter cannot be read.
        """
        return self._loop.run(
            self._core.recommend_batch(
                histories=histories,
                k=k,
                model=model,
                exclude_seen=exclude_seen,
                allow=allow,
                deny=deny,
                filter=filter,
                fallback=fallback,
                unit=unit,
                attributes=attributes,
            )
        )

    def close(self) -> None:
        """Ends what is under way and closes the connection."""
        self._loop.run(self._core.close())

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def connect_async(
    target: str = "127.0.0.1:50051",
    *,
    token: str | None = None,
    tls: bool | TLS | None = None,
    timeout: Timeout = Timeout(),  # noqa: B008 (frozen)
    retry: RetryPolicy = RetryPolicy(),  # noqa: B008 (frozen)
    channels: int = 4,
    catalog: str = "default",
    cache: VectorCache | Path | str | bool = False,
    tracing: Wanted = None,
) -> AsyncClient:
    """Makes a client for coroutines; the arguments are those of :func:`connect`."""
    transport = Transport(
        target, token=token, tls=tls, timeout=timeout, retry=retry, channels=channels, tracing=tracing
    )
    return AsyncClient(transport, catalog, cache=VectorCache.of(cache))


def connect(
    target: str = "127.0.0.1:50051",
    *,
    token: str | None = None,
    tls: bool | TLS | None = None,
    timeout: Timeout = Timeout(),  # noqa: B008 (frozen)
    retry: RetryPolicy = RetryPolicy(),  # noqa: B008 (frozen)
    channels: int = 4,
    catalog: str = "default",
    cache: VectorCache | Path | str | bool = False,
    tracing: Wanted = None,
) -> Client:
    """Makes a client. The connection itself is made by the first call.

    Args:
        target: The server's address, HOST:PORT.
        token: The bearer token, where the server asks for one. Without TLS it travels in the clear.
        tls: True trusts the system's roots; a :class:`TLS` says whom else.
        timeout: How long calls may take.
        retry: How often a call is tried again when the server is unavailable.
        channels: Connections; calls take turns on them. Each stays with one of the server's workers, so a client that
            is to keep N workers busy takes several times N.
        catalog: The catalog that the calls are about; `client.catalog(name)` gives another.
        cache: Keep the vectors that are read on this machine: a folder, True for the user's own, or a
            :class:`VectorCache` with a bound of its own. What has not changed is then read from there.
        tracing: Make an OpenTelemetry span for each call, and let the server's spans continue it: with the program's
            global tracer provider (True), or with this one. None is True in a program that uses OpenTelemetry itself
            (that has imported `opentelemetry.trace`); False never does.

    Raises:
        InvalidInput: An argument makes no sense, or a TLS file cannot be read.
    """
    core = connect_async(
        target,
        token=token,
        tls=tls,
        timeout=timeout,
        retry=retry,
        channels=channels,
        catalog=catalog,
        cache=cache,
        tracing=tracing,
    )
    return Client(core, event_loop_thread())
