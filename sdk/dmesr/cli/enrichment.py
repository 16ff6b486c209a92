"""`dmesr-cli enrich` and `dmesr-cli descriptions`: jobs, and what they wrote about the items."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import (
    as_json,
    connected,
    fail,
    print_json,
    print_line,
    print_table,
    progress,
    say,
    show,
)
from .options import command, group
from .rejects import check_rejects_file, report_rejects

if TYPE_CHECKING:
    import dmesr

enrich = group(
    "enrich",
    "Describe items and encode the descriptions.",
    examples=["dmesr-cli enrich start", "dmesr-cli enrich start --limit 50 --estimate", "dmesr-cli enrich status"],
)
descriptions = group(
    "descriptions",
    "Read descriptions, or bring in your own.",
    examples=["dmesr-cli descriptions show 296", "dmesr-cli descriptions import mine.jsonl --model gpt-4o-2024-08"],
)

JobId = Annotated[str, typer.Argument(help="The job's id.")]
Recipe = Annotated[str, typer.Option(help="The recipe's name or id.")]
Watch = Annotated[bool, typer.Option("--watch/--no-watch", help="Show progress until the job has ended.")]


@command(
    enrich,
    "start",
    examples=[
        "dmesr-cli enrich start",
        "dmesr-cli enrich start --limit 50 --estimate",
        "dmesr-cli enrich start --routes text,image --no-watch",
        "dmesr-cli enrich start --item 296 --item 318 --retry-failed",
    ],
)
def start(
    ctx: typer.Context,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many items that need work.")] = None,
    routes: Annotated[
        list[str] | None, typer.Option(help="text, image, hybrid: comma-separated or repeated. All three by default.")
    ] = None,
    item: Annotated[list[str] | None, typer.Option(help="Only this item; repeat it for more.")] = None,
    recipe: Annotated[str, typer.Option(help="The recipe's name, bound to what these settings make.")] = "default",
    describer: Annotated[str | None, typer.Option(help="The describer; the server's own by default.")] = None,
    encoder: Annotated[str | None, typer.Option(help="The encoder; the server's own by default.")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try failed descriptions again.")] = False,
    estimate: Annotated[bool, typer.Option("--estimate", help="Only tell what it would do and cost.")] = False,
    watch: Watch = True,
) -> None:
    """Describe and encode the items that are new or have changed. What is up to date costs nothing."""
    wanted: dict[str, Any] = {
        "recipe": recipe,
        "routes": _split(routes),
        "item_ids": item,
        "limit": limit,
        "describer": describer,
        "encoder": encoder,
        "retry_failed": retry_failed,
    }
    with connected(ctx) as client:
        if estimate:
            cost = client.enrichment.estimate(**wanted)
            show(ctx, cost, lambda: _print_estimate(cost))
            return
        job = client.enrichment.start(**wanted)
        if watch:
            job = _follow(job)
        _end(ctx, job, watched=watch)


@command(
    enrich,
    "status",
    examples=["dmesr-cli enrich status", "dmesr-cli enrich status 3f2a…", "dmesr-cli enrich status --json | jq '.[0]'"],
)
def status(
    ctx: typer.Context,
    job_id: Annotated[str | None, typer.Argument(help="The job's id; the latest jobs when not given.")] = None,
    count: Annotated[int, typer.Option("--count", min=1, help="How many jobs to list.")] = 20,
) -> None:
    """Show one job, or the latest jobs of the catalog."""
    with connected(ctx) as client:
        if job_id is not None:
            job = client.enrichment.get(job_id)
            show(ctx, job.status, lambda: _print_job(job))
            return
        jobs = list(islice(client.enrichment.list(), count))
    columns = ["job", "state", "items", "of", "recipe", "describer", "created"]
    rows = [
        (one.job_id, one.state, one.items_done, one.items_total, one.recipe_id, one.describer, one.create_time)
        for one in jobs
    ]
    show(ctx, [job.status for job in jobs], lambda: print_table(columns, rows, right=["items", "of"]))


@command(enrich, "watch", examples=["dmesr-cli enrich watch 3f2a…", "dmesr-cli enrich watch"])
def watch(
    ctx: typer.Context,
    job_id: Annotated[str | None, typer.Argument(help="The job's id; the latest job when not given.")] = None,
) -> None:
    """Show a job's progress until it has ended."""
    with connected(ctx) as client:
        job = client.enrichment.get(job_id) if job_id is not None else next(iter(client.enrichment.list()), None)
        if job is None:
            fail("there is no job yet: start one with 'dmesr-cli enrich start'")
        _end(ctx, _follow(job), watched=True)


