"""`dmesr-cli datasets`: which there are, how to get them, and what they amount to."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from dmesr.cli.console import Json, as_json, fail, print_json_array, print_line, print_table, progress, show

from dmesr_trainer.cli.dataset_options import DatasetOptions, with_dataset_options
from dmesr_trainer.cli.dataset_telling import print_statistics
from dmesr_trainer.datasets import DATASETS, DatasetError
from dmesr_trainer.datasets.base import HasPictureUrls, LeavesOut, PictureUrl
from dmesr_trainer.datasets.fetch import ARCHIVES, BY_HAND
from dmesr_trainer.datasets.fetch import fetch as fetch_archive
from dmesr_trainer.datasets.fetch_pictures import fetch_pictures
from dmesr_trainer.datasets.paper import PAPER
from dmesr_trainer.datasets.statistics import statistics

app = typer.Typer(help="List, fetch and describe datasets.", no_args_is_help=True, rich_markup_mode="rich")


@app.command("list", epilog="[bold]Examples[/bold]\n\ndmesr-cli datasets list")
def list_datasets(ctx: typer.Context, json: Json = False) -> None:
    """List the datasets that the trainer reads."""
    rows = [
        {"name": name, "about": about, "fetch": name in ARCHIVES, "by_hand": BY_HAND.get(name)}
        for name, about in DATASETS.items()
    ]

    def people() -> None:
        print_table(["name", "can be fetched", "about"], [[row["name"], row["fetch"], row["about"]] for row in rows])
        print_line("What cannot be fetched: `dmesr-cli datasets fetch NAME` says how to get it.")

    show(ctx, rows, people)


@app.command("fetch", epilog="[bold]Examples[/bold]\n\ndmesr-cli datasets fetch movielens --into data")
def fetch(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="movielens; of the others it says how to get them.")],
    into: Annotated[Path, typer.Option(help="The folder to unpack in.")] = Path("data"),
    url: Annotated[str | None, typer.Option(help="A mirror of the archive.", envvar="DMESR_DATASET_URL")] = None,
    json: Json = False,
) -> None:
    """Download a dataset's official archive: resumable, checked by the publisher's checksum."""
    try:
        with progress(f"fetching {name}") as tell:
            folder = fetch_archive(name, into=into, url=url, on_bytes=lambda done, total: tell(done, total=total))
    except DatasetError as error:
        fail(str(error))
    licence = ARCHIVES[name].licence
    show(
        ctx,
        {"name": name, "folder": str(folder), "licence": licence},
        lambda: print_line(f"{name} is in {folder}. Licence: {licence}."),
    )


@app.command(
    "stats",
    epilog="[bold]Examples[/bold]\n\ndmesr-cli datasets stats movielens --data data\n\n"
    "dmesr-cli datasets stats files --data shop --id-column sku --time-column bought_at\n\n"
    "dmesr-cli datasets stats amazon --data amazon-2023 --category Books --since 2022-01-01",
)
@with_dataset_options
def stats(
    ctx: typer.Context,
    name: Annotated[str | None, typer.Argument(help=f"{', '.join(DATASETS)}.", show_default=False)] = None,
    dataset: Annotated[str | None, typer.Option(help="The same, as train and demo take it.")] = None,
    *,
    options: DatasetOptions,
    json: Json = False,
) -> None:
    """Count a dataset, beside the paper's Table 1 where it stands there."""
    chosen = _one_name(name, dataset)
    try:
        opened = options.open(chosen)
        counted = statistics(opened)
    except DatasetError as error:
        fail(str(error))
    paper = PAPER.get(chosen)

    def people() -> None:
        print_statistics(counted, paper=paper)
        for problem in opened.problems[:3] if isinstance(opened, LeavesOut) else ():
            print_line(f"  {problem.message}")
        if opened.planted:
            print_line("The tastes are planted: results on it check the wiring and are no evidence.")

    show(ctx, {"dataset": chosen, "planted": opened.planted, "statistics": counted, "paper": paper}, people)


@app.command(
    "pictures",
    epilog="[bold]Examples[/bold]\n\ndmesr-cli datasets pictures amazon-games --data DIR > urls.tsv\n\n"
    "dmesr-cli datasets pictures amazon-games --data DIR --into DIR/pictures",
)
@with_dataset_options
def pictures(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="amazon-games or amazon: they know addresses alone.")],
    into: Annotated[
        Path | None, typer.Option(help="Download them to this folder, named by product id.", metavar="DIR")
    ] = None,
    *,
    options: DatasetOptions,
    json: Json = False,
) -> None:
    """Tell where the pictures of a dataset's items are; download them with --into.

    The addresses are the publisher's; what they answer is the shop's, under its own terms. A download may be repeated:
    what is there is not fetched again.
    """
    try:
        opened = options.open(name)
        if not isinstance(opened, HasPictureUrls):
            fail(f"the dataset {name} has no addresses of pictures; those that it has are in files")
        if into is None:
            _print_urls(opened.picture_urls(), as_lines=not as_json(ctx))
            return
        with progress(f"fetching pictures of {name}") as tell:
            done = fetch_pictures(opened.picture_urls(), into=into, on_done=tell)
    except DatasetError as error:
        fail(str(error))

    def people() -> None:
        print_line(
            f"{done.fetched:,} pictures fetched to {into}, {done.there:,} were there, {len(done.failed):,} failed."
        )
        for one in done.failed[:3]:
            print_line(f"  {one.item_id}: {one.url}: {one.why}")

    show(ctx, {"folder": str(into), **dataclasses.asdict(done)}, people)


def _print_urls(urls: Iterator[PictureUrl], *, as_lines: bool) -> None:
    if as_lines:
        for one in urls:
            print_line(f"{one.item_id}\t{one.url}")
    else:
        print_json_array(urls)


def _one_name(name: str | None, dataset: str | None) -> str:
    names = {one for one in (name, dataset) if one}
    if len(names) != 1:
        fail(f"name one dataset, of {', '.join(DATASETS)}: dmesr-cli datasets stats NAME", code=2)
    return names.pop()
