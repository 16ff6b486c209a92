"""The demonstration from start to end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import dmesr
from dmesr.cli.console import progress, say

from dmesr_trainer.config import TrainConfig
from dmesr_trainer.datasets.base import Dataset
from dmesr_trainer.demonstration import job, newcomer, telling
from dmesr_trainer.sequences import Sequences
from dmesr_trainer.sources import Sources, fetch
from dmesr_trainer.training import EpochReport, TrainResult, train

# The same for every method: enough to see the difference in minutes on two cores, not to publish.
# Less dropout and no falling rate: in so few steps the presets' would leave item ids alone far from where they end.
_SMALL = {
    "dim": 64,
    "optimiser__batch_size": 64,
    "backbone__dropout": 0.2,
    "optimiser__learning_rate": 1e-3,
    "optimiser__decay": "none",
    "optimiser__epochs": 40,
    "optimiser__patience": 8,
}
_LARGE = _SMALL | {"loss__candidates": 1024, "optimiser__epochs": 10, "optimiser__patience": 3}
_LARGE_ITEMS = 2_000
_DEPTHS = (10, 100, 1_000)  # how far down the lists a new item is looked for, one after the other


def run(
    root: dmesr.Client,
    dataset: Dataset,
    *,
    sequences: Sequences,
    folder: Path,
    seed: int,
    epochs: int | None,
    speak: bool,
) -> dict[str, Any]:
    """Imports, enriches, trains, publishes and recommends, and tells about it.

    Args:
        root: A client of the server.
        dataset: The catalogue.
        sequences: Its users' histories.
        folder: Where the runs and the artefact go.
        seed: Of the training runs.
        epochs: At most; a budget by the size of the catalogue when None.
        speak: Whether to print results for people; steps and progress go to stderr in any case.

    Returns:
        All of it, as JSON holds it.
    """
    steps = telling.Steps()
    info = root.admin.server_info()
    client = job.prepare_catalog(root, dataset)

    with progress("importing items") as tell:
        catalogue = job.import_items(client, dataset, progress=tell)
    steps.done(f"imported {catalogue.items:,} items, {catalogue.with_picture:,} with a picture")
    if speak:
        telling.print_catalogue(catalogue)

    with progress("describing and encoding") as tell:
        enrichment = client.enrichment.start().wait(progress=lambda state: _tell_routes(tell, state))
    steps.done("described and encoded")
    covered, described = job.coverage(client), job.described_item(client)
    if speak:
        telling.print_coverage(covered, enrichment)
        if described:
            telling.print_descriptions(*described)

    results = _train(client, sequences, folder=folder, seed=seed, epochs=epochs)
    steps.done(f"trained {', '.join(results)} on {sequences.n_users:,} users")
    if speak:
        telling.print_metrics(results, sequences)

    model = job.publish(client, results["dmesr"], folder=folder / "artefact", dataset=dataset)
    steps.done(f"published {model.ref}: {model.items_adapted:,} items adapted, alias production")
    told = job.tell(client.items.list())
    lists = job.recommend(client, sequences, users=job.users_to_show(sequences), told=told)
    new_item = _new_item(client, dataset, sequences, told)
    if speak:
        for one in lists:
            telling.print_recommendations(one)
        telling.print_new_item(new_item, items=len(told), never_met=len(told.keys() - set(sequences.item_ids)))
        telling.print_caveats(planted=dataset.planted, info=info)
    steps.done("done")
    return {
        "dataset": {
            "name": dataset.name,
            "planted": dataset.planted,
            "users": sequences.n_users,
            "interactions": int(sequences.lengths_U.sum()),
        },
        "catalogue": {"items": catalogue.items, "with_picture": catalogue.with_picture, "upsert": catalogue.summary},
        "describer": {"name": info.describer, "is_mllm": info.describer_is_mllm},
        "enrichment": {"job_id": enrichment.job_id, "routes": enrichment.routes},
        "coverage": covered,
        "descriptions": {"item_id": described[0].item_id, "texts": described[1]} if described else None,
        "metrics": {method: result.metrics["test"] for method, result in results.items()},
        "model": {"ref": model.ref, "items_adapted": model.items_adapted},
        "recommendations": lists,
        "new_item": new_item,
        "seconds": round(steps.seconds, 1),
    }


def _tell_routes(tell: Any, state: dmesr.Job) -> None:
    routes = ", ".join(
        f"{route.route} {route.encoded + route.reused + route.failed:,}/{route.applicable:,}" for route in state.routes
    )
    tell(state.items_done, total=state.items_total or None, note=routes)


def _train(
    client: dmesr.Client, sequences: Sequences, *, folder: Path, seed: int, epochs: int | None
) -> dict[str, TrainResult]:
    sources = fetch(client, item_ids=sequences.item_ids)
    budget: dict[str, Any] = dict(_LARGE if sequences.n_items > _LARGE_ITEMS else _SMALL)
    # A small catalogue of one's own may hold fewer unseen items than the protocol draws.
    fewest_unseen = sequences.n_items - int(sequences.lengths_U.max())
    budget |= {"evaluation__negatives": max(1, min(100, fewest_unseen))}
    if epochs is not None:
        budget |= {"optimiser__epochs": epochs}
    return {
        method: _train_one(
            TrainConfig.preset(method, seed=seed, **budget), sequences=sequences, sources=sources, folder=folder
        )
        for method in job.METHODS
    }


def _train_one(config: TrainConfig, *, sequences: Sequences, sources: Sources, folder: Path) -> TrainResult:
    with progress(f"training {config.method}") as tell:

        def told(epoch: EpochReport) -> None:
            figures = ", ".join(f"{name} {value:.3f}" for name, value in epoch.valid["sampled"].items())
            tell(epoch.epoch, total=epoch.epochs, note=figures)

        output = folder / "runs" / config.method
        result = train(config=config, sequences=sequences, sources=sources, output=output, on_epoch=told)
    if result.interrupted:
        raise KeyboardInterrupt  # the run kept its best epoch, but a demonstration is not worth finishing then
    return result


def _new_item(
    client: dmesr.Client, dataset: Dataset, sequences: Sequences, told: dict[str, job.Told]
) -> newcomer.NewItem | None:
    """The best placed item that nobody took: of the catalogue itself, or of those put in now."""
    later = newcomer.LATER_ITEMS.get(dataset.name, ())
    if not later:
        return _found(client, sequences, told, depths=_DEPTHS)
    if found := _found(client, sequences, told, depths=_DEPTHS[:1]):
        return found
    say(f"putting in {', '.join(item.title for item in later)}; nothing else is described or encoded, nothing trained")
    with newcomer.inserted(client, later, history=sequences.item_ids[:1]):
        found = _found(client, sequences, told | job.tell(later), depths=_DEPTHS)
    return found and replace(found, inserted=found.item.item_id in {item.item_id for item in later})


def _found(
    client: dmesr.Client, sequences: Sequences, told: dict[str, job.Told], *, depths: tuple[int, ...]
) -> newcomer.NewItem | None:
    for depth in depths:
        if found := newcomer.find(client, sequences, told=told, depth=depth):
            return found
    return None
