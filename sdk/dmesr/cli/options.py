"""How a command is declared: with examples in its help, and with the global options accepted after its name too."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from .console import HELP_PANEL, Json, settings

PROGRAM = "dmesr-cli"
EXAMPLES_HEADING = "[bold]Examples[/bold]"

Command = TypeVar("Command", bound=Callable[..., None])

_SERVER_HELP = "The server. Also DMESR_SERVER_ADDRESS."
_CATALOG_HELP = "The catalog. Also DMESR_CATALOG."

ServerOption = Annotated[
    str | None, typer.Option("--server", metavar="HOST:PORT", help=_SERVER_HELP, rich_help_panel=HELP_PANEL)
]
TokenOption = Annotated[
    str | None,
    typer.Option("--token", help="Bearer token of the server. Also DMESR_TOKEN.", rich_help_panel=HELP_PANEL),
]
TlsOption = Annotated[
    bool,
    typer.Option("--tls", help="Use TLS, with the system's certificate authorities.", rich_help_panel=HELP_PANEL),
]
CaOption = Annotated[
    Path | None,
    typer.Option("--ca", metavar="FILE", help="Use TLS, with these authorities (PEM).", rich_help_panel=HELP_PANEL),
]
CertOption = Annotated[
    Path | None,
    typer.Option(
        "--cert", metavar="FILE", help="Use TLS, and show this client certificate (PEM).", rich_help_panel=HELP_PANEL
    ),
]
KeyOption = Annotated[
    Path | None,
    typer.Option("--key", metavar="FILE", help="The key of --cert (PEM).", rich_help_panel=HELP_PANEL),
]
CatalogOption = Annotated[
    str | None, typer.Option("--catalog", metavar="NAME", help=_CATALOG_HELP, rich_help_panel=HELP_PANEL)
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]

# Names that no command uses for its own parameters, because both stand in one signature.
_CONNECTION: dict[str, Any] = {
    "server_": ServerOption,
    "token_": TokenOption,
    "tls_": TlsOption,
    "ca_": CaOption,
    "cert_": CertOption,
    "key_": KeyOption,
}


def remember(
    ctx: typer.Context,
    *,
    server: str | None = None,
    token: str | None = None,
    tls: bool = False,
    ca: Path | None = None,
    cert: Path | None = None,
    key: Path | None = None,
    catalog: str | None = None,
    json: bool = False,
) -> None:
    """Keeps the global options that were given; what was not given keeps its earlier value."""
    kept = settings(ctx)
    kept.server = server or kept.server
    kept.token = token or kept.token
    kept.tls = tls or kept.tls
    kept.ca = ca or kept.ca
    kept.cert = cert or kept.cert
    kept.key = key or kept.key
    kept.catalog = catalog or kept.catalog
    kept.json = json or kept.json
    for option, file in (("--ca", kept.ca), ("--cert", kept.cert), ("--key", kept.key)):
        if file is not None and not file.is_file():
            raise typer.BadParameter(f"there is no file {file}", param_hint=option)


def epilog(examples: Sequence[str]) -> str:
    """The "Examples" that end a command's help, one command line each."""
    lines = [f"  $ {example}".replace("[", r"\[") for example in examples]
    return "\n".join([EXAMPLES_HEADING, *lines])


def command(
    app: typer.Typer, name: str, *, examples: Sequence[str], catalog: bool = True, connection: bool = True
) -> Callable[[Command], Command]:
    """Adds a command to an app. The function's first parameter is `ctx: typer.Context`.

    Args:
        app: The app.
        name: The command's name.
        examples: Command lines for its help.
        catalog: Whether the command works on one catalog.
        connection: Whether the command calls the server.
    """
    shared: dict[str, Any] = dict(_CONNECTION) if connection else {}
    if catalog:
        shared["catalog_"] = CatalogOption
    shared["json_"] = Json

    def register(function: Command) -> Command:
        signature = inspect.signature(function, eval_str=True)
        flags = {"tls_", "json_"}
        added = [
            inspect.Parameter(
                key, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=False if key in flags else None
            )
            for key, kind in shared.items()
        ]

        @functools.wraps(function)
        def run(**given: Any) -> None:
            values = {key.removesuffix("_"): given.pop(key) for key in shared}
            remember(given["ctx"], **values)
            function(**given)

        whole = signature.replace(parameters=[*signature.parameters.values(), *added])
        run.__signature__ = whole  # type: ignore[attr-defined]
        run.__annotations__ = {key: parameter.annotation for key, parameter in whole.parameters.items()}
        app.command(name, epilog=epilog(examples))(run)
        return function

    return register


def group(name: str, help: str, *, examples: Sequence[str]) -> typer.Typer:
    """An app that holds the commands of one noun."""
    return typer.Typer(name=name, help=help, epilog=epilog(examples), no_args_is_help=True, rich_markup_mode="rich")
