"""Starts jobs: settles describer, encoder and recipe, binds the name, and puts the job into the queue."""

from __future__ import annotations

import uuid
from dataclasses import replace

from dmesr_server.config import Config
from dmesr_server.control import Control, JobRow, JobState
from dmesr_server.errors import ServiceError
from dmesr_server.store import Store
from dmesr_server.telemetry import traces

from . import describers, specs
from .specs import JobSpec

#: Of a stored job: the W3C headers of the call that started it, where that was traced.
TRACE = "trace"
_IDS_IN_MESSAGE = 5
# What an automatic request id is made in: the same waiting line and the same last job give the same id everywhere.
_AUTO = uuid.UUID("6a1f5f0e-6f0f-4f4c-9a53-52b7f5a3a0d1")


def start_job(
    *, control: Control, store: Store, config: Config, catalog: str, spec: JobSpec, request_id: str | None
) -> JobRow:
    """Puts a job into the queue. Blocks; loads no model.

    Args:
        control: Where the job and its recipe are kept.
        store: Where the items are.
        config: The server's describer and encoder.
        catalog: The catalog's name.
        spec: What to do.
        request_id: The same one again returns the job that it made.

    Raises:
        ServiceError: CATALOG_NOT_FOUND, ITEM_NOT_FOUND (an id of the spec that no item has), and what
            :func:`specs.means` raises. Nothing was started then.
    """
    row = control.catalogs.get(catalog)
    means = specs.means(control=control, config=config, catalog=row, spec=spec)
    _check_items(store, catalog=catalog, spec=spec)
    means.recipe.save(control, catalog)
    asked = spec.to_json()
    if carrier := traces.carrier():
        asked[TRACE] = carrier  # not read by `JobSpec`: a retry belongs to its own call
    job = control.jobs.create(
        catalog, asked, means.recipe.recipe_id, means.describer.name, means.encoder_name, request_id
    )
    traces.note({"dmesr.job_id": job.job_id, "dmesr.recipe": job.recipe_id})
    # A repeated request must not move a name that has been bound to something else since.
    if job.recipe_id == means.recipe.recipe_id and job.state is JobState.QUEUED and job.attempts == 0:
        control.recipes.bind(catalog, spec.recipe, means.recipe.recipe_id)
    return job


def retry_job(*, control: Control, store: Store, config: Config, job_id: str, request_id: str | None) -> JobRow:
    """Starts a job with the settings of an ended one; descriptions that failed are tried again. Blocks.

    Raises:
        ServiceError: JOB_NOT_FOUND, JOB_STATE when the job has not ended, and what :func:`start_job` raises.
    """
    ended = control.jobs.get(job_id)
    if not ended.state.ended:
        raise ServiceError(
            "JOB_STATE",
            f"the job {job_id} has not ended ({ended.state}) and cannot be retried: wait for it, or cancel it first",
            job_id=job_id,
            state=ended.state,
        )
    # As it was settled then, whatever is configured now.
    spec = replace(
        JobSpec.from_json(ended.spec), describer=ended.describer, encoder=ended.encoder, retry_failed=True, auto=False
    )
    if spec.item_ids:
        there = store.catalog(ended.catalog).items.existing(spec.item_ids)
        spec = replace(spec, item_ids=tuple(item_id for item_id in spec.item_ids if item_id in there))
        if not there:
            raise ServiceError(
                "ITEM_NOT_FOUND", f"none of the items of the job {job_id} is there any more", job_id=job_id
            )
    return start_job(
        control=control, store=store, config=config, catalog=ended.catalog, spec=spec, request_id=request_id
    )


def ensure_auto_job(*, control: Control, store: Store, config: Config, catalog: str) -> JobRow:
    """Sees to it that a job is waiting which will see every change made before this call. Blocks.

    At most one such job waits in a catalog, whatever number of processes ask. A name that holds imported descriptions
    keeps them: its job encodes what was imported.

    Raises:
        ServiceError: What :func:`start_job` raises.
    """
    while True:
        # In this order: a job that another process makes after this look is either found waiting, or asked for by the
        # same request.
        newest = control.jobs.list(catalog, page_size=1)
        for job in control.jobs.active(catalog):
            if job.state is JobState.QUEUED and not job.cancel_requested and job.spec.get("auto"):
                return job
        request_id = uuid.uuid5(_AUTO, f"{catalog}/{newest[0].job_id if newest else ''}")
        spec = JobSpec(auto=True, describer=_auto_describer(control, config, catalog))
        job = start_job(
            control=control, store=store, config=config, catalog=catalog, spec=spec, request_id=str(request_id)
        )
        if job.state is JobState.QUEUED:
            return job
        # Another process made it just now, and it runs already: it may have passed what was changed.


def _auto_describer(control: Control, config: Config, catalog: str) -> str:
    try:
        bound = control.recipes.resolve(catalog, specs.DEFAULT_RECIPE)
    except ServiceError as error:
        if error.reason != "RECIPE_NOT_FOUND":
            raise
        return config.enrichment.describer
    return describers.IMPORT if specs.imported_spec(control, bound) is not None else config.enrichment.describer


def _check_items(store: Store, *, catalog: str, spec: JobSpec) -> None:
    if not spec.item_ids:
        return
    there = store.catalog(catalog).items.existing(spec.item_ids)
    missing = [item_id for item_id in dict.fromkeys(spec.item_ids) if item_id not in there]
    if missing:
        named = ", ".join(repr(item_id)[:100] for item_id in missing[:_IDS_IN_MESSAGE])
        more = f" and {len(missing) - _IDS_IN_MESSAGE} more" if len(missing) > _IDS_IN_MESSAGE else ""
        raise ServiceError(
            "ITEM_NOT_FOUND",
            f"{len(missing)} of the {len(spec.item_ids)} items of the job do not exist: {named}{more}; import them "
            "first, or leave them out",
            catalog=catalog,
            missing=len(missing),
            item_id=missing[0][:256],
        )
