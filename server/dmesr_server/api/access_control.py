"""Calls that make and end tokens, and that read the audit log."""

from __future__ import annotations

from datetime import UTC

from dmesr.v1 import admin_pb2 as pb

from dmesr_server.api import validation
from dmesr_server.api.access import Scope
from dmesr_server.api.credentials import BOOTSTRAP, NewToken
from dmesr_server.api.parts import Parts
from dmesr_server.api.translation import timestamp
from dmesr_server.caller import ANONYMOUS, caller
from dmesr_server.control import AuditRow, TokenRow
from dmesr_server.control.database import now
from dmesr_server.errors import ServiceError, invalid_field

_RESERVED = (ANONYMOUS, BOOTSTRAP)  # the audit log means others by them
_MAX_TTL_SECONDS = 10 * 366 * 24 * 3600  # ten years
_MAX_CATALOGS = 1_000


def create(parts: Parts, request: pb.CreateTokenRequest) -> pb.CreateTokenResponse:
    """Makes a token, and tells its secret part for the only time."""
    validation.required(name=request.name)
    name = validation.new_name("name", request.name)
    if name in _RESERVED:
        raise invalid_field("name", f"must not be {name!r}, which the audit log uses for callers without such a token")
    try:
        scope = Scope(request.scope)
    except ValueError:
        raise invalid_field(
            "scope", f"must be TOKEN_SCOPE_READ, _WRITE or _ADMIN (1 to 3), got {request.scope}"
        ) from None
    if request.all_catalogs == bool(request.catalogs):
        raise invalid_field("catalogs", "name catalogs or set all_catalogs: one of the two")
    validation.at_most("catalogs", len(request.catalogs), _MAX_CATALOGS, "catalogs of one token")
    if not 0 <= request.ttl_seconds <= _MAX_TTL_SECONDS:
        raise invalid_field(
            "ttl_seconds",
            f"must lie between 1 and {_MAX_TTL_SECONDS}, or be 0 for never, got {request.ttl_seconds}",
        )
    made = NewToken.make()
    row = parts.control.tokens.create(
        token_id=made.token_id,
        name=name,
        scope=scope.name,
        catalogs=None if request.all_catalogs else validation.distinct(request.catalogs),
        digest=made.digest,
        created_by=caller()[:255],
        ttl_seconds=request.ttl_seconds,
    )
    parts.tokens.refresh()
    return pb.CreateTokenResponse(token=_token(row), bearer_token=made.bearer)


def list_tokens(parts: Parts, request: pb.ListTokensRequest) -> pb.ListTokensResponse:
    """Lists the tokens without their secret part."""
    moment = now()
    rows = [
        row
        for row in parts.control.tokens.list()
        if request.include_ended or (row.revoke_time is None and (row.expire_time is None or row.expire_time > moment))
    ]
    return pb.ListTokensResponse(tokens=[_token(row) for row in rows])


def revoke(parts: Parts, request: pb.RevokeTokenRequest) -> pb.RevokeTokenResponse:
    """Ends a token."""
    validation.required(token_id=request.token_id)
    row = parts.control.tokens.revoke(request.token_id, revoked_by=caller()[:255])
    parts.tokens.refresh()
    return pb.RevokeTokenResponse(token=_token(row))


def list_audit(parts: Parts, request: pb.ListAuditEntriesRequest) -> pb.ListAuditEntriesResponse:
    """Reads the audit log, newest first."""
    size = validation.page_size(request.page_size)
    since = None
    if request.HasField("since"):
        try:
            since = request.since.ToDatetime(tzinfo=UTC)
        except (ValueError, OverflowError) as error:
            raise invalid_field("since", f"is no moment between the years 1 and 9999: {error}") from None
    scope = [request.catalog, request.method, request.who, str(since)]
    after = validation.decode_page_token("ListAuditEntries", scope, request.page_token)
    rows = parts.control.audit.list(
        catalog=request.catalog,
        since=since,
        method=request.method,
        who=request.who,
        before=None if after is None else _number(after),
        page_size=size + 1,  # one more tells whether there is a next page
    )
    response = pb.ListAuditEntriesResponse(entries=[_entry(row) for row in rows[:size]])
    if len(rows) > size:
        last = str(rows[size - 1].number)
        response.next_page_token = validation.encode_page_token("ListAuditEntries", scope, last)
    return response


def _number(after: str) -> int:
    try:
        return int(after)
    except ValueError:
        raise ServiceError("INVALID_PAGE_TOKEN", "page_token names no entry; begin without a token") from None


def _token(row: TokenRow) -> pb.Token:
    return pb.Token(
        token_id=row.token_id,
        name=row.name,
        scope=pb.TokenScope.Value(f"TOKEN_SCOPE_{row.scope}"),
        catalogs=row.catalogs or (),
        all_catalogs=row.catalogs is None,
        create_time=timestamp(row.create_time),
        created_by=row.created_by,
        expire_time=timestamp(row.expire_time),
        revoke_time=timestamp(row.revoke_time),
        revoked_by=row.revoked_by or "",
    )


def _entry(row: AuditRow) -> pb.AuditEntry:
    return pb.AuditEntry(
        number=row.number,
        request_id=row.request_id,
        time=timestamp(row.begin_time),
        who=row.who,
        token_id=row.token_id,
        peer=row.peer,
        method=row.method,
        catalog=row.catalog,
        subject=row.subject,
        outcome=row.outcome or "",
        reason=row.reason or "",
        end_time=timestamp(row.end_time),
    )
