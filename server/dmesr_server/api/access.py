"""Which scope and which catalog each call needs, in one table, and whom a call comes from."""

from __future__ import annotations

import enum
from contextvars import ContextVar
from dataclasses import dataclass

from google.protobuf.message import Message

from dmesr_server.api.validation import catalog_name
from dmesr_server.caller import ANONYMOUS
from dmesr_server.errors import ServiceError

_SHOWN_CHARACTERS = 200  # of one field in the audit log


class Scope(enum.IntEnum):
    """What a token allows; each holds those before it. The numbers are those of the wire's TokenScope."""

    READ = 1
    WRITE = 2
    ADMIN = 3


@dataclass(frozen=True)
class Caller:
    """Whom a call comes from, and what that one may do.

    Attributes:
        name: For records.
        token_id: The token's id; empty where the server did not make it.
        scope: What it allows.
        catalogs: For which catalogs; None for all.
    """

    name: str = ANONYMOUS
    token_id: str = ""
    scope: Scope = Scope.ADMIN
    catalogs: frozenset[str] | None = None

    def may_see(self, catalog: str) -> bool:
        """Whether the catalog is one of its own."""
        return self.catalogs is None or catalog in self.catalogs


EVERYBODY = Caller()  # on a server that asks for no token

#: Set for each call once its credentials were checked; threads that work for the call see it too.
CALLER: ContextVar[Caller] = ContextVar("dmesr_caller", default=EVERYBODY)


class Place(enum.Enum):
    """Where a call says which catalog it is about."""

    EACH = "field catalog of each message"
    FIRST = "field catalog of the first message"
    INHERITED = "field catalog of each message, where empty that of the first"
    FILTER = "field catalog, where empty stands for all"
    NAME = "field name"
    JOB = "the job's catalog"
    PIN = "the pin's catalog"
    ALL = "all catalogs"
    NONE = "no catalog: every token will do"


@dataclass(frozen=True)
class Rule:
    """What a call needs.

    Attributes:
        scope: The least scope.
        place: Where its catalog is named.
        audited: Whether it goes to the audit log.
        subject: The fields that the audit log tells of it.
    """

    scope: Scope
    place: Place = Place.EACH
    audited: bool = False
    subject: tuple[str, ...] = ()


def _audited(scope: Scope, *subject: str, place: Place = Place.EACH) -> Rule:
    return Rule(scope, place, audited=True, subject=subject)


