"""`dmesr-cli tokens` and `dmesr-cli audit`: who may do what, and who did."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Annotated

import typer

from .console import as_json, cell, connected, print_json_array, print_line, print_table, say, show
from .options import command, group

tokens = group(
    "tokens",
    "Make, list and revoke bearer tokens.",
    examples=["dmesr-cli tokens create web-shop --scope read --for films", "dmesr-cli tokens list"],
)
audit = group("audit", "Read the audit log of admin actions.", examples=["dmesr-cli audit list --since 2d"])

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


@command(
    tokens,
    "create",
    examples=[
        "dmesr-cli tokens create web-shop --scope read --for films",
        "dmesr-cli tokens create nightly-import --scope write --for films --for games --expires 90d",
        "dmesr-cli tokens create alice --scope admin --all-catalogs",
    ],
    catalog=False,
)
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Whose it is. The next one of a rotation may have the same name.")],
    scope: Annotated[str, typer.Option(help="read, write or admin; each holds those before it.")],
    for_: Annotated[
        list[str] | None, typer.Option("--for", metavar="CATALOG", help="A catalog that it is good for; repeatable.")
    ] = None,
    all_catalogs: Annotated[
        bool, typer.Option("--all-catalogs", help="It is good for all catalogs, those to come too.")
    ] = False,
    expires: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="How long it lives, for instance 12h or 90d.", show_default="ever"),
    ] = None,
) -> None:
    """Make a bearer token and show it, once: the server keeps only a hash of it."""
    if all_catalogs == bool(for_):
        raise typer.BadParameter("name catalogs with --for, or say --all-catalogs", param_hint="--for")
    ttl = None if expires is None else _span(expires, "--expires")
    with connected(ctx) as client:
        made = client.admin.create_token(name, scope=scope, catalogs=for_ or None, ttl=ttl)
        needed = client.admin.server_info().needs_token
    if not needed:
        say("note: this server asks for no token; set server.token or server.require_token")
    if not as_json(ctx):
        say(f"token {made.token.token_id} of {name}; keep what follows, it cannot be shown again")
    show(ctx, {"token": made.token, "bearer_token": made.bearer_token}, lambda: print_line(made.bearer_token))


@command(tokens, "list", examples=["dmesr-cli tokens list", "dmesr-cli tokens list --ended --json"], catalog=False)
def list_tokens(
    ctx: typer.Context,
    ended: Annotated[bool, typer.Option("--ended", help="Also those that have expired or were revoked.")] = False,
) -> None:
    """List the tokens, without what makes them secret."""
    with connected(ctx) as client:
        found = client.admin.list_tokens(include_ended=ended)
    rows = [
        (
            one.token_id,
            one.name,
            one.scope,
            "all" if one.catalogs is None else one.catalogs,
            one.create_time,
            one.created_by,
            one.expire_time,
            one.revoke_time,
        )
        for one in found
    ]
    columns = ["id", "name", "scope", "catalogs", "created", "by", "expires", "revoked"]
    show(ctx, found, lambda: print_table(columns, rows))


@command(
    tokens,
    "revoke",
    examples=["dmesr-cli tokens revoke 3f9c2a7be1d04586", "dmesr-cli tokens revoke 3f9c2a7be1d04586 --json"],
    catalog=False,
)
def revoke(
    ctx: typer.Context, token_id: Annotated[str, typer.Argument(help="The token's id, as `tokens list` shows it.")]
) -> None:
    """Make a token invalid for ever; every process of the server sees it within about a second."""
    with connected(ctx) as client:
        ended = client.admin.revoke_token(token_id)
    show(ctx, ended, lambda: say(f"revoked the token {ended.token_id} of {ended.name}"))


@command(
    audit,
    "list",
    examples=[
        "dmesr-cli audit list",
        "dmesr-cli audit list --since 2d --method PromoteModel",
        "dmesr-cli audit list --since 2026-11-01 --about films --json",
    ],
    catalog=False,
)
def list_audit(
    ctx: typer.Context,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="A date, a time (UTC where no zone stands), or a span like 2d.")
    ] = None,
    about: Annotated[str, typer.Option(metavar="CATALOG", help="Only what was about this catalog.")] = "",
    method: Annotated[str, typer.Option(help="Only this method, for instance PromoteModel.")] = "",
    who: Annotated[str, typer.Option(help="Only what this one did.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most so many entries.")] = 100,
) -> None:
    """List admin actions and attempts at them, newest first."""
    begin = None if since is None else _moment(since)
    with connected(ctx) as client:
        entries = islice(client.admin.list_audit(since=begin, catalog=about, method=method, who=who), limit)
        if as_json(ctx):
            print_json_array(entries)
            return
        rows = [
            (
                one.time,
                one.who,
                one.method.partition("/")[2] or one.method,
                one.catalog or None,
                one.subject or None,
                one.outcome or "not known",
                one.peer,
                one.request_id,
            )
            for one in entries
        ]
    columns = ["time", "who", "method", "catalog", "about", "outcome", "from", "request"]
    print_table(columns, [[cell(value) for value in row] for row in rows])


def _span(text: str, option: str) -> timedelta:
    found = re.fullmatch(r"(\d{1,9})([smhd])", text)
    if found is None:
        raise typer.BadParameter(f"{text!r} is no span of time; expected for instance 12h or 90d", param_hint=option)
    return timedelta(seconds=int(found[1]) * _UNITS[found[2]])


def _moment(text: str) -> datetime:
    try:
        given = datetime.fromisoformat(text)
    except ValueError:
        try:
            return datetime.now(UTC) - _span(text, "--since")
        except OverflowError:
            raise typer.BadParameter(f"{text!r} is before all time", param_hint="--since") from None
    return given if given.tzinfo is not None else given.replace(tzinfo=UTC)
