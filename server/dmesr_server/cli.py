"""The commands of the server extra: `dmesr-cli serve` and `dmesr-cli enricher`."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from dmesr_server.config import Config, ConfigError, load
from dmesr_server.errors import ServiceError
from dmesr_server.telemetry import logs, metrics

_ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="A TOML file. Flags beat DMESR_* variables, which beat the file.")
]
_Store = Annotated[
    str | None, typer.Option("--store", help="A folder, or any lancedb.connect URI.", show_default="dmesr-data")
]
_Describer = Annotated[str | None, typer.Option(help="The describer that jobs use when they name none.")]
_LogLevel = Annotated[str | None, typer.Option(help="DEBUG, INFO, WARNING or ERROR.", show_default="INFO")]


def serve(
    *,
    config: _ConfigFile = None,
    host: Annotated[str | None, typer.Option(help="The address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="The port; 0 takes a free one.", show_default="50051")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that answer at the port, on one store.", show_default="1")
    ] = None,
    read_only: Annotated[
        bool | None,
        typer.Option("--read-only", help="A replica: answers from a store that another server writes; no enricher."),
    ] = None,
    insecure: Annotated[
        bool | None,
        typer.Option("--insecure", help="Let other machines in without TLS or without a token."),
    ] = None,
    store: _Store = None,
    describer: _Describer = None,
    enricher: Annotated[bool, typer.Option("--enricher/--no-enricher", help="Run an enricher beside the API.")] = True,
    auto_enrich: Annotated[
        bool | None, typer.Option("--auto-enrich/--no-auto-enrich", help="Every upsert starts enrichment by itself.")
    ] = None,
    log_level: _LogLevel = None,
    ready_file: Annotated[
        Path | None, typer.Option(help="Write HOST:PORT to this file once the server answers.")
    ] = None,
) -> None:
    """Run the server: the API process, or several workers at one port, and beside them one enricher.

    Examples:
        dmesr-cli serve

        dmesr-cli serve --workers 4

        dmesr-cli serve --read-only --store /srv/films --port 50052

        dmesr-cli serve --store /srv/films --port 50060 --auto-enrich

        dmesr-cli serve --config dmesr.toml --no-enricher
    """
    settings = _settings(
        config,
        {
            "server.host": host,
            "server.port": port,
            "server.workers": workers,
            "server.read_only": read_only,
            "server.insecure": insecure,
            "store.uri": store,
            "enrichment.describer": describer,
            "enrichment.auto": auto_enrich,
            "log_level": log_level,
        },
    )
    # Imported one after the other: `--help` waits for nothing, a wrong start not for lancedb and onnxruntime.
    from dmesr_server import preflight

    try:
        preflight.check(settings, ready_file=ready_file)

        if settings.server.workers > 1:
            from dmesr_server import workers as several

            try:
                with metrics.shared(settings.server):
                    asyncio.run(several.run(settings, enricher=enricher, ready_file=ready_file))
            except several.WorkerFailed as ended:
                raise typer.Exit(1) from ended
            return

        from dmesr_server import app

        with metrics.shared(settings.server):
            asyncio.run(app.run(settings, enricher=enricher, ready_file=ready_file))
    except (preflight.StartError, ServiceError) as error:
        _fail(str(error))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def enricher(
    *,
    config: _ConfigFile = None,
    store: _Store = None,
    describer: _Describer = None,
    log_level: _LogLevel = None,
) -> None:
    """Run one enricher, for instance on the machine with the GPU. It meets the API only in the stores.

    Examples:
        dmesr-cli enricher --store /srv/films

        dmesr-cli enricher --config dmesr.toml --describer palette
    """
    settings = _settings(config, {"store.uri": store, "enrichment.describer": describer, "log_level": log_level})
    from dmesr_server import enricher as process
    from dmesr_server.preflight import StartError

    try:
        with metrics.shared(settings.server):
            process.run(settings)
    except (StartError, ServiceError) as error:
        _fail(str(error))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _settings(file: Path | None, flags: dict[str, Any]) -> Config:
    try:
        settings = load(file=file, flags=flags)
    except ConfigError as error:
        _fail(str(error))
    logs.configure(settings, process="")
    logging.getLogger("dmesr_server").setLevel(settings.log_level)  # not the libraries': they are chatty at INFO
    return settings


def _fail(message: str) -> None:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(1)


app = typer.Typer(
    name="python -m dmesr_server", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
app.command()(serve)
app.command()(enricher)
