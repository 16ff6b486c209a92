"""`dmesr-cli enrich`: jobs that describe and encode, what they would ask, and how they did."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import (
    as_json,
    cell,
    connected,
    fail,
    plain,
    print_json,
    print_line,
    print_table,
    progress,
    say,
    show,
)
from .options import command, group

if TYPE_CHECKING:
    import dmesr

enrich = group(
    "enrich",
    "Describe items and encode the descriptions.",
    examples=["dmesr-cli enrich start", "dmesr-cli enrich start --limit 50 --estimate", "dmesr-cli enrich status"],
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
        list[str] | None,
        typer.Option(
            help="text, image, hybrid, reflect: comma-separated or repeated. All but reflect, which only the baseline "
            "X-REFLECT reads, by default."
        ),
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
    enrich,
    "preview",
    examples=[
        "dmesr-cli enrich preview 296 --route hybrid",
        "dmesr-cli enrich preview 296 --route text --describer vllm --json",
    ],
)
def preview(
    ctx: typer.Context,
    item_id: Annotated[str, typer.Argument(help="The item.")],
    route: Annotated[str, typer.Option(help="The route: text, image, hybrid or reflect.")],
    recipe: Annotated[
        str | None, typer.Option(help="A recipe's name or id, whose describer is asked; the server's own by default.")
    ] = None,
    describer: Annotated[str | None, typer.Option(help="Ask this describer instead.")] = None,
) -> None:
    """Show the prompt of an item as the describer would send it, without generating anything or loading a model."""
    with connected(ctx) as client:
        shown = client.enrichment.preview(item_id, route=route, recipe=recipe, describer=describer)
    show(ctx, shown, lambda: _print_preview(shown))


@command(enrich, "stats", examples=["dmesr-cli enrich stats", "dmesr-cli enrich stats --recipe default --json"])
def stats(ctx: typer.Context, recipe: Recipe = "default") -> None:
    """Show by route what the descriptions are like and what they took: coverage, length, speed, cache, failures."""
    with connected(ctx) as client:
        found = client.enrichment.stats(recipe)
    result = {**plain(found), "routes": [{**plain(one), "coverage": one.coverage} for one in found.routes]}
    show(ctx, result, lambda: _print_stats(found))


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
    parts = [f"time {duration}", f"store {cost.store_bytes / 1e6:,.1f} MB"]
    if cost.tokens is not None:
        parts.append(f"tokens {cost.tokens:,} ({cell(cost.tokens_in)} in, {cell(cost.tokens_out)} out)")
    elif not cost.sample_descriptions:
        parts.append("tokens unknown")
    print_line(", ".join(parts))
    print_line(cost.basis)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _print_preview(shown: dmesr.PromptPreview) -> None:
    print_line(f"describer {shown.describer}, model {shown.model}, prompts {shown.prompt_revision}")
    print_line(f"description recipe {shown.description_recipe_id}")
    asked = shown.asked_description_recipe_id
    if asked is not None and asked != shown.description_recipe_id:
        say(f"the recipe was made with other settings ({asked}); this is what the server would send now")
    for turn in shown.turns:
        notes = [turn.role]
        if turn.has_picture:
            tokens = "tokens unknown" if shown.picture_tokens is None else f"{shown.picture_tokens:,} tokens"
            notes.append(f"picture first: {shown.picture_width_px} × {shown.picture_height_px} pixels, {tokens}")
        if turn.round:
            notes.append(f"round {turn.round} of refinement")
        print_line()
        print_line(f"── {', '.join(notes)}")
        print_line(turn.text)


def _print_stats(found: dmesr.EnrichmentStats) -> None:
    print_line(f"recipe {found.recipe_id}, {found.items:,} items")
    columns = ["route", "applicable", "described", "coverage", "corrected", "stale", "failed", "words"]
    # What no route has is left out: a describer without a model counts no tokens.
    further: dict[str, list[Any]] = {
        "tokens in": [one.tokens_in or None for one in found.routes],
        "tokens out": [one.tokens_out or None for one in found.routes],
        "tokens/s": [_rounded(one.tokens_per_second) for one in found.routes],
        "cached": [_percent(one.cache_hit_share) for one in found.routes],
        "rounds": [_rounded(one.refinement.mean_rounds) if one.refinement else None for one in found.routes],
        "gain": [_percent(one.refinement.gain) if one.refinement else None for one in found.routes],
    }
    known = {name: values for name, values in further.items() if any(value is not None for value in values)}
    rows = [
        (
            *(one.route, one.applicable, one.described, _percent(one.coverage), one.corrected, one.stale, one.failed),
            *(_rounded(one.mean_words), *(values[place] for values in known.values())),
        )
        for place, one in enumerate(found.routes)
    ]
    print_table([*columns, *known], rows, right=[*columns[1:], *known])
    for one in found.routes:
        if one.failures:
            print_line(f"{one.route} failed: {_counts(one.failures)}")
        if set(one.stop_reasons) - {"stop"}:
            print_line(f"{one.route} ended by: {_counts(one.stop_reasons)}")
        if one.refinement is not None:
            words = ", ".join(f"{words:.1f}" for words in one.refinement.new_words_by_round) or "none"
            print_line(f"{one.route} new words by revision: {words} ({one.refinement.refined:,} refined)")


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items(), key=lambda one: -one[1]))


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.1%}"


def _rounded(value: float | None) -> str | None:
    return None if value is None else f"{value:,.1f}"
