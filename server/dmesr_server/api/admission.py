"""How much work a process takes at a time, by kind. What is beyond is refused, with a hint when to return."""

from __future__ import annotations

import contextlib
import enum
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from dmesr_server.api.calls import OPEN
from dmesr_server.api.intake import Intake
from dmesr_server.api.layers import OURS, behaviour, like
from dmesr_server.api.turnstile import Turnstile
from dmesr_server.api.working import Call
from dmesr_server.config import AdmissionConfig
from dmesr_server.errors import ServiceError

if TYPE_CHECKING:
    from dmesr_server.api.layers import Handler

_LOG = logging.getLogger(__name__)
_TELL_SECONDS = 10.0
#: Threads beside those of calls: health, tokens, the audit log, and what the process does by itself.
_SPARE_THREADS = 12


class Kind(enum.Enum):
    """What a call asks of the machine."""

    INFO = "info"  # what the server is: answered whatever else is under way
    RECOMMENDATION = "recommendations"  # waits for the next batch, in no thread
    READ = "reads"  # a few rows
    SEARCH = "searches"  # much arithmetic, or every row
    ENCODING = "encodings"  # waits for an enricher
    WRITE = "writes"  # a commit
    UPLOAD = "uploads"  # a stream of writes
    DOWNLOAD = "downloads"  # a stream of rows
    WATCH = "watches"  # a stream that tells of what changes
    UPKEEP = "upkeep"  # rewrites or copies whole tables


#: How many run and wait of the kinds that nobody needs to set.
_FIXED = {Kind.INFO: (4, 1_024), Kind.UPKEEP: (2, 8)}

#: The kind of each call. A test holds that every call of every service is named here.
KINDS: dict[str, Kind] = {
    "AdminService/CreateCatalog": Kind.WRITE,
    "AdminService/ListCatalogs": Kind.READ,
    "AdminService/DropCatalog": Kind.WRITE,
    "AdminService/GetServerInfo": Kind.INFO,
    "AdminService/GetStoreStats": Kind.SEARCH,
    "AdminService/CompactStore": Kind.UPKEEP,
    "AdminService/SnapshotStore": Kind.UPKEEP,
    "AdminService/CheckStore": Kind.UPKEEP,
    "AdminService/CreateToken": Kind.WRITE,
    "AdminService/ListTokens": Kind.READ,
    "AdminService/RevokeToken": Kind.WRITE,
    "AdminService/ListAuditEntries": Kind.READ,
    "EmbeddingService/ListRecipes": Kind.READ,
    "EmbeddingService/GetEmbeddingStats": Kind.SEARCH,
    "EmbeddingService/ReadEmbeddings": Kind.DOWNLOAD,
    "EmbeddingService/WriteEmbeddings": Kind.UPLOAD,
    "EmbeddingService/FindNeighbours": Kind.SEARCH,  # by a text: ENCODING
    "EmbeddingService/PinEmbeddings": Kind.WRITE,
    "EmbeddingService/ReleasePin": Kind.WRITE,
    "EnrichmentService/StartJob": Kind.WRITE,
    "EnrichmentService/EstimateJob": Kind.SEARCH,
    "EnrichmentService/GetJob": Kind.READ,
    "EnrichmentService/ListJobs": Kind.READ,
    "EnrichmentService/WatchJob": Kind.WATCH,
    "EnrichmentService/CancelJob": Kind.WRITE,
    "EnrichmentService/RetryJob": Kind.WRITE,
    "EnrichmentService/GetDescriptions": Kind.READ,
    "EnrichmentService/ListDescriptions": Kind.READ,
    "EnrichmentService/ImportDescriptions": Kind.UPLOAD,
    "EnrichmentService/EditDescription": Kind.WRITE,
    "EnrichmentService/PreviewPrompt": Kind.READ,
    "EnrichmentService/GetEnrichmentStats": Kind.SEARCH,
    "ItemService/UpsertItems": Kind.UPLOAD,
    "ItemService/GetItems": Kind.READ,
    "ItemService/ListItems": Kind.READ,
    "ItemService/DeleteItems": Kind.WRITE,
    "ItemService/FindMissingPictures": Kind.READ,
    "ItemService/UploadPictures": Kind.UPLOAD,
    "ItemService/GetPicture": Kind.DOWNLOAD,
    "ModelService/PublishModel": Kind.UPLOAD,
    "ModelService/GetModel": Kind.READ,
    "ModelService/ListModels": Kind.READ,
    "ModelService/PromoteModel": Kind.WRITE,
    "ModelService/RollbackModel": Kind.WRITE,
    "ModelService/DeleteModel": Kind.WRITE,
    "ModelService/ListAliases": Kind.READ,
    "ModelService/SplitTraffic": Kind.WRITE,
    "RecommendationService/Recommend": Kind.RECOMMENDATION,
    "RecommendationService/BatchRecommend": Kind.SEARCH,
}
#: Where a call's threads take their turns, while it holds a place of its own kind. Of other kinds a place is a thread.
_THREADS = {
    Kind.RECOMMENDATION: Kind.READ,
    Kind.ENCODING: Kind.SEARCH,
    Kind.UPLOAD: Kind.WRITE,
    Kind.DOWNLOAD: Kind.READ,
    Kind.WATCH: Kind.READ,
}


