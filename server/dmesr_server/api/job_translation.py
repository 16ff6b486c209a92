"""Jobs of the control database as the wire tells them."""

from __future__ import annotations

from dmesr.v1 import enrichment_pb2 as pb

from dmesr_server.api import translation
from dmesr_server.control import JobRow


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
