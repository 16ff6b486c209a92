"""The API process: the one place where its parts are chosen and wired together."""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import os
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from dmesr.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    embeddings_pb2,
    enrichment_pb2,
    enrichment_pb2_grpc,
    items_pb2,
    items_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    recommendations_pb2,
    recommendations_pb2_grpc,
)
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from dmesr_server import preflight
from dmesr_server.api import embeddings
from dmesr_server.api.admin import AdminServicer
from dmesr_server.api.admission import Admission, AdmissionLayer, most_threads
from dmesr_server.api.audit_trail import AuditTrail
from dmesr_server.api.auto_enrichment import AutoEnrichment
from dmesr_server.api.calls import CallLayer
from dmesr_server.api.credentials import TokenBook
from dmesr_server.api.embeddings import EmbeddingServicer
from dmesr_server.api.enrichment import EnrichmentServicer
from dmesr_server.api.gate import GateLayer
from dmesr_server.api.grouping import Room
from dmesr_server.api.intake import Intake, IntakeProbe
from dmesr_server.api.items import ItemServicer
from dmesr_server.api.layers import LayeredHandlers
from dmesr_server.api.models import ModelServicer
from dmesr_server.api.parts import Parts
from dmesr_server.api.read_only import only_reading
from dmesr_server.api.recommendations import RecommendationServicer
from dmesr_server.config import Config, ServerConfig
from dmesr_server.control import Control
from dmesr_server.encoding_socket import run_folder
from dmesr_server.errors import ServiceError
from dmesr_server.health import Health
from dmesr_server.lifecycle import announce, retract, stop_signal
from dmesr_server.machine_folder import machine_folder
from dmesr_server.memory import few_heaps, leave_to_live
from dmesr_server.pictures.decoders import Decoders
from dmesr_server.pictures.fetching import Fetcher
from dmesr_server.serving.adaptation import Adaptation
from dmesr_server.serving.index_files import IndexFiles
from dmesr_server.serving.index_keeper import IndexKeeper
from dmesr_server.serving.live import LiveModels
from dmesr_server.serving.loop import ServingLoop
from dmesr_server.serving.neighbours import Neighbours
from dmesr_server.serving.query_encoding import QueryEncoder
from dmesr_server.store import Store
from dmesr_server.supervisor import EnricherSupervisor
from dmesr_server.telemetry import traces
from dmesr_server.telemetry.call_spans import tracing
from dmesr_server.telemetry.calls import measuring
from dmesr_server.telemetry.port import served_metrics
from dmesr_server.upkeep.housekeeper import Housekeeper
from dmesr_server.upkeep.migrating import bring_up_to_date
from dmesr_server.worker import WorkerLine

_LOG = logging.getLogger(__name__)
#: Messages up to this many times the limit reach the server's own check, which answers with a reason and the sizes;
#: gRPC itself would only say RESOURCE_EXHAUSTED.
_MESSAGE_ROOM = 4
_PENDING_CALLS = 10_000  # that our code has not looked at yet
_KEEPALIVE_MS = 60_000
_KEPT_BLOCK_BYTES = 31 * 1024 * 1024  # just below the largest that glibc adapts to


async def run(
    config: Config, *, enricher: bool = True, ready_file: Path | None = None, line: WorkerLine | None = None
) -> None:
    """Runs the API process until SIGTERM or SIGINT, then drains.

    Args:
        config: All settings.
        enricher: Run an enricher beside it.
        ready_file: Gets "HOST:PORT" once the server answers.
        line: To the parent, where this is one of several workers: the port is then shared with them.

    Raises:
        StartError: The address or a certificate cannot be used.
        ServiceError: The store or the control database cannot be used.
    """
    asyncio.get_running_loop().set_default_executor(
        ThreadPoolExecutor(max_workers=most_threads(config.admission), thread_name_prefix="dmesr-call")
    )
    # glibc gives a large block back to the system when it is freed, and pays for its pages anew each time: in bulk
    # reads as much as for the copying. Once a block of this size was freed, it keeps blocks up to it for the next one.
    bytes(_KEPT_BLOCK_BYTES)
    stopping = stop_signal()
    if line is None:
        preflight.check(config, ready_file=ready_file)  # the parent of workers has done it
    with nullcontext(line.folder) if line is not None else machine_folder(config) as folder:
        await _serve(config, folder, stopping, enricher=enricher, ready_file=ready_file, line=line)