#: What each call needs. A test holds that every call of every service is named here.
RULES: dict[str, Rule] = {
    "AdminService/CreateCatalog": _audited(Scope.ADMIN, "name", "domain", "language", place=Place.NAME),
    "AdminService/ListCatalogs": Rule(Scope.READ, Place.NONE),  # and it lists only those that the caller may see
    "AdminService/DropCatalog": _audited(Scope.ADMIN, "name", place=Place.NAME),
    "AdminService/GetServerInfo": Rule(Scope.READ, Place.NONE),
    "AdminService/GetStoreStats": Rule(Scope.READ),
    "AdminService/CompactStore": _audited(Scope.ADMIN),
    "AdminService/SnapshotStore": _audited(Scope.ADMIN, "name", place=Place.ALL),
    "AdminService/CheckStore": Rule(Scope.ADMIN, Place.FILTER),
    "AdminService/CreateToken": _audited(
        Scope.ADMIN, "name", "scope", "catalogs", "all_catalogs", "ttl_seconds", place=Place.ALL
    ),
    "AdminService/ListTokens": Rule(Scope.ADMIN, Place.ALL),
    "AdminService/RevokeToken": _audited(Scope.ADMIN, "token_id", place=Place.ALL),
    "AdminService/ListAuditEntries": Rule(Scope.ADMIN, Place.FILTER),
    "EmbeddingService/ListRecipes": Rule(Scope.READ),
    "EmbeddingService/GetEmbeddingStats": Rule(Scope.READ),
    "EmbeddingService/ReadEmbeddings": Rule(Scope.READ),
    "EmbeddingService/WriteEmbeddings": Rule(Scope.WRITE),
    "EmbeddingService/FindNeighbours": Rule(Scope.READ),
    "EmbeddingService/PinEmbeddings": Rule(Scope.WRITE),
    "EmbeddingService/ReleasePin": Rule(Scope.WRITE, Place.PIN),
    "EnrichmentService/StartJob": Rule(Scope.WRITE),
    "EnrichmentService/EstimateJob": Rule(Scope.READ),
    "EnrichmentService/GetJob": Rule(Scope.READ, Place.JOB),
    "EnrichmentService/ListJobs": Rule(Scope.READ, Place.FILTER),
    "EnrichmentService/WatchJob": Rule(Scope.READ, Place.JOB),
    "EnrichmentService/CancelJob": Rule(Scope.WRITE, Place.JOB),
    "EnrichmentService/RetryJob": Rule(Scope.WRITE, Place.JOB),
    "EnrichmentService/GetDescriptions": Rule(Scope.READ),
    "EnrichmentService/ListDescriptions": Rule(Scope.READ),
    "EnrichmentService/ImportDescriptions": Rule(Scope.WRITE, Place.INHERITED),
    "EnrichmentService/EditDescription": _audited(Scope.WRITE, "recipe", "item_id", "route"),
    "EnrichmentService/PreviewPrompt": Rule(Scope.READ),
    "EnrichmentService/GetEnrichmentStats": Rule(Scope.READ),
    "ItemService/UpsertItems": Rule(Scope.WRITE),
    "ItemService/GetItems": Rule(Scope.READ),
    "ItemService/ListItems": Rule(Scope.READ),
    "ItemService/DeleteItems": Rule(Scope.WRITE),
    "ItemService/FindMissingPictures": Rule(Scope.READ),
    "ItemService/UploadPictures": Rule(Scope.WRITE),
    "ItemService/GetPicture": Rule(Scope.READ),
    "ModelService/PublishModel": _audited(Scope.WRITE, "name", place=Place.FIRST),
    "ModelService/GetModel": Rule(Scope.READ),
    "ModelService/ListModels": Rule(Scope.READ),
    "ModelService/PromoteModel": _audited(Scope.ADMIN, "model", "alias"),
    "ModelService/RollbackModel": _audited(Scope.ADMIN, "alias"),
    "ModelService/DeleteModel": _audited(Scope.ADMIN, "model"),
    "ModelService/ListAliases": Rule(Scope.READ),
    "ModelService/SplitTraffic": _audited(Scope.ADMIN, "alias", "other_alias", "share"),
    "RecommendationService/Recommend": Rule(Scope.READ),
    "RecommendationService/BatchRecommend": Rule(Scope.READ),
}
#: A call that nobody put into the table is for those alone who may do everything.
UNKNOWN = _audited(Scope.ADMIN, place=Place.ALL)


def named_catalog(rule: Rule, message: Message | None) -> str | None:
    """The catalog that a message names; None where it is about all, about none, or says so by an id only."""
    if message is None or rule.place in (Place.ALL, Place.NONE, Place.JOB, Place.PIN):
        return None
    if rule.place is Place.NAME:
        return str(getattr(message, "name"))  # noqa: B009 - which message it is, only the table knows
    given = str(getattr(message, "catalog"))  # noqa: B009
    return (given or None) if rule.place is Place.FILTER else catalog_name(given)


def subject_of(rule: Rule, message: Message) -> str:
    """What the audit log tells of a message: "model=films:3 alias=production"."""
    told = []
    for name in rule.subject:
        field = message.DESCRIPTOR.fields_by_name[name]
        value = getattr(message, name)
        if field.enum_type is not None:
            found = field.enum_type.values_by_number.get(value)
            value = found.name if found is not None else value
        elif not isinstance(value, str | int | float):
            value = ",".join(map(str, value))
        if value not in ("", 0):
            told.append(f"{name}={str(value)[:_SHOWN_CHARACTERS]}")
    return " ".join(told).replace("\0", "\\0")


def out_of_scope(caller: Caller, method: str, rule: Rule, catalog: str | None) -> ServiceError:
    """What a caller is told whose token does not allow the call."""
    needed = rule.scope.name.lower()
    if caller.scope < rule.scope:
        what = f"has the scope {caller.scope.name.lower()}, but {method} needs {needed}"
    elif catalog is None:
        what = f"is for some catalogs only, but {method} needs a token for all" + (
            "; or name one of its own catalogs" if rule.place is Place.FILTER else ""
        )
    else:
        what = f"is not for the catalog {catalog!r:.80}"
    return ServiceError(
        "OUT_OF_SCOPE",
        f"the token {caller.name} {what}; ask whoever runs the server for a token with the scope {needed}"
        + (f" for the catalog {catalog!r:.80}" if catalog else ""),
        needed_scope=needed,
        scope=caller.scope.name.lower(),
        catalog=(catalog or "*")[:_SHOWN_CHARACTERS],
        method=method,
    )
