"""`dmesr-cli recommend` and `dmesr-cli evaluate`: what the model shows next, and how often that is right."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import as_json, connected, print_line, print_table, progress, say, shortened, show
from .options import command

if TYPE_CHECKING:
    import dmesr

    from .evaluation import Evaluation

SHOWN_ROWS = 10

ModelOption = Annotated[str, typer.Option(help="The alias, name or NAME:VERSION.")]


def register(app: typer.Typer) -> None:
    """Adds the commands to the root."""
    command(
        app,
        "recommend",
        examples=[
            "dmesr-cli recommend 1 296 318 -k 5",
            "dmesr-cli recommend 296 --model films:3 --deny 318 --attribute genres",
            "dmesr-cli recommend 296 --filter 'genres has \"Comedy\" and year >= 1990'",
            "dmesr-cli recommend --similar-to 296",
            "dmesr-cli recommend --json",
        ],
    )(recommend)
    command(
        app,
        "evaluate",
        examples=[
            "dmesr-cli evaluate ratings.csv --user userId --item movieId --time timestamp",
            "dmesr-cli evaluate events.parquet --model films:3 -k 20 --json",
        ],
    )(evaluate)


def recommend(
    ctx: typer.Context,
    history: Annotated[
        list[str] | None,
        typer.Argument(help="What the user has interacted with, oldest first; popular items for none."),
    ] = None,
    k: Annotated[int, typer.Option("-k", "--count", min=1, help="How many.")] = 10,
    model: ModelOption = "production",
    include_seen: Annotated[bool, typer.Option("--include-seen", help="Items of the history may come again.")] = False,
    allow: Annotated[list[str] | None, typer.Option(help="Only among these items; repeat it for more.")] = None,
    deny: Annotated[list[str] | None, typer.Option(help="Never this item; repeat it for more.")] = None,
    filter_: Annotated[
        str | None,
        typer.Option("--filter", metavar="FILTER", help="Only items whose attributes meet this (docs/filters.md)."),
    ] = None,
    similar_to: Annotated[
        str | None,
        typer.Option(
            metavar="ITEM", help="Without a known history, items near to this one come instead of popular ones."
        ),
    ] = None,
    unit: Annotated[
        str | None, typer.Option(help="The user or session, where the alias's traffic is split: its side stays.")
    ] = None,
    attribute: Annotated[list[str] | None, typer.Option(help="Show this attribute too; repeat it for more.")] = None,
) -> None:
    """Recommend items for a history, with what each view of the model contributed to the score."""
    asked = [*(attribute or []), *(name for name in ("title", "name") if name not in (attribute or []))]
    with connected(ctx) as client:
        found = client.recommend(
            history=history or [],
            k=k,
            model=model,
            exclude_seen=not include_seen,
            allow=allow,
            deny=deny,
            filter=filter_,
            fallback=similar_to,
            unit=unit,
            attributes=asked,
        )
        # A map has no order on the wire; the manifest tells the views' own.
        views = [] if as_json(ctx) else _views(client.models.get(found.model).manifest)
    result = {
        "model": found.model,
        "alias": found.alias,
        "strategy": found.strategy,
        "unknown_item_ids": found.unknown_item_ids,
        "recommendations": list(found),
    }
    show(ctx, result, lambda: _print_recommendations(found, attributes=attribute or [], views=views))


def _views(manifest: Mapping[str, Any]) -> list[str]:
    return [view["name"] for view in manifest.get("views", [])]


def _print_recommendations(found: dmesr.Recommendations, *, attributes: list[str], views: list[str]) -> None:
    if found.unknown_item_ids:
        say(f"the model does not know {', '.join(found.unknown_item_ids)}: skipped")
    if found.strategy.name == "POPULARITY":
        say("popular items: the history is empty or the model knows none of it")
    if found.strategy.name == "SIMILAR":
        say("items near to the one given: the history is empty or the model knows none of it")
    views = [view for view in views if any(view in one.shares for one in found)]
    rows = []
    for place, one in enumerate(found, 1):
        titles = one.attributes.get("title") or one.attributes.get("name") or ["-"]
        rows.append(
            (
                place,
                one.item_id,
                shortened(", ".join(titles)),
                *(one.attributes.get(name) for name in attributes),
                f"{one.score:.3f}",
                *(f"{one.shares.get(view, 0.0):+.3f}" for view in views),
                "new" if one.is_new else "",
            )
        )
    print_table(["", "item", "title", *attributes, "score", *views, "new"], rows, right=["", "score", *views])
    print_line(f"model {found.model}" + (f", alias {found.alias}" if found.alias else ""))


def evaluate(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="Interactions: CSV, Parquet or JSONL.", exists=True, dir_okay=False)],
    model: ModelOption = "production",
    user: Annotated[str, typer.Option(metavar="COLUMN", help="The column with user ids.")] = "user_id",
    item: Annotated[str, typer.Option(metavar="COLUMN", help="The column with item ids.")] = "item_id",
    time: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="The column that orders a user's events; the file's order by default."),
    ] = None,
    k: Annotated[int, typer.Option("-k", "--count", min=1, help="Length of the lists.")] = 10,
    users: Annotated[int | None, typer.Option(min=1, help="Only so many users, drawn at random.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of that draw.")] = 0,
) -> None:
    """Measure a model on your own interactions: hide each user's last item, recommend from the others, count hits.

    The whole catalogue competes, not a sample of it. Items of the history are left out, the hidden one never.
    Popularity is counted from the interactions that are not hidden. A model that was trained on the hidden ones
    looks better than it is.
    """
    from .evaluation import evaluate_model, read_events

    events = read_events(file, user=user, item=item, time=time)
    for row in events.unusable[:SHOWN_ROWS]:
        say(row.message)
    with connected(ctx) as client, progress("evaluating") as tell:
        result = evaluate_model(client, events, model=model, k=k, max_users=users, seed=seed, tell=tell)
    show(ctx, result, lambda: _print_evaluation(result))


def _print_evaluation(result: Evaluation) -> None:
    k = result.k
    rows = [
        (name, f"{scores.hit_rate:.4f} ± {scores.hit_rate_se:.4f}", f"{scores.ndcg:.4f} ± {scores.ndcg_se:.4f}")
        for name, scores in ((result.model, result.scores), ("popularity", result.popularity))
    ]
    print_table(["", f"HR@{k}", f"NDCG@{k}"], rows, right=[f"HR@{k}", f"NDCG@{k}"])
    print_line(
        f"{result.users:,} users, last item hidden, ranked among all {result.catalog_items:,} items; "
        "± one standard error"
    )
    print_line(f"{result.skipped_users:,} users left out: they have fewer than 2 events")
    if result.unusable_rows:
        print_line(f"{result.unusable_rows:,} rows of the file could not be used")
    if result.repeat_users:
        print_line(f"{result.repeat_users:,} users' hidden item is one that they had before")
    print_line(
        f"unknown items: {result.unknown_targets:,} hidden ones are not in the catalog (counted as misses), "
        f"{result.unknown_history_items:,} of the histories are unknown to the model (skipped)"
    )
    if result.popular_answers:
        print_line(f"{result.popular_answers:,} users got popular items: the model knows nothing of their history")