async def _serve(
    config: Config,
    folder: Path,
    stopping: asyncio.Event,
    *,
    enricher: bool,
    ready_file: Path | None,
    line: WorkerLine | None,
) -> None:
    few_heaps()
    parts = await asyncio.to_thread(_parts, config, folder, line)
    exposed = ExitStack()
    try:
        exposed.enter_context(traces.exported(config, process="dmesr-server"))
        intake = Intake(most_seconds=config.admission.intake_seconds)
        server, health = _server(parts, intake, shared_port=line is not None)
        probe = IntakeProbe(intake)
        probe.bind(server)
        port = _bind(server, config.server)
        supervisor = EnricherSupervisor(config) if enricher and not config.server.read_only else None
        if config.server.metrics_port is not None and (line is None or line.number == 0):
            exposed.enter_context(served_metrics(config.server, store=parts.store, control=parts.control))
        await server.start()
        leave_to_live()
        background = [
            asyncio.create_task(parts.serving.run(), name="serving"),
            asyncio.create_task(health.run(), name="health"),
            asyncio.create_task(probe.run(), name="intake"),
        ]
        if parts.tokens.needed:
            background.append(asyncio.create_task(parts.tokens.run(), name="tokens"))
        if parts.keeps_house:
            background.append(asyncio.create_task(_index_keeper(parts).run(), name="indexes"))
            background.append(asyncio.create_task(parts.housekeeper.run(), name="house-keeping"))
        if supervisor is not None:
            background.append(asyncio.create_task(supervisor.run(), name="enricher"))
        if line is None:
            announce(f"{preflight.printable(config.server.host)}:{port}", ready_file)
        else:
            line.listen(parts.serving.told, stopping.set)
            line.ready()
        if config.enrichment.auto and parts.keeps_house:
            background.append(asyncio.create_task(_catch_up(parts), name="catch-up"))
        try:
            await _until_stopped(stopping, background)
        finally:
            _LOG.info("stopping: calls in flight get %.1f s", config.server.grace_seconds)
            await health.end()
            draining = asyncio.create_task(server.stop(config.server.grace_seconds))
            for task in background:
                task.cancel()
            await asyncio.gather(draining, *background, return_exceptions=True)
            _LOG.info("stopped")
    finally:
        await parts.fetcher.close()
        await asyncio.to_thread(exposed.close)
        await asyncio.to_thread(_close, parts, ready_file)


def _parts(config: Config, folder: Path, line: WorkerLine | None) -> Parts:
    read_only = config.server.read_only
    keeps_house = not read_only and (line is None or line.number == 0)
    store = Store(
        uri=config.store.uri,
        keep_versions=timedelta(seconds=config.store.keep_versions_seconds),
        tidied=True,
        one_host=config.store.one_host,
        read_only=read_only,
    )
    control = Control(config.store.resolved_control_url, read_only=read_only)
    owner = f"api-{socket.gethostname()}-{os.getpid()}"
    bring_up_to_date(store=store, control=control, owner=owner)
    if not read_only:
        control.catalogs.ensure_default()
    tokens = TokenBook(
        control=control,
        bootstrap=config.server.token,
        needed=config.server.needs_token,
        poll_seconds=config.server.token_poll_seconds,
    )
    tokens.refresh()
    files = IndexFiles(folder / "indexes")
    live = LiveModels(store=store, control=control, config=config.serving, files=files)
    neighbours = Neighbours(folder / "matrices")
    adaptation = Adaptation(store=store, control=control, config=config.serving, files=files, owner=owner)
    return Parts(
        config=config,
        store=store,
        control=control,
        live=live,
        serving=ServingLoop(
            store=store,
            control=control,
            live=live,
            neighbours=neighbours,
            adaptation=adaptation if keeps_house else None,
            files=files,
            artefacts=config.artefacts_folder,
            poll_seconds=config.serving.poll_seconds,
            tell=None if line is None else line.tell,
        ),
        auto_enrichment=AutoEnrichment(config=config, store=store, control=control),
        neighbours=neighbours,
        query_encoder=QueryEncoder(run_folder(config.store.folder)),
        decoders=Decoders(
            config=config.pictures.decoding,
            workers=config.pictures.decoding.workers,
        ),
        fetcher=Fetcher(config=config.pictures.fetching, max_picture_bytes=config.limits.max_picture_bytes),
        housekeeper=Housekeeper(
            store=store,
            control=control,
            keep_seconds=config.store.keep_versions_seconds,
            poll_seconds=config.store.housekeeping_seconds,
            owner=owner,
        ),
        tokens=tokens,
        upload_room=Room(config.admission.upload_bytes),
        worker=0 if line is None else line.number,
        keeps_house=keeps_house,
    )


def _index_keeper(parts: Parts) -> IndexKeeper:
    store = parts.config.store
    return IndexKeeper(
        store=parts.store,
        control=parts.control,
        kind=store.index_kind,
        threshold_rows=store.index_threshold_rows,
        poll_seconds=store.index_poll_seconds,
        owner=f"api-{socket.gethostname()}-{os.getpid()}",
    )


def _close(parts: Parts, ready_file: Path | None) -> None:
    retract(ready_file)
    parts.neighbours.close()
    parts.decoders.close()
    parts.control.close()
    parts.store.close()


