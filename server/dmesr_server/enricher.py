"""The enricher process: takes jobs, describes and encodes. The only process that loads describers and encoders.

It meets the API in the stores alone. A job is claimed by a lease: when this process dies, another one takes the job up
where it was. `dmesr-cli serve` runs one as `python -m dmesr_server.enricher`; more may run on other machines.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from dmesr_server import memory
from dmesr_server.config import Config, ConfigError, load
from dmesr_server.control import ClaimedJob, Control, JobState, Lease
from dmesr_server.encoding_socket import run_folder
from dmesr_server.enrichment import specs
from dmesr_server.enrichment.describers import Describer
from dmesr_server.enrichment.encoders import Encoder
from dmesr_server.enrichment.query_service import QueryService
from dmesr_server.enrichment.running import RunningJob
from dmesr_server.enrichment.specs import JobSpec, Means
from dmesr_server.errors import ServiceError
from dmesr_server.pictures.decoders import Decoders
from dmesr_server.preflight import StartError, check_traces
from dmesr_server.store import Store
from dmesr_server.telemetry import logs, metrics, traces
from dmesr_server.telemetry.port import served_metrics
from dmesr_server.upkeep.migrating import bring_up_to_date

_LOG = logging.getLogger(__name__)
_THREADS = 16  # for blocking calls; most of them wait for a disk
_LONGEST_PAUSE = 30.0  # seconds between attempts while the control database is out of reach
_TIDYING_SECONDS = 1.0  # between hand-backs of freed memory
_SIGN_OF_LIFE_SECONDS = 15.0  # how long `GetServerInfo` believes in an enricher that is silent


def run(config: Config, *, parent_fd: int | None = None) -> None:
    """Runs one enricher until SIGTERM, SIGINT, or until its parent has gone.

    Args:
        config: The server's configuration.
        parent_fd: The read end of a pipe that only the parent holds open; the process ends when it closes.

    Raises:
        StartError: The port of the metrics cannot be used, or the packages for traces are missing.
        ServiceError: STORE_UNAVAILABLE when the stores cannot be opened.
    """
    check_traces(config)
    keep = timedelta(seconds=config.store.keep_versions_seconds)
    store = Store(uri=config.store.uri, keep_versions=keep, tidied=True, one_host=config.store.one_host)
    control = Control(config.store.resolved_control_url)
    exposed = contextlib.ExitStack()
    try:
        bring_up_to_date(store=store, control=control, owner=f"enricher-{socket.gethostname()}-{os.getpid()}")
        if config.server.metrics_port is not None and parent_fd is None:  # else the parent's port tells ours too
            exposed.enter_context(served_metrics(config.server, store=store, control=control))
        exposed.enter_context(traces.exported(config, process="dmesr-enricher"))
        asyncio.run(_Enricher(config=config, store=store, control=control).run(parent_fd=parent_fd))
    finally:
        exposed.close()
        control.close()
        store.close()


class _Enricher:
    """Takes one job after the other. What a job has loaded stays loaded for the next one of its kind."""

    def __init__(self, *, config: Config, store: Store, control: Control):
        self._config = config
        self._store = store
        self._control = control
        self._id = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self._stopping = asyncio.Event()
        self._heart = ThreadPoolExecutor(1, thread_name_prefix="heart")
        self._describer: Describer | None = None
        self._encoder: Encoder | None = None
        self._decoders = Decoders(
            config=config.pictures.decoding,
            workers=config.enrichment.picture_workers,
        )

    async def run(self, *, parent_fd: int | None) -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(_THREADS))
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signal_number, self._stop, signal_number.name)
        if parent_fd is not None:
            loop.add_reader(parent_fd, self._stop, "the parent has gone")
        life = asyncio.create_task(self._show_life())
        tidying = asyncio.create_task(self._hand_memory_back())
        queries = self._query_service()
        if queries is not None:
            await queries.start()
        _LOG.info("enricher started: id=%s store=%s", self._id, self._store.uri)
        try:
            await self._take_jobs()
        finally:
            for task in (life, tidying):
                task.cancel()
            await asyncio.gather(life, tidying, return_exceptions=True)
            if queries is not None:
                await queries.stop()
            await self._unload()
            self._decoders.close()
            self._heart.shutdown()
            if parent_fd is not None:
                loop.remove_reader(parent_fd)
            # asyncio waits for its threads at the end. One may be loading a model, which nobody needs any more.
            loop.set_default_executor(ThreadPoolExecutor(1))
        _LOG.info("enricher stopped: id=%s", self._id)

    def _query_service(self) -> QueryService | None:
        folder = run_folder(self._config.store.folder)
        if folder is None:
            return None
        return QueryService(
            config=self._config.enrichment, folder=folder, name=str(os.getpid()), lent=lambda: self._encoder
        )

    def _stop(self, why: str) -> None:
        if not self._stopping.is_set():
            _LOG.info("stopping: %s", why)
            self._stopping.set()

    async def _take_jobs(self) -> None:
        pause = self._config.enrichment.poll_seconds
        while not self._stopping.is_set():
            try:
                claimed = await asyncio.to_thread(
                    self._control.jobs.claim, self._id, self._config.enrichment.lease_seconds
                )
                pause = self._config.enrichment.poll_seconds
            except ServiceError as error:
                _LOG.warning("no job can be taken, trying again in %.1f s: %s", pause, error.message)
                claimed = None
                pause = min(2 * pause, _LONGEST_PAUSE)
            if claimed is None:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), pause)
            else:
                await self._work(claimed)

    async def _work(self, claimed: ClaimedJob) -> None:
        try:
            catalog = await asyncio.to_thread(self._control.catalogs.get, claimed.job.catalog)
            means = await self._means(claimed)
        except ServiceError as error:
            await self._refuse(claimed, error)
            return
        await RunningJob(
            control=self._control,
            store=self._store,
            config=self._config,
            claimed=claimed,
            catalog=catalog,
            means=means,
            decoders=self._decoders,
            stopping=self._stopping,
            heart=self._heart,
        ).run()

    async def _means(self, claimed: ClaimedJob) -> Means:
        """Describer and encoder of the job, those of the last job where they are the same.

        Raises:
            ServiceError: DESCRIBER_UNAVAILABLE, ENCODER_UNAVAILABLE, also when they make another recipe here than in
                the process that started the job.
        """
        job = claimed.job
        spec = replace(JobSpec.from_json(job.spec), describer=job.describer, encoder=job.encoder)
        means = await asyncio.to_thread(self._made_means, claimed, spec)
        if means.recipe.recipe_id != job.recipe_id:
            raise ServiceError(
                "DESCRIBER_UNAVAILABLE",
                f"this enricher's describer {job.describer} and encoder {job.encoder} make the recipe "
                f"{means.recipe.recipe_id}, the job wants {job.recipe_id}: give API and enricher the same version and "
                "configuration, then retry the job",
                expected=job.recipe_id,
                actual=means.recipe.recipe_id,
            )
        if self._describer is None or not _same_describer(self._describer, means.describer):
            if self._describer is not None:
                await self._describer.stop()
            self._describer = means.describer
        if self._encoder is None or self._encoder.recipe_fields() != means.encoder.recipe_fields():
            if self._encoder is not None:
                await self._encoder.stop()
            self._encoder = means.encoder
        return replace(means, describer=self._describer, encoder=self._encoder)

    def _made_means(self, claimed: ClaimedJob, spec: JobSpec) -> Means:
        job = claimed.job
        catalog = self._control.catalogs.get(job.catalog)
        return specs.means(control=self._control, config=self._config, catalog=catalog, spec=spec, recipe=job.recipe_id)

    async def _refuse(self, claimed: ClaimedJob, error: ServiceError) -> None:
        """Ends a job that cannot even begin."""
        _LOG.error("job cannot begin: job=%s reason=%s: %s", claimed.job.job_id, error.reason, error.message)
        problem = {"reason": error.reason, "message": error.message, "metadata": dict(error.metadata)}
        with contextlib.suppress(ServiceError):
            await asyncio.to_thread(
                self._control.jobs.finish,
                claimed.job.job_id,
                claimed.lease,
                JobState.FAILED,
                problem,
                claimed.job.progress,
            )

    async def _hand_memory_back(self) -> None:
        """What a group of items needed is free when the next one begins, but not yet the system's."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_TIDYING_SECONDS)
            await loop.run_in_executor(self._heart, memory.hand_back)

    async def _show_life(self) -> None:
        """Holds the lease by which others see that this enricher lives."""
        loop = asyncio.get_running_loop()
        name = f"enricher:{self._id}"
        lease: Lease | None = None
        try:
            while True:
                try:
                    if lease is None:
                        lease = await loop.run_in_executor(
                            self._heart, self._control.leases.acquire, name, self._id, _SIGN_OF_LIFE_SECONDS
                        )
                    else:
                        lease = await loop.run_in_executor(self._heart, self._control.leases.renew, lease)
                except ServiceError as error:
                    _LOG.warning("no sign of life given: %s", error.message)
                    lease = None
                await asyncio.sleep(_SIGN_OF_LIFE_SECONDS / 3)
        finally:
            if lease is not None:
                with contextlib.suppress(ServiceError):
                    self._control.leases.release(lease)

    async def _unload(self) -> None:
        for part in (self._describer, self._encoder):
            if part is not None:
                await part.stop()


