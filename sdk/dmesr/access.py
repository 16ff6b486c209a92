"""Who may do what: bearer tokens, and the audit log of admin actions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import IntEnum

from dmesr.arguments import one_id
from dmesr.errors import InvalidInput
from dmesr.rows import to_time
from dmesr.transport import Rpc, Transport
from dmesr.v1 import admin_pb2

CREATE_TOKEN = Rpc("AdminService/CreateToken", admin_pb2.CreateTokenRequest, admin_pb2.CreateTokenResponse)
LIST_TOKENS = Rpc("AdminService/ListTokens", admin_pb2.ListTokensRequest, admin_pb2.ListTokensResponse, idempotent=True)
REVOKE_TOKEN = Rpc(
    "AdminService/RevokeToken", admin_pb2.RevokeTokenRequest, admin_pb2.RevokeTokenResponse, idempotent=True
)
LIST_AUDIT = Rpc(
    "AdminService/ListAuditEntries",
    admin_pb2.ListAuditEntriesRequest,
    admin_pb2.ListAuditEntriesResponse,
    idempotent=True,
)
_ENTRIES_PER_PAGE = 1_000


class TokenScope(IntEnum):
    """What a token allows. Each scope holds those before it."""

    READ = admin_pb2.TOKEN_SCOPE_READ
    WRITE = admin_pb2.TOKEN_SCOPE_WRITE
    ADMIN = admin_pb2.TOKEN_SCOPE_ADMIN


@dataclass(frozen=True)
class Token:
    """A bearer token, without what makes it secret."""

    token_id: str
    name: str  # whose it is; several may share it
    scope: TokenScope | int  # a number where a newer server knows more of them
    catalogs: tuple[str, ...] | None  # None: all
    create_time: datetime | None
    created_by: str
    expire_time: datetime | None  # None: never
    revoke_time: datetime | None  # None: it was not
    revoked_by: str


@dataclass(frozen=True)
class NewToken:
    """A token that was just made.

    Attributes:
        token: What it is.
        bearer_token: The token itself, for `dmesr.connect(token=…)`. The server cannot show it again.
    """

    token: Token
    bearer_token: str = field(repr=False)  # not in logs


@dataclass(frozen=True)
class AuditEntry:
    """One admin action, or an attempt at one."""

    number: int  # rises with each entry
    request_id: str
    time: datetime | None  # when it began
    who: str  # a token's name, "bootstrap", "certificate …" or "anonymous"
    token_id: str
    peer: str  # the address that it came from
    method: str  # "Service/Method"
    catalog: str  # empty for none
    subject: str
    outcome: str  # gRPC code, for instance "OK"; empty while it runs, or where the server died of it
    reason: str  # of the failure
    end_time: datetime | None


def _token(one: admin_pb2.Token) -> Token:
    known = int(one.scope) in {int(scope) for scope in TokenScope}
    return Token(
        token_id=one.token_id,
        name=one.name,
        scope=TokenScope(one.scope) if known else int(one.scope),
        catalogs=None if one.all_catalogs else tuple(one.catalogs),
        create_time=to_time(one.create_time),
        created_by=one.created_by,
        expire_time=to_time(one.expire_time),
        revoke_time=to_time(one.revoke_time),
        revoked_by=one.revoked_by,
    )


def scope_of(scope: TokenScope | str) -> TokenScope:
    """A scope by its name, in any case.

    Raises:
        InvalidInput: There is no such scope.
    """
    try:
        return scope if isinstance(scope, TokenScope) else TokenScope[scope.upper()]
    except (KeyError, AttributeError):
        raise InvalidInput(f"scope is {scope!r}; expected read, write or admin") from None


async def create_token(
    transport: Transport,
    name: str,
    *,
    scope: TokenScope | str,
    catalogs: Iterable[str] | None,
    ttl: timedelta | None,
) -> NewToken:
    """Makes a token; see `Admin.create_token`."""
    if isinstance(catalogs, str):
        raise InvalidInput(f"catalogs is {catalogs!r}; expected several names, for instance [{catalogs!r}], or None")
    wanted = None if catalogs is None else [one_id(catalog, name="catalogs") for catalog in catalogs]
    if wanted == []:
        raise InvalidInput("catalogs is empty; name at least one, or give None for all")
    seconds = 0 if ttl is None else ttl.total_seconds()
    if ttl is not None and seconds < 1:
        raise InvalidInput(f"ttl is {ttl}; expected a second or more, or None for a token that does not expire")
    request = admin_pb2.CreateTokenRequest(
        name=one_id(name, name="name"),
        scope=admin_pb2.TokenScope.Value(f"TOKEN_SCOPE_{scope_of(scope).name}"),
        catalogs=wanted or (),
        all_catalogs=wanted is None,
        ttl_seconds=int(seconds),
    )
    answer = await transport.unary(CREATE_TOKEN, request)
    return NewToken(token=_token(answer.token), bearer_token=answer.bearer_token)


async def list_tokens(transport: Transport, *, include_ended: bool) -> list[Token]:
    """Lists the tokens; see `Admin.list_tokens`."""
    answer = await transport.unary(LIST_TOKENS, admin_pb2.ListTokensRequest(include_ended=include_ended))
    return [_token(one) for one in answer.tokens]


async def revoke_token(transport: Transport, token_id: str) -> Token:
    """Ends a token; see `Admin.revoke_token`."""
    request = admin_pb2.RevokeTokenRequest(token_id=one_id(token_id, name="token_id"))
    return _token((await transport.unary(REVOKE_TOKEN, request)).token)


async def list_audit(
    transport: Transport, *, since: datetime | None, catalog: str, method: str, who: str
) -> AsyncIterator[AuditEntry]:
    """Reads the audit log page by page; see `Admin.list_audit`."""
    request = admin_pb2.ListAuditEntriesRequest(catalog=catalog, method=method, who=who, page_size=_ENTRIES_PER_PAGE)
    if since is not None:
        if since.tzinfo is None:
            raise InvalidInput(f"since is {since}, a time without a zone; give one, for instance datetime.now(UTC)")
        request.since.FromDatetime(since)
    while True:
        answer = await transport.unary(LIST_AUDIT, request)
        for one in answer.entries:
            yield AuditEntry(
                number=one.number,
                request_id=one.request_id,
                time=to_time(one.time),
                who=one.who,
                token_id=one.token_id,
                peer=one.peer,
                method=one.method,
                catalog=one.catalog,
                subject=one.subject,
                outcome=one.outcome,
                reason=one.reason,
                end_time=to_time(one.end_time),
            )
        if not answer.next_page_token:
            return
        request.page_token = answer.next_page_token