@command(enrich, "cancel", examples=["dmesr-cli enrich cancel 3f2a…"])
def cancel(ctx: typer.Context, job_id: JobId) -> None:
    """Ask a job to stop. What it has written stays, and the next job goes on from there."""
    with connected(ctx) as client:
        job = client.enrichment.get(job_id)
        job.cancel()
        show(ctx, job.status, lambda: say(f"job {job_id}: {_state(job)}"))


@command(enrich, "retry", examples=["dmesr-cli enrich retry 3f2a…", "dmesr-cli enrich retry 3f2a… --no-watch"])
def retry(ctx: typer.Context, job_id: JobId, watch: Watch = True) -> None:
    """Start a job with the settings of an ended one, failed descriptions included."""
    with connected(ctx) as client:
        job = client.enrichment.retry(job_id)
        if watch:
            job = _follow(job)
        _end(ctx, job, watched=watch)


@command(
    descriptions,
    "show",
    examples=["dmesr-cli descriptions show 296", "dmesr-cli descriptions show 296 318 --json"],
)
def show_(
    ctx: typer.Context,
    item_ids: Annotated[list[str], typer.Argument(help="The items.")],
    recipe: Recipe = "default",
) -> None:
    """Show the original text and the descriptions of items, with where they come from."""
    with connected(ctx) as client:
        found = client.enrichment.descriptions(item_ids, recipe=recipe)
    show(ctx, found, lambda: _print_descriptions(found))
    if found.missing:
        fail(f"no item has the id {', '.join(found.missing)}")


@command(
    descriptions,
    "import",
    examples=[
        "dmesr-cli descriptions import mine.jsonl --model gpt-4o-2024-08",
        "dmesr-cli descriptions import texts.csv --model editors --no-mllm --item sku --text copy --route text",
        "dmesr-cli enrich start --describer import",
    ],
)
def import_(
    ctx: typer.Context,
    files: Annotated[list[Path], typer.Argument(help="CSV, Parquet or JSONL.", exists=True, dir_okay=False)],
    model: Annotated[str, typer.Option(help="Who made them: the model and its revision. Part of their identity.")],
    mllm: Annotated[bool, typer.Option("--mllm/--no-mllm", help="Whether a multimodal LLM made them.")] = True,
    item: Annotated[str, typer.Option(metavar="COLUMN", help="The column with item ids.")] = "item_id",
    text: Annotated[str, typer.Option(metavar="COLUMN", help="The column with texts.")] = "text",
    route: Annotated[
        str | None, typer.Option(help="All are of this route: text, image or hybrid. The column 'route' by default.")
    ] = None,
    recipe: Annotated[str, typer.Option(help="The recipe's name that gets them.")] = "default",
    rejects: Annotated[Path | None, typer.Option(metavar="FILE", help="Write rejected rows here, as JSONL.")] = None,
) -> None:
    """Bring in descriptions that were made elsewhere; then encode them with 'enrich start --describer import'."""
    from dmesr import ImportedDescription, RejectedRow
    from dmesr.readers import read_rows

    check_rejects_file(rejects)
    needed = (item, text) if route else (item, text, "route")
    unreadable: list[dmesr.RejectedRow] = []

    def read() -> Iterator[dmesr.ImportedDescription]:
        for file in files:
            for row in read_rows(file, needed=needed, only_needed=True):
                if isinstance(row, RejectedRow):
                    unreadable.append(row)
                    continue
                texts = ["" if row.values[column] is None else str(row.values[column]) for column in needed]
                yield ImportedDescription(item_id=texts[0], route=route or texts[2], text=texts[1])

    with connected(ctx) as client:
        summary = client.enrichment.import_descriptions(read(), model=model, is_mllm=mllm, recipe=recipe)
    report_rejects(ctx, summary, noun="description", file=rejects, unreadable=unreadable)


