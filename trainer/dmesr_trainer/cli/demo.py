"""`dmesr-cli demo`: the whole main job on one machine, told as it goes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import dmesr
import typer
from dmesr.cli.console import Json, as_json, fail, output, print_json, print_line, print_table, progress, say
from rich.panel import Panel

from dmesr_trainer.config import TrainConfig
from dmesr_trainer.datasets import load
from dmesr_trainer.datasets.base import Dataset, DatasetError
from dmesr_trainer.demonstration import job
from dmesr_trainer.demonstration.server import ServerStartError, running_server
from dmesr_trainer.sequences import Sequences
from dmesr_trainer.sources import Sources, fetch
from dmesr_trainer.training import EpochReport, TrainResult, train

# The same for every method: enough to see the difference in minutes on two cores, not to publish.
_BUDGETS: dict[str, dict[str, Any]] = {
    "sample": {"dim": 64, "optimiser__batch_size": 64, "optimiser__epochs": 40, "optimiser__patience": 8},
    "movielens": {
        "dim": 64,
        "loss__candidates": 1024,
        "optimiser__batch_size": 64,
        "optimiser__epochs": 10,
        "optimiser__patience": 3,
    },
}
_PLANTED = "The sample is planted: its readers' tastes were made up. It checks the wiring and is no evidence."
_NO_MLLM = (
    "The describer `palette` is no multimodal LLM: it puts attributes in a sentence and reads colours, contrast and "
    "layout from the pixels."
)


def demo(
    ctx: typer.Context,
    dataset: Annotated[str, typer.Option(help="sample (made on the spot) or movielens.")] = "sample",
    data: Annotated[Path | None, typer.Option(help="The dataset's folder; movielens needs it.")] = None,
    posters: Annotated[Path | None, typer.Option(help="Posters named ttNNNNNNN.jpg by IMDb id (movielens).")] = None,
    attributes: Annotated[Path | None, typer.Option(help="Further attributes as JSON lines (movielens).")] = None,
    folder: Annotated[Path, typer.Option(help="Where the store, the runs and the log go.")] = Path("demo-data"),
    seed: Annotated[int, typer.Option(help="Of the training runs.")] = 0,
    epochs: Annotated[int | None, typer.Option(min=1, help="At most; for every method.")] = None,
    json: Json = False,
) -> None:
    """Run the whole main job once: import, enrich, train, publish, recommend.

    A second run with the same folder describes and encodes nothing again.
    """
    try:
        chosen = load(dataset, data=data, posters=posters, attributes=attributes)
        if chosen.name not in _BUDGETS:
            fail(f"there is no demonstration on {chosen.name}; choose one of {', '.join(_BUDGETS)}", code=2)
        with running_server(folder / chosen.name) as address, dmesr.connect(address) as client:
            report = _run(ctx, client, chosen, folder=folder / chosen.name, seed=seed, epochs=epochs)
    except (DatasetError, ServerStartError) as error:
        fail(str(error))
    if as_json(ctx):
        print_json(report)


def _run(
    ctx: typer.Context, root: dmesr.Client, dataset: Dataset, *, folder: Path, seed: int, epochs: int | None
) -> dict[str, Any]:
    started = time.perf_counter()
    speak = not as_json(ctx)
    report: dict[str, Any] = {"dataset": {"name": dataset.name, "planted": dataset.planted}}

    client = job.prepare_catalog(root, dataset)
    with progress("importing items") as tell:
        catalogue = job.import_items(client, dataset, progress=tell)
    report["catalogue"] = {"items": catalogue.items, "with_picture": catalogue.with_picture}
    _say(f"1. imported {catalogue.items:,} items, {catalogue.with_picture:,} with a picture", started)
    if speak:
        summary = catalogue.summary
        print_line(
            f"{catalogue.items:,} items, {catalogue.with_picture:,} with pictures "
            f"({summary.inserted:,} inserted, {summary.updated:,} updated, {summary.unchanged:,} unchanged)"
        )

    with progress("describing and encoding") as tell:
        enrichment = client.enrichment.start().wait(
            progress=lambda state: tell(state.items_done, total=state.items_total or None)
        )
    _say("2. described and encoded", started)
    report["enrichment"] = {"job_id": enrichment.job_id, "routes": enrichment.routes}
    report["coverage"] = job.coverage(client)
    item, texts = job.described_item(client)
    report["descriptions"] = {"item_id": item.item_id, "texts": texts}
    if speak:
        _print_coverage(report["coverage"], enrichment)
        _print_descriptions(item, texts)

    sequences = Sequences.from_interactions(dataset.interactions())
    report["dataset"] |= {"users": sequences.n_users, "interactions": int(sequences.lengths_U.sum())}
    sources = fetch(client, item_ids=sequences.item_ids)
    results: dict[str, TrainResult] = {}
    budget = _BUDGETS[dataset.name] | ({"optimiser__epochs": epochs} if epochs else {})
    for method in job.METHODS:
        results[method] = _train(
            method, sequences=sequences, sources=sources, output=folder / "runs" / method, seed=seed, budget=budget
        )
    _say(f"3. trained {', '.join(job.METHODS)} on {sequences.n_users:,} users", started)
    report["metrics"] = {method: result.metrics["test"]["sampled"] for method, result in results.items()}
    report["metrics_full"] = {method: result.metrics["test"]["full"] for method, result in results.items()}
    if speak:
        _print_metrics(results, sequences)

    model = job.publish(client, results["dmesr"], folder=folder / "artefact", dataset=dataset)
    _say(f"4. published {model.ref}: {model.items_adapted:,} items adapted, alias production", started)
    report["model"] = {"ref": model.ref, "items_adapted": model.items_adapted}
    titles = {one.item_id: one.title for one in client.items.list()}
    report["recommendations"] = job.recommend(client, sequences, users=job.users_to_show(sequences), titles=titles)
    report["new_item"] = job.find_new_item(client, sequences, titles=titles)
    report["seconds"] = round(time.perf_counter() - started, 1)
    if speak:
        for one in report["recommendations"]:
            _print_recommendations(one)
        _print_new_item(report["new_item"], never_seen=catalogue.items - int((sequences.train_counts_N > 0).sum()))
        print_line()
        if dataset.planted:
            print_line(_PLANTED)
        print_line(_NO_MLLM)
    _say("5. done", started)
    return report


def _train(
    method: str, *, sequences: Sequences, sources: Sources, output: Path, seed: int, budget: dict[str, Any]
) -> TrainResult:
    config = TrainConfig.preset(method, seed=seed, **budget)
    with progress(f"training {method}") as tell:

        def told(epoch: EpochReport) -> None:
            figures = ", ".join(f"{name} {value:.3f}" for name, value in epoch.valid["sampled"].items())
            tell(epoch.epoch, total=epoch.epochs, note=figures)

        result = train(config=config, sequences=sequences, sources=sources, output=output, on_epoch=told)
    if result.interrupted:
        raise KeyboardInterrupt  # the run kept its best epoch, but a demonstration is not worth finishing then
    return result


def _say(line: str, started: float) -> None:
    say(f"{line} ({time.perf_counter() - started:.0f} s)")


def _heading(text: str) -> None:
    print_line()
    output.print(text, style="bold", soft_wrap=True)


def _print_coverage(rows: tuple[job.Coverage, ...], enrichment: dmesr.Job) -> None:
    made = {route.route: route for route in enrichment.routes}
    _heading("Coverage of each route")
    print_table(
        ["source", "items", "share", "described now", "encoded now", "failed"],
        [
            [row.source, row.items, f"{row.share:.1%}"]
            + (
                [made[row.source].described, made[row.source].encoded, made[row.source].failed]
                if row.source in made
                else ["-"] * 3
            )
            for row in rows
        ],
        right=["items", "share", "described now", "encoded now", "failed"],
    )


def _print_descriptions(item: dmesr.Item, texts: dict[str, str]) -> None:
    _heading(f"What the routes say of {item.title}")
    for route, text in texts.items():
        output.print(Panel(text, title=route, title_align="left"))


def _print_metrics(results: dict[str, TrainResult], sequences: Sequences) -> None:
    users = len(sequences.held_out_users_H)
    _heading(f"Held-out interactions of {users:,} users: against 100 unseen items, and against all items")
    names = list(results["dmesr"].metrics["test"]["sampled"])
    print_table(
        ["method", *(name.upper() for name in names), *(f"full {name.upper()}" for name in names), "epochs", "seconds"],
        [
            [method]
            + [result.metrics["test"][kind][name] for kind in ("sampled", "full") for name in names]
            + [len(result.history), f"{result.seconds:.0f}"]
            for method, result in results.items()
        ],
        right=[*(name.upper() for name in names), *(f"full {name.upper()}" for name in names), "epochs", "seconds"],
    )


def _print_recommendations(shown: job.UserList) -> None:
    _heading(f"For user {shown.user_id}, who last took: {' · '.join(shown.history)}")
    views = list(shown.items[0].shares) if shown.items else []
    views = [view for view in ("coarse", "fine", "bias") if view in views]
    print_table(
        ["#", "title", "score", *views, ""],
        [
            [str(rank), one.title, f"{one.score:.2f}"]
            + [f"{one.shares[view]:+.2f}" for view in views]
            + ["taken next" if one.held_out else "new" if one.is_new else ""]
            for rank, one in enumerate(shown.items, start=1)
        ],
        right=["#", "score", *views],
    )


def _print_new_item(found: job.NewItem | None, *, never_seen: int) -> None:
    _heading("A new item, recommended without retraining")
    if found is None:
        print_line(f"None of the {never_seen:,} items without a training event came into anybody's first hundred.")
        return
    print_line(
        f"{found.title} ({found.item_id}) has no event in training; it stands at place {found.rank} for user "
        f"{found.user_id}, who last took: {' · '.join(found.history)}"
    )
