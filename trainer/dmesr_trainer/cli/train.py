"""`dmesr-cli train`: from a dataset and the server's vectors to a published model."""

from __future__ import annotations

from datetime import datetime
from json import JSONDecodeError, loads
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import dmesr
import typer
from dmesr.cli.console import (
    Json,
    as_json,
    connected,
    fail,
    print_json,
    print_line,
    print_table,
    progress,
    say,
    settings,
)

from dmesr_trainer.cli.dataset_options import DatasetOptions, with_dataset_options

if TYPE_CHECKING:
    from dmesr_trainer.config import TrainConfig
    from dmesr_trainer.datasets.base import Dataset
    from dmesr_trainer.sequences import Sequences
    from dmesr_trainer.sources import Sources
    from dmesr_trainer.training import EpochReport, TrainResult


@with_dataset_options
def train(
    ctx: typer.Context,
    dataset: Annotated[
        str, typer.Option(help="The interactions: sample, movielens, files and more by `datasets list`.")
    ] = "sample",
    catalog: Annotated[str | None, typer.Option(help="The catalog. Also DMESR_CATALOG.")] = None,
    server: Annotated[str | None, typer.Option(help="The server. Also DMESR_SERVER_ADDRESS.")] = None,
    recipe: Annotated[str, typer.Option(help="The embedding recipe: a name or an id.")] = "default",
    method: Annotated[str, typer.Option(help="dmesr, dmesr-paper, none or popularity.")] = "dmesr",
    backbone: Annotated[str, typer.Option(help="sasrec.")] = "sasrec",
    without: Annotated[
        list[str] | None,
        typer.Option(help="Leave a part out: alignment, cross-attention, original, routes. Repeatable."),
    ] = None,
    paper_settings: Annotated[
        bool,
        typer.Option(
            "--paper-settings",
            help="The paper's for this dataset (§4.1.3): width, batch, patience, τ. dmesr-paper has them anyway.",
        ),
    ] = False,
    epochs: Annotated[int | None, typer.Option(min=1, help="At most.")] = None,
    patience: Annotated[int | None, typer.Option(min=1, help="Epochs without a better validation NDCG.")] = None,
    seed: Annotated[int, typer.Option(help="Of the run. The negatives of the evaluation have their own.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PART.FIELD=VALUE", help="Any other setting of the run. Repeatable."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The run's folder; runs/DATASET-METHOD-TIME by default.", metavar="DIR")
    ] = None,
    publish: Annotated[str | None, typer.Option(help="Publish the model under this name.", metavar="NAME")] = None,
    promote: Annotated[
        str | None, typer.Option(help="Point this alias to it, for instance production.", metavar="ALIAS")
    ] = None,
    *,
    options: DatasetOptions,
    json: Json = False,
) -> None:
    """Train a model on your interactions, export it and publish it.

    The vectors of the items come from the server, at one pinned version. Ctrl-C ends the training and keeps the best
    epoch so far.

    [bold]Examples[/bold]

    $ dmesr-cli train --dataset movielens --data DIR --publish films --promote production

    $ dmesr-cli train --dataset sample --method none --epochs 20 --json

    $ dmesr-cli train --dataset sample --without cross-attention --set alignment.weight=0.1
    """
    from dmesr_trainer.config import METHODS_BY_ID
    from dmesr_trainer.export import export
    from dmesr_trainer.sequences import Sequences

    if promote and not publish:
        fail("--promote needs --publish NAME: only a published model can be promoted", code=2)
    chosen = settings(ctx)
    chosen.catalog, chosen.server = catalog or chosen.catalog, server or chosen.server
    from_paper = paper_settings or method == "dmesr-paper"

    def configured(*, mean_length: float | None = None) -> TrainConfig:
        return _config(
            method,
            backbone=backbone,
            without=without or [],
            change=change or [],
            paper=_paper_changes(dataset, mean_length) if from_paper else {},
            given={"seed": seed, "device": device, "optimiser__epochs": epochs, "optimiser__patience": patience},
        )

    try:
        config = configured()
    except ValueError as error:
        fail(str(error), code=2)
    try:
        opened = options.open(dataset)
        sequences = Sequences.from_interactions(opened.interactions())
        config = configured(mean_length=float(sequences.lengths_U.mean()))
        sources = None
        if method not in METHODS_BY_ID:
            with connected(ctx) as client:
                sources = _fetch(client, recipe=recipe, sequences=sequences)
        folder = output or Path("runs") / f"{opened.name}-{method}-{datetime.now().strftime('%Y%m%d-%H%M%S')}"
        result = _train(config, sequences=sequences, sources=sources, folder=folder)
    except ValueError as error:  # DatasetError among them: what was given does not fit
        fail(str(error))
    artefact = export(result, folder / "artefact", dataset=opened.name)
    say(f"the artefact is in {artefact}")
    model = None
    if publish:
        with connected(ctx) as client:
            model = client.models.publish(artefact, name=publish)
            if promote:
                model = client.models.promote(model.ref, alias=promote)
    if as_json(ctx):
        print_json(_report(result, dataset=opened, sequences=sequences, artefact=artefact, model=model))
    else:
        _print(result, dataset=opened, model=model)


def _paper_changes(dataset: str, mean_length: float | None) -> dict[str, Any]:
    from dmesr_trainer.datasets import paper_settings

    return paper_settings(dataset, mean_length=mean_length).changes()


def _config(
    method: str, *, backbone: str, without: list[str], change: list[str], paper: dict[str, Any], given: dict[str, Any]
) -> TrainConfig:
    from dmesr_trainer.config import TrainConfig

    config = TrainConfig.preset(method, backbone=backbone).changed(**paper).without(*without)  # type: ignore[arg-type]
    config = config.changed(**{name: value for name, value in given.items() if value is not None})
    for one in change:
        name, separator, text = one.partition("=")
        if not separator:
            raise ValueError(f"--set {one}: write PART.FIELD=VALUE, for instance optimiser.learning_rate=0.002")
        try:
            value = loads(text)
        except JSONDecodeError:
            value = text
        config = config.changed(**{name.strip().replace(".", "__"): tuple(value) if isinstance(value, list) else value})
    return config


def _fetch(client: dmesr.Client, *, recipe: str, sequences: Sequences) -> Sources:
    from dmesr_trainer.sources import fetch

    with progress("reading vectors"):
        sources = fetch(client, recipe=recipe, item_ids=sequences.item_ids)
    covered = sources.aligned(sequences.item_ids).coverage()
    told = ", ".join(f"{name} {count:,}" for name, count in covered.items())
    say(f"vectors of {sequences.n_items:,} items from recipe {sources.recipe_id} at version {sources.version}: {told}")
    return sources


def _train(config: TrainConfig, *, sequences: Sequences, sources: Sources | None, folder: Path) -> TrainResult:
    from dmesr_trainer.training import train as run

    say(
        f"{config.method} on {sequences.n_users:,} users, {sequences.n_items:,} items, "
        f"{len(sequences.events_E):,} interactions; run folder {folder}"
    )
    with progress(f"training {config.method}") as tell:
        state = {"epoch": 1, "note": ""}

        def on_step(step: int, steps: int) -> None:
            tell(step, total=steps, note=f"epoch {state['epoch']}{state['note']}")

        def on_epoch(report: EpochReport) -> None:
            say(_epoch_line(report))
            best = report.valid["sampled"] if report.is_best else None
            state["epoch"] = report.epoch + 1
            if best:
                state["note"] = ", best so far " + _figures(best)

        result = run(
            config=config, sequences=sequences, sources=sources, output=folder, on_epoch=on_epoch, on_step=on_step
        )
    for note in result.model.notes:
        say(f"note: {note}")
    if result.interrupted:
        say(f"interrupted: epoch {result.best_epoch}, the best so far, is kept")
    return result


def _epoch_line(report: EpochReport) -> str:
    losses = " ".join(f"{name} {value:.3f}" for name, value in report.losses.items())
    star = " *" if report.is_best else ""
    return (
        f"epoch {report.epoch}: loss {losses}; valid {_figures(report.valid['sampled'])} ({report.seconds:.1f} s){star}"
    )


def _figures(figures: dict[str, float]) -> str:
    return " ".join(f"{name.upper()} {value:.4f}" for name, value in figures.items())


def _report(
    result: TrainResult, *, dataset: Dataset, sequences: Sequences, artefact: Path, model: dmesr.Model | None
) -> dict[str, Any]:
    return {
        "method": result.config.method,
        "backbone": result.model.backbone_name,
        "dataset": {
            "name": dataset.name,
            "planted": dataset.planted,
            "users": sequences.n_users,
            "items": sequences.n_items,
            "interactions": len(sequences.events_E),
        },
        "metrics": result.metrics,
        "best_epoch": result.best_epoch,
        "epochs": len(result.history),
        "interrupted": result.interrupted,
        "seconds": round(result.seconds, 3),
        "output": str(result.output),
        "artefact": str(artefact),
        "model": model and {"ref": model.ref, "aliases": model.aliases, "items_adapted": model.items_adapted},
    }


def _print(result: TrainResult, *, dataset: Dataset, model: dmesr.Model | None) -> None:
    names = list(result.metrics["test"]["sampled"])
    headings = [*(name.upper() for name in names), *(f"full {name.upper()}" for name in names)]
    print_table(
        ["split", *headings],
        [
            [split, *(figures[kind][name] for kind in ("sampled", "full") for name in names)]
            for split, figures in result.metrics.items()
        ],
        right=headings,
    )
    if result.best_epoch:
        print_line(f"best epoch {result.best_epoch} of {len(result.history)}, {result.seconds:.0f} s")
    if dataset.planted:
        print_line("The tastes in this dataset are planted: it checks the wiring and is no evidence.")
    if model:
        aliases = f" ({', '.join(model.aliases)})" if model.aliases else ""
        print_line(f"published {model.ref}{aliases}: {model.items_adapted:,} items adapted")
