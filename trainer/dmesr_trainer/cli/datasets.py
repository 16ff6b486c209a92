"""`dmesr-cli datasets`: which there are, how to get them, and what they amount to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from dmesr.cli.console import Json, fail, print_line, print_table, progress, show
from dmesr.readers import ColumnMapping

from dmesr_trainer.datasets import DATASETS, DatasetError, InteractionColumns, load
from dmesr_trainer.datasets.fetch import ARCHIVES
from dmesr_trainer.datasets.fetch import fetch as fetch_archive
from dmesr_trainer.datasets.statistics import PAPER, statistics

app = typer.Typer(help="List, fetch and describe datasets.", no_args_is_help=True, rich_markup_mode="rich")

DataOption = Annotated[Path | None, typer.Option(help="The folder of the dataset's files.")]
PostersOption = Annotated[Path | None, typer.Option(help="Posters named ttNNNNNNN.jpg by IMDb id (movielens).")]
AttributesOption = Annotated[Path | None, typer.Option(help="Further attributes as JSON lines (movielens).")]
UserColumn = Annotated[
    str | None, typer.Option(help="Interactions: the user (files). The usual names are found by themselves.")
]
ItemColumn = Annotated[str | None, typer.Option(help="Interactions: the item (files).")]
TimeColumn = Annotated[
    str | None, typer.Option(help="Interactions: the time; empty where the order is the file's (files).")
]
IdColumn = Annotated[str, typer.Option(help="Items: the id (files).")]
PictureColumn = Annotated[
    str | None, typer.Option(help="Items: the picture, a path from the file's folder or a URI (files).")
]
ListSeparator = Annotated[str | None, typer.Option(help="Items: what cuts text into several values (files).")]


@app.command("list", epilog="[bold]Examples[/bold]\n\ndmesr-cli datasets list")
def list_datasets(ctx: typer.Context, json: Json = False) -> None:
    """List the datasets that the trainer reads."""
    rows = [{"name": name, "about": about, "fetch": name in ARCHIVES} for name, about in DATASETS.items()]
    show(
        ctx,
        rows,
        lambda: print_table(["name", "can be fetched", "about"], [[r["name"], r["fetch"], r["about"]] for r in rows]),
    )


@app.command("fetch", epilog="[bold]Examples[/bold]\n\ndmesr-cli datasets fetch movielens --into data")
def fetch(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="movielens")],
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
    "dmesr-cli datasets stats files --data shop --id-column sku --time-column bought_at",
)
def stats(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="sample, movielens or files")],
    data: DataOption = None,
    posters: PostersOption = None,
    attributes: AttributesOption = None,
    user_column: UserColumn = None,
    item_column: ItemColumn = None,
    time_column: TimeColumn = None,
    id_column: IdColumn = "item_id",
    picture_column: PictureColumn = None,
    list_separator: ListSeparator = None,
    json: Json = False,
) -> None:
    """Count a dataset, beside the paper's Table 1 where it stands there."""
    try:
        dataset = load(
            name,
            data=data,
            posters=posters,
            attributes=attributes,
            items=ColumnMapping(item_id=id_column, picture=picture_column, list_separator=list_separator),
            interactions=InteractionColumns(user=user_column, item=item_column, time=time_column),
        )
        counted = statistics(dataset)
    except DatasetError as error:
        fail(str(error))
    paper = PAPER.get(name)

    def people() -> None:
        rows = [
            ["users", counted.users, paper and paper.users],
            ["items with interactions", counted.items, paper and paper.items],
            ["interactions", counted.interactions, paper and paper.interactions],
            ["mean length", f"{counted.mean_length:.2f}", paper and f"{paper.mean_length:.2f}"],
            ["sparsity", f"{counted.sparsity:.2%}", paper and f"{paper.sparsity:.2%}"],
            ["items in the catalogue", counted.catalogue, None],
            ["with a picture", f"{counted.with_picture:,} ({counted.share_with_picture:.1%})", None],
        ]
        columns = ["", "here", "paper's Table 1"] if paper else ["", "here"]
        print_table(columns, [row[: len(columns)] for row in rows], right=columns[1:])
        if paper:
            print_line(paper.difference)
        if counted.rejected or counted.rejected_interactions:
            print_line(
                f"Left out, as they cannot be used: {counted.rejected:,} rows of the items, "
                f"{counted.rejected_interactions:,} of the interactions."
            )
            for problem in getattr(dataset, "problems", ())[:3]:
                print_line(f"  {problem.message}")
        if dataset.planted:
            print_line("The tastes are planted: results on it check the wiring and are no evidence.")

    show(ctx, {"dataset": name, "planted": dataset.planted, "statistics": counted, "paper": paper}, people)
