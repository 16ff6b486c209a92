"""The root of the command line: global options, the nouns' commands, and what becomes of errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.main import get_command

from . import access, admin, catalogs, descriptions, doctor, embeddings, enrichment, items, models, recommendations
from .console import DEFAULT_SERVER, HELP_PANEL, one_line, say
from .extras import WithExtras, explain
from .options import PROGRAM, epilog, remember

# What the command line cannot parse, in every version of typer: BadParameter < UsageError < ClickException.
_UsageProblem: type[Exception] = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name=PROGRAM,
    cls=WithExtras,
    epilog=epilog(
        [
            "dmesr-cli demo",
            "dmesr-cli serve",
            "dmesr-cli items import films.csv --id movieId --picture poster --picture-root posters/",
            "dmesr-cli enrich start",
            "dmesr-cli recommend 1 296 318 -k 5",
            "dmesr-cli --json items get 296",
        ]
    ),
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(value: bool) -> None:
    if value:
        sys.stdout.write(f"{PROGRAM} {version('dmesr')}\n")
        raise typer.Exit


@app.callback()
def root(
    ctx: typer.Context,
    server: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT", envvar="DMESR_SERVER_ADDRESS", help="The server.", rich_help_panel=HELP_PANEL
        ),
    ] = DEFAULT_SERVER,
    token: Annotated[
        str | None,
        typer.Option(envvar="DMESR_TOKEN", help="Bearer token of the server.", rich_help_panel=HELP_PANEL),
    ] = None,
    tls: Annotated[
        bool,
        typer.Option("--tls", help="Use TLS, with the system's certificate authorities.", rich_help_panel=HELP_PANEL),
    ] = False,
    ca: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Use TLS, with these authorities (PEM).", rich_help_panel=HELP_PANEL),
    ] = None,
    cert: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Use TLS, and show this client certificate (PEM).", rich_help_panel=HELP_PANEL
        ),
    ] = None,
    key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The key of --cert (PEM).", rich_help_panel=HELP_PANEL)
    ] = None,
    catalog: Annotated[
        str,
        typer.Option(metavar="NAME", envvar="DMESR_CATALOG", help="The catalog.", rich_help_panel=HELP_PANEL),
    ] = "default",
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout.", rich_help_panel=HELP_PANEL)
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Multimodal descriptions and embeddings of a catalogue, and the recommender that is trained on them."""
    remember(ctx, server=server, token=token, tls=tls, ca=ca, cert=cert, key=key, catalog=catalog, json=json)


for noun in (
    catalogs.app,
    items.app,
    enrichment.enrich,
    descriptions.app,
    embeddings.app,
    models.app,
    admin.store,
    admin.server,
    access.tokens,
    access.audit,
):
    app.add_typer(noun)
recommendations.register(app)
doctor.register(app)


def main(args: Sequence[str] | None = None) -> int:
    """Runs `dmesr-cli` and returns its exit status.

    Args:
        args: The command line without the program's name; the process' own when None.

    Returns:
        0, 1 for a failure, 2 for a call that cannot be understood or lacks an extra, 130 for Ctrl-C.
    """
    _speak_any_alphabet()
    try:
        return _run(args)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BrokenPipeError:
        # The reader has gone, as `… | head` does. Whatever is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except Exception as error:
        if os.environ.get("DMESR_DEBUG") == "1":
            raise
        say(f"error: {_told(error)}")
        return 2 if isinstance(error, ModuleNotFoundError) else 1


def _run(args: Sequence[str] | None) -> int:
    root_command: Any = get_command(app)
    try:
        # Standalone mode would draw boxes around errors; one line is what scripts and logs can use.
        code = root_command.main(args=args, prog_name=PROGRAM, standalone_mode=False)
    except _UsageProblem as problem:
        return _told_usage(problem)
    sys.stdout.flush()
    return code if isinstance(code, int) else 0


def _told_usage(problem: Any) -> int:
    if type(problem).__name__ == "NoArgsIsHelpError":
        problem.show()
        return 2
    context = getattr(problem, "ctx", None)
    hint = f" (see {context.command_path} --help)" if context is not None else ""
    say(f"error: {one_line(problem.format_message())}{hint}")
    return int(problem.exit_code)


def _told(error: Exception) -> str:
    import dmesr

    if isinstance(error, dmesr.ServerUnavailable):
        remedy = "start one with 'dmesr-cli serve', or name another with --server HOST:PORT"
        if "Connection refused" in str(error):
            return f"no server listens at {error.target}: {remedy}"
        return f"{one_line(str(error))} ({remedy})"
    if isinstance(error, dmesr.ApiError):
        return f"{one_line(str(error))} [{error.reason}]"
    if isinstance(error, ModuleNotFoundError):
        return explain(error) or one_line(str(error))
    if isinstance(error, dmesr.DmesrError | OSError | ValueError):
        return one_line(str(error))
    return f"{type(error).__name__}: {one_line(str(error))} (a fault of dmesr-cli: DMESR_DEBUG=1 shows where)"


def _speak_any_alphabet() -> None:
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