class Admission:
    """The turnstiles of one API process."""

    def __init__(self, config: AdmissionConfig, *, intake: Intake):
        self._intake = intake
        self._turnstiles = {
            kind: Turnstile(
                kind.value,
                running=running,
                waiting=waiting,
                wait_seconds=config.wait_seconds,
                refused=self._count_refused,
            )
            for kind, (running, waiting) in _bounds(config).items()
        }
        self._refused = 0
        self._tell_at = 0.0

    def call(self, kind: Kind) -> Call:
        """A call that asks to be let in: enter it.

        Raises:
            ServiceError: OVERLOADED: calls stand in line before they are seen.
        """
        if kind is not Kind.INFO and self._intake.refuses():
            raise self._late(kind)
        threads = _THREADS.get(kind)
        return Call(self._turnstiles[kind], None if threads is None else self._turnstiles[threads])

    def _late(self, kind: Kind) -> ServiceError:
        self._count_refused()
        hint, turnstile = self._intake.hint_seconds, self._turnstiles[kind]
        return ServiceError(
            "OVERLOADED",
            f"more calls come than the server answers, and they wait {self._intake.seconds:.1f} s before it sees them; "
            f"try again in {hint:.1f} s",
            retry_seconds=hint,
            kind=kind.value,
            running=turnstile.running,
            waiting=turnstile.waiting,
        )

    def _count_refused(self) -> None:
        # A line for each would come when there is no time for it.
        self._refused += 1
        moment = time.monotonic()
        if moment < self._tell_at:
            return
        lines = [
            f"{one.name}: {one.running} run, {one.waiting} wait" for one in self._turnstiles.values() if one.running
        ]
        _LOG.warning("overloaded: %d calls refused since this was last said; %s", self._refused, "; ".join(lines))
        self._refused, self._tell_at = 0, moment + _TELL_SECONDS


def _bounds(config: AdmissionConfig) -> dict[Kind, tuple[int, int]]:
    """Of each kind: how many run, and how many more wait."""
    return {
        kind: _FIXED.get(kind) or (getattr(config, f"{kind.value}_running"), getattr(config, f"{kind.value}_waiting"))
        for kind in Kind
    }


def most_threads(config: AdmissionConfig) -> int:
    """How many threads may work at a time: with so many, none that was let in waits for one."""
    bounds = _bounds(config)
    return sum(bounds[kind][0] for kind in Kind if kind not in _THREADS) + _SPARE_THREADS


class AdmissionLayer:
    """Lets calls in as there is room, and refuses the others with OVERLOADED."""

    def __init__(self, admission: Admission, *, knows: Callable[[Any], bool]):
        """Makes it.

        Args:
            admission: The process's own.
            knows: Whether the caller of a context may call at all. Who may not takes no place: the gate is next.
        """
        self._admission = admission
        self._knows = knows

    def __call__(self, method: str, handler: Handler) -> Handler:
        """Lays itself around a method of ours."""
        if method.startswith(OPEN):
            return handler
        serve = behaviour(handler)
        name = method.removeprefix(OURS)
        kind = KINDS.get(name, Kind.READ)
        by_text = name == "EmbeddingService/FindNeighbours"

        def place(request: Any) -> Call:
            if by_text and request.WhichOneof("query") == "text":
                return self._admission.call(Kind.ENCODING)
            return self._admission.call(kind)

        async def call(request: Any, context: Any) -> Any:
            if not self._knows(context):
                return await serve(request, context)
            async with place(request):
                return await serve(request, context)

        async def call_stream(request: Any, context: Any) -> AsyncIterator[Any]:
            known = self._knows(context)
            async with (
                place(request) if known else contextlib.nullcontext(),
                contextlib.aclosing(serve(request, context)) as answers,
            ):
                async for answer in answers:
                    yield answer

        return like(handler, call_stream if handler.response_streaming else call)
