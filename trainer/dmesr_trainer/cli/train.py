"""`dmesr-cli train`: from a dataset and the server's vectors to a published model."""

from __future__ import annotations

from dataclasses import dataclass
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
from dmesr_trainer.cli.run_settings import DataSettings, as_changes, read_config, read_file

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
    config_file: Annotated[
        Path | None, typer.Option("--config", help="Settings as TOML; flags go over them.", metavar="FILE")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="dmesr (the default), dmesr-paper, none, none-flag, xreflect, cpmm, qarm, popularity or ease."
        ),
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="sasrec (the default), gru4rec or bert4rec.")] = None,
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
    seed: Annotated[
        int | None, typer.Option(help="Of the run, 0 by default. The negatives of the evaluation have their own.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto (the default), cpu or cuda.")] = None,
    devices: Annotated[
        int | None, typer.Option(min=1, help="Processes that share every batch, one a GPU or, on a CPU, a core.")
    ] = None,
    bf16: Annotated[bool, typer.Option("--bf16", help="Mixed precision: matrix products in bfloat16.")] = False,
    leaky_cross_attention: Annotated[
        bool,
        typer.Option(
            "--leaky-cross-attention",
            help="For demonstration only: no causal mask in the cross-attention, so that each position sees its label.",
        ),
    ] = False,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PART.FIELD=VALUE", help="Any other setting of the run. Repeatable."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="The run's folder; runs/DATASET-METHOD-TIME by default. If it holds a run of the same settings, that "
            "goes on.",
            metavar="DIR",
        ),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the run in this folder, with its own settings.", metavar="DIR")
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

    $ dmesr-cli train --config films.toml --backbone bert4rec --output runs/films

    $ dmesr-cli train --resume runs/films
    """
    from dmesr_trainer.config import METHODS_BY_ID
    from dmesr_trainer.export import export
    from dmesr_trainer.sequences import Sequences

    if promote and not publish:
        fail("--promote needs --publish NAME: only a published model can be promoted", code=2)
    file: dict[str, Any]
    try:
        if resume:
            _check_resumed(ctx)
            data, file, output = DataSettings.read(resume), {}, resume
        else:
            data, file = read_file(config_file) if config_file else (DataSettings(), {})
            flags = {"dataset": dataset, "catalog": catalog, "recipe": recipe, **vars(options)}
            data = data.changed({name: value for name, value in flags.items() if _given(ctx, name)})
        method = method or file.get("method", "dmesr")
        plan = _Plan(
            method=str(method),
            backbone=backbone,
            file={name: value for name, value in file.items() if name != "method"},
            without=without or [],
            change=change or [],
            dataset=data.dataset,
            from_paper=paper_settings or method == "dmesr-paper",
            given={
                "seed": seed,
                "device": device,
                "devices": devices,
                "precision": "bf16-mixed" if bf16 else None,
                "fusion__leaky": leaky_cross_attention or None,
                "optimiser__epochs": epochs,
                "optimiser__patience": patience,
            },
        )
        config = _resumed(resume, plan) if resume else plan.config()
    except ValueError as error:
        fail(str(error), code=2)
    chosen = settings(ctx)
    chosen.catalog, chosen.server = data.catalog or chosen.catalog, server or chosen.server
    if config.fusion.leaky:
        say("the cross-attention leaks: positions see their own labels, so the training loss means nothing")
    try:
        opened = data.options.open(data.dataset)
        sequences = Sequences.from_interactions(opened.interactions())
        if not resume:
            config = plan.config(mean_length=float(sequences.lengths_U.mean()))
        sources = None
        if config.method not in METHODS_BY_ID:
            with connected(ctx) as client:
                sources = _fetch(client, recipe=data.recipe, sequences=sequences)
        folder = output or Path("runs") / f"{opened.name}-{config.method}-{datetime.now().strftime('%Y%m%d-%H%M%S')}"
        if not (folder / "config.json").exists():  # else it holds a run, which must be this one
            data.write(folder)
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


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """Where a run's settings come from; each goes over those before it: preset, paper, ablations, file, flags."""

    method: str
    backbone: str | None
    file: dict[str, Any]
    without: list[str]
    change: list[str]
    dataset: str
    from_paper: bool
    given: dict[str, Any]

    def config(self, *, mean_length: float | None = None) -> TrainConfig:
        """The settings.

        Args:
            mean_length: Of the histories, once they are known: the paper's settings depend on it.

        Raises:
            ValueError: A setting is unknown or does not fit.
        """
        from dmesr_trainer.config import TrainConfig

        section = self.file.get("backbone", {})
        named = section.get("name", "sasrec") if isinstance(section, dict) else "sasrec"
        config = TrainConfig.preset(self.method, backbone=self.backbone or str(named))
        if self.from_paper:
            from dmesr_trainer.datasets import paper_settings

            config = config.changed(**paper_settings(self.dataset, mean_length=mean_length).changes())
        config = config.without(*self.without)  # type: ignore[arg-type]
        config = config.changed(**as_changes(self.file))
        if self.backbone:
            config = config.changed(backbone__name=self.backbone)
        return self.over(config)

    def over(self, config: TrainConfig) -> TrainConfig:
        """These settings with the flags over them."""
        config = config.changed(**{name: value for name, value in self.given.items() if value is not None})
        for one in self.change:
            name, separator, text = one.partition("=")
            if not separator:
                raise ValueError(f"--set {one}: write PART.FIELD=VALUE, for instance optimiser.learning_rate=0.002")
            try:
                value = loads(text)
            except JSONDecodeError:
                value = text
            config = config.changed(**{name.strip().replace(".", "__"): value})
        return config


# What may be said to a run that goes on: how long it is, where it is trained, and what becomes of it.
_OF_RESUMED = {"resume", "epochs", "patience", "device", "server", "publish", "promote", "json", "ctx"}


def _given(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _check_resumed(ctx: typer.Context) -> None:
    wrong = [name for name in ctx.params if name not in _OF_RESUMED and _given(ctx, name)]
    if wrong:
        flag = "config" if wrong[0] == "config_file" else "set" if wrong[0] == "change" else wrong[0].replace("_", "-")
        raise ValueError(f"--resume goes on with the run's own settings and data; leave out --{flag}")


def _resumed(folder: Path, plan: _Plan) -> TrainConfig:
    return plan.over(read_config(folder))


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
        state: dict[str, Any] = {"epoch": 1, "note": "", "left": ""}
        timed: list[float] = []

        def on_step(step: int, steps: int) -> None:
            tell(step, total=steps, note=f"epoch {state['epoch']}{state['note']}{state['left']}")

        def on_epoch(report: EpochReport) -> None:
            timed.append(report.seconds)
            left = _left(report, patience=config.optimiser.patience, seconds=sum(timed) / len(timed))
            say(_epoch_line(report) + left)
            best = report.valid["sampled"] if report.is_best else None
            state["epoch"], state["left"] = report.epoch + 1, left
            if best:
                state["note"] = ", best so far " + _figures(best)

        result = run(
            config=config,
            sequences=sequences,
            sources=sources,
            output=folder,
            resume=True,
            on_epoch=on_epoch,
            on_step=on_step,
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


def _left(report: EpochReport, *, patience: int, seconds: float) -> str:
    """How long it takes still: to the last epoch, and to the end if no epoch is better than the best."""
    most = report.epochs - report.epoch
    if not most:
        return ""
    least = min(most, report.best_epoch + patience - report.epoch)
    return f"; {_clock(least * seconds)} to {_clock(most * seconds)} left"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


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