def _same_describer(one: Describer, other: Describer) -> bool:
    return (one.name, one.model, one.routes) == (other.name, other.model, other.routes) and all(
        one.recipe_fields(route) == other.recipe_fields(route) for route in one.routes
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The process: reads its flags, runs, and returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m dmesr_server.enricher", description=__doc__)
    parser.add_argument("--config", type=Path, help="a TOML file; DMESR_* variables beat it, flags beat both")
    parser.add_argument("--config-json", help="the configuration as JSON, or a JSON file")
    parser.add_argument("--store", help="a folder, or any lancedb.connect URI")
    parser.add_argument("--describer", help="the describer that jobs use when they name none")
    parser.add_argument("--log-level", help="DEBUG, INFO, WARNING or ERROR")
    parser.add_argument("--parent-fd", type=int, help="a pipe's read end: the process ends when it closes")
    given = parser.parse_args(arguments)
    memory.bound_heaps()
    flags = {
        "store.uri": given.store,
        "enrichment.describer": given.describer,
        "log_level": given.log_level,
    }
    try:
        if given.config_json is not None:
            flags = {**_flattened(_json(given.config_json)), **{k: v for k, v in flags.items() if v is not None}}
        config = load(file=given.config, flags=flags)
    except ConfigError as error:
        parser.exit(2, f"error: {error}\n")
    logs.configure(config, process="enricher" if config.log_format == "json" else "")
    logging.getLogger().setLevel(config.log_level)
    # Libraries tell at INFO what every job tells already.
    for library in ("sentence_transformers", "transformers", "huggingface_hub", "httpx", "httpx2", "alembic"):
        logging.getLogger(library).setLevel(max(logging.WARNING, logging.getLogger().level))
    try:
        with metrics.shared(config.server):
            run(config, parent_fd=given.parent_fd)
    except (StartError, ServiceError) as error:
        parser.exit(1, f"error: {error}\n")
    return 0


def _json(given: str) -> Mapping[str, Any]:
    text = given
    if not given.lstrip().startswith("{"):
        try:
            text = Path(given).read_text()
        except OSError as error:
            raise ConfigError(f"cannot read the configuration file {given}: {error.strerror}") from error
    try:
        content: Any = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"--config-json is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError("--config-json must be a JSON object of sections")
    return content


def _flattened(sections: Mapping[str, Any]) -> dict[str, Any]:
    """{"store": {"uri": …}} as {"store.uri": …}; deeper settings stay as they are."""
    flat: dict[str, Any] = {}
    for name, value in sections.items():
        if isinstance(value, dict):
            flat.update({f"{name}.{key}": setting for key, setting in value.items()})
        else:
            flat[name] = value
    return flat


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    # Everything is written and handed back. The interpreter would wait for a thread that is still loading a model.
    os._exit(code)