def _split(routes: list[str] | None) -> list[str] | None:
    return [name.strip() for entry in routes for name in entry.split(",") if name.strip()] if routes else None


def _state(job: dmesr.Job) -> str:
    return job.state.name.lower()


def _follow(job: dmesr.Job) -> dmesr.Job:
    latest = job
    try:
        with progress(f"job {job.job_id}") as tell:
            for latest in job.watch():
                counts = [f"{one.route} {max(one.described, one.encoded) + one.reused:,}" for one in latest.routes]
                tell(latest.items_done, total=latest.items_total or None, note=", ".join([_state(latest), *counts]))
    except KeyboardInterrupt:
        say(f"the job goes on: 'dmesr-cli enrich watch {job.job_id}' shows it, 'enrich cancel {job.job_id}' stops it")
        raise
    return latest


def _end(ctx: typer.Context, job: dmesr.Job, *, watched: bool) -> None:
    if as_json(ctx):
        print_json(job.status)
    elif watched:
        _print_job(job)
    else:
        print_line(job.job_id)
        say(f"job {job.job_id} is {_state(job)}: 'dmesr-cli enrich watch {job.job_id}' shows its progress")
    if job.state.name == "FAILED":
        fail(f"job {job.job_id} failed: {_problem(job)}; 'dmesr-cli enrich retry {job.job_id}' starts it again")
    if watched and job.state.name == "CANCELLED":
        fail(f"job {job.job_id} was cancelled; what it has written stays")


def _problem(job: dmesr.Job) -> str:
    return job.problem.message if job.problem is not None else "no reason was recorded"


def _print_job(job: dmesr.Job) -> None:
    took = ""
    if job.start_time is not None and job.end_time is not None:
        took = f" in {(job.end_time - job.start_time).total_seconds():.1f} s"
    print_line(f"job {job.job_id}: {_state(job)}, {job.items_done:,} of {job.items_total:,} items{took}")
    print_line(f"recipe {job.recipe_id}, describer {job.describer}, encoder {job.encoder}")
    columns = ["route", "applicable", "described", "reused", "failed", "encoded"]
    rows = [(one.route, one.applicable, one.described, one.reused, one.failed, one.encoded) for one in job.routes]
    if rows:
        print_table(columns, rows, right=columns[1:])


def _print_estimate(cost: dmesr.Estimate) -> None:
    print_line(f"{cost.items:,} items")
    columns = ["route", "applicable", "reused", "to describe", "to encode"]
    rows = [(one.route, one.applicable, one.reused, one.to_describe, one.to_encode) for one in cost.routes]
    print_table(columns, rows, right=columns[1:])
    duration = "unknown" if cost.seconds is None else _duration(cost.seconds)
    print_line(f"time {duration}, store {cost.store_bytes / 1e6:,.1f} MB")
    if cost.tokens is not None:
        print_line(f"tokens {cost.tokens:,}")
    print_line(cost.basis)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _origin(made: dmesr.Provenance | None, *, stale: bool) -> str:
    parts = [] if made is None else [made.describer, made.model, "" if made.is_mllm else "no multimodal LLM"]
    told = ", ".join(part for part in [*parts, "stale" if stale else ""] if part not in ("", "none"))
    return f" ({told})" if told else ""


def _print_descriptions(found: dmesr.Descriptions) -> None:
    by_item: dict[str, list[dmesr.Description]] = {item_id: [] for item_id in found.original_texts}
    for one in found.descriptions:
        by_item.setdefault(one.item_id, []).append(one)
    for place, (item_id, made) in enumerate(by_item.items()):
        if place:
            print_line()
        print_line(f"item {item_id}")
        print_line(f"  original: {found.original_texts.get(item_id) or '-'}")
        for one in made:
            who = _origin(one.provenance, stale=one.stale)
            text = one.text or f"failed: {one.problem.message if one.problem is not None else 'no reason was recorded'}"
            print_line(f"  {one.route}{who}: {text}")
        if not made:
            print_line("  no description yet: 'dmesr-cli enrich start' makes them")
