"""Jobs and descriptions ↔ messages of the wire."""

from __future__ import annotations

from dmesr.v1 import enrichment_pb2 as pb

from dmesr_server.api import translation, validation
from dmesr_server.config import LimitsConfig
from dmesr_server.control import JobRow
from dmesr_server.enrichment import corrections, routes
from dmesr_server.enrichment.corrections import Standing
from dmesr_server.enrichment.estimating import Estimate
from dmesr_server.enrichment.specs import JobSpec
from dmesr_server.store import DescriptionRow, StoredItem


def job_spec(wire: pb.JobSpec, limits: LimitsConfig) -> JobSpec:
    """What a job is asked to do.

    Raises:
        ServiceError: INVALID_FIELD or REQUEST_TOO_LARGE.
    """
    return JobSpec(
        recipe=validation.new_name("spec.recipe", validation.recipe_ref(wire.recipe)),
        routes=tuple(validation.distinct(wire.routes)),
        item_ids=tuple(validation.distinct(validation.ids("spec.item_ids", wire.item_ids, limits))),
        limit=wire.limit,
        describer=wire.describer,
        encoder=wire.encoder,
        retry_failed=wire.retry_failed,
    )


def estimate(found: Estimate) -> pb.EstimateJobResponse:
    """What a job would do."""
    return pb.EstimateJobResponse(
        items=found.items,
        routes=[
            pb.RouteEstimate(
                route=work.route,
                applicable=work.applicable,
                reused=work.reused,
                to_describe=work.to_describe,
                to_encode=work.to_encode,
            )
            for work in found.routes
        ],
        seconds=found.seconds,
        tokens=found.tokens,
        tokens_in=None if found.tokens is None or found.tokens_out is None else found.tokens - found.tokens_out,
        tokens_out=found.tokens_out,
        sample_descriptions=found.sample_descriptions,
        store_bytes=found.store_bytes,
        basis=found.basis,
    )


def standing(found: Standing, item: StoredItem) -> pb.Description:
    """The description that stands, with what it replaces, beside the item as it is now."""
    wire = description(found.row, item)
    if found.replaced is not None:
        wire.replaced.CopyFrom(description(found.replaced, item))
    return wire


def description(row: DescriptionRow, item: StoredItem) -> pb.Description:
    """A description, or why there is none, beside the item as it is now."""
    told = row.provenance
    failed = None
    if row.failure_reason is not None:
        failed = {"reason": row.failure_reason, "message": row.failure_message or ""}
    return pb.Description(
        item_id=row.item_id,
        route=row.route,
        text=row.text or "",
        problem=translation.recorded_problem(failed),
        provenance=pb.Provenance(
            description_recipe_id=corrections.description_recipe_id(row),
            describer=told.get("describer", ""),
            is_mllm=told.get("is_mllm", False),
            model=told.get("model", ""),
            engine=told.get("engine", ""),
            prompt_revision=str(told.get("prompt_revision", "")),
            content_hash=told.get("content_hash", ""),
            picture_sha256=told.get("picture_sha256", ""),
            rounds=told.get("rounds", 0),
            stop_reason=told.get("stop_reason", ""),
            tokens_in=told.get("tokens_in", 0),
            tokens_out=told.get("tokens_out", 0),
            tokens_cached=told.get("tokens_cached", 0),
            milliseconds=told.get("milliseconds", 0.0),
            create_time=translation.timestamp(row.create_time),
            sampling=told.get("sampling", ""),
            author=told.get("author", ""),
        ),
        stale=routes.is_stale(item, row.route, row.input_hash),
    )


def job(row: JobRow) -> pb.Job:
    """A job as it stands."""
    return pb.Job(
        job_id=row.job_id,
        catalog=row.catalog,
        spec=pb.JobSpec(
            recipe=row.spec.get("recipe", ""),
            routes=row.spec.get("routes") or [],
            item_ids=row.spec.get("item_ids") or [],
            limit=row.spec.get("limit") or 0,
            describer=row.spec.get("describer", ""),
            encoder=row.spec.get("encoder", ""),
            retry_failed=row.spec.get("retry_failed", False),
        ),
        state=pb.JobState.Value(f"JOB_STATE_{row.state}"),
        recipe_id=row.recipe_id,
        items_done=row.progress.get("items_done", 0),
        items_total=row.progress.get("items_total", 0),
        routes=[pb.RouteProgress(**route) for route in row.progress.get("routes", [])],
        problem=translation.recorded_problem(row.problem),
        create_time=translation.timestamp(row.create_time),
        start_time=translation.timestamp(row.start_time),
        end_time=translation.timestamp(row.end_time),
        describer=row.describer,
        encoder=row.encoder,
    )