def _server(parts: Parts, intake: Intake, *, shared_port: bool) -> tuple[grpc.aio.Server, Health]:
    config = parts.config
    trail = AuditTrail(control=parts.control)
    gate = GateLayer(config=config.server, book=parts.tokens, trail=trail, control=parts.control)
    layers = LayeredHandlers(
        [
            *tracing(),
            *measuring(),
            CallLayer(max_message_bytes=config.limits.max_message_bytes, idle_seconds=config.admission.idle_seconds),
            AdmissionLayer(Admission(config.admission, intake=intake), knows=gate.knows),
            gate,
            *([only_reading] if config.server.read_only else []),
        ]
    )
    server = grpc.aio.server(
        options=[
            # Two servers on one port would share the calls between them, unnoticed; workers are meant to.
            ("grpc.so_reuseport", int(shared_port)),
            ("grpc.max_receive_message_length", _MESSAGE_ROOM * config.limits.max_message_bytes),
            ("grpc.max_send_message_length", -1),  # held by CallLayer, with a reason
            # Beyond this gRPC ends calls by itself, CANCELLED and without a reason. Its own bound is a thousand.
            ("grpc.server.max_pending_requests", _PENDING_CALLS),
            ("grpc.server.max_pending_requests_hard_limit", _PENDING_CALLS),
            # A peer whose machine has gone is noticed, and what was to be sent to it let go of.
            ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
            ("grpc.keepalive_timeout_ms", _KEEPALIVE_MS),
            *_connection_age(config.admission.connection_seconds),
        ],
    )
    registrar: Any = layers  # the generated types know only the other kind of server
    admin_pb2_grpc.add_AdminServiceServicer_to_server(AdminServicer(parts), registrar)
    embeddings.register(EmbeddingServicer(parts), registrar)
    enrichment_pb2_grpc.add_EnrichmentServiceServicer_to_server(EnrichmentServicer(parts), registrar)
    items_pb2_grpc.add_ItemServiceServicer_to_server(ItemServicer(parts), registrar)
    models_pb2_grpc.add_ModelServiceServicer_to_server(ModelServicer(parts), registrar)
    recommendations_pb2_grpc.add_RecommendationServiceServicer_to_server(RecommendationServicer(parts), registrar)

    names = [
        service.full_name
        for file in (admin_pb2, embeddings_pb2, enrichment_pb2, items_pb2, models_pb2, recommendations_pb2)
        for service in file.DESCRIPTOR.services_by_name.values()
    ]
    health = Health(services=names, store=parts.store, control=parts.control, written=_written_folders(parts))
    health_pb2_grpc.add_HealthServicer_to_server(health.servicer, registrar)
    if config.server.reflection:
        shown = (*names, "grpc.health.v1.Health", reflection.SERVICE_NAME)
        servicer = reflection.aio.ReflectionServicer(shown)  # type: ignore[attr-defined]  # its types know no aio
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, registrar)
    server.add_generic_rpc_handlers((layers,))
    return server, health


def _written_folders(parts: Parts) -> list[Path]:
    """The folders that the server writes to, as far as they are on this machine."""
    config = parts.config
    if config.server.read_only:
        return []
    folders = [config.store.folder, parts.control.folder]
    return [folder for folder in folders if folder is not None]


def _connection_age(seconds: float) -> list[tuple[str, int]]:
    """Ends what nothing else can: gRPC keeps the last message of a stream whose client never reads it."""
    milliseconds = min(round(seconds * 1_000), 2**31 - 1)
    if not milliseconds:
        return []
    return [("grpc.max_connection_age_ms", milliseconds), ("grpc.max_connection_age_grace_ms", milliseconds)]


def _bind(server: grpc.aio.Server, config: ServerConfig) -> int:
    address = f"{preflight.printable(config.host)}:{config.port}"
    if config.tls_certificate is None or config.tls_key is None:
        bind = functools.partial(server.add_insecure_port, address)
    else:
        clients = config.tls_client_ca
        credentials = grpc.ssl_server_credentials(
            [(config.tls_key.read_bytes(), config.tls_certificate.read_bytes())],
            root_certificates=None if clients is None else clients.read_bytes(),
            require_client_auth=clients is not None,
        )
        bind = functools.partial(server.add_secure_port, address, credentials)
    try:
        port = bind()
    except RuntimeError as error:
        raise preflight.cannot_listen(config, OSError(errno.EADDRINUSE, str(error))) from error
    if not port:
        raise preflight.cannot_listen(config, OSError(errno.EADDRINUSE, "Address already in use"))
    return int(port)


async def _until_stopped(stopping: asyncio.Event, background: Sequence[asyncio.Task[None]]) -> None:
    waiting = asyncio.create_task(stopping.wait())
    forever = [task for task in background if task.get_name() != "catch-up"]
    done, _ = await asyncio.wait([waiting, *forever], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    for task in done - {waiting}:
        task.result()  # background work never ends by itself: raise what ended it


async def _catch_up(parts: Parts) -> None:
    """Enriches what a process that was killed between an upsert and its job left behind."""
    for catalog in await asyncio.to_thread(parts.control.catalogs.list):
        try:
            if await asyncio.to_thread(parts.auto_enrichment.has_work, catalog.name):
                await parts.auto_enrichment.ensure(catalog.name)
        except ServiceError as error:
            _LOG.warning("automatic enrichment of %s cannot be checked: %s", catalog.name, error.message)
