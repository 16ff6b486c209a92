"""`dmesr-cli items`: bring in a catalogue's items, look at them, delete them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from enum import StrEnum
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import (
    as_json,
    confirm,
    connected,
    fail,
    print_json_array,
    print_line,
    print_table,
    progress,
    say,
    shortened,
    show,
)
from .options import Yes, command, group
from .rejects import check_rejects_file, report_rejects

if TYPE_CHECKING:
    import dmesr
    from dmesr.readers import Format

app = group(
    "items",
    "Import, list, show and delete items.",
    examples=[
        "dmesr-cli items import films.csv --id movieId --picture poster --picture-root posters/",
        "dmesr-cli items list",
    ],
)

ItemIds = Annotated[list[str], typer.Argument(help="The items' ids.", metavar="ITEM_ID")]


class FileFormat(StrEnum):
    """A format of files that hold items."""

    CSV = "csv"
    TSV = "tsv"
    PARQUET = "parquet"
    JSONL = "jsonl"


@command(
    app,
    "import",
    examples=[
        "dmesr-cli items import films.csv --id movieId",
        "dmesr-cli items import films.csv --id movieId --attribute title --attribute genres --split '|'",
        "dmesr-cli items import shop.parquet --id sku --attribute name=product --picture photo --picture-root img/",
        "dmesr-cli items import part-*.jsonl --keep-pictures --rejects rejected.jsonl",
        "dmesr-cli items import --dataset movielens --data downloads/",
    ],
)
def import_(
    ctx: typer.Context,
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="CSV, TSV, Parquet or JSONL.", exists=True, dir_okay=False, metavar="FILE"),
    ] = None,
    id: Annotated[str, typer.Option("--id", metavar="COLUMN", help="The column with item ids.")] = "item_id",
    attribute: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[=COLUMN]", help="An attribute and its column; repeat it. All columns if none."),
    ] = None,
    picture: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="The column with picture files, URIs or bytes; 'picture' by itself, where attributes are not named.",
        ),
    ] = None,
    picture_root: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="The folder below which picture files lie; that of the file by default.", exists=True
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What separates several values in one cell, for instance '|'.")
    ] = None,
    keep_pictures: Annotated[
        bool, typer.Option("--keep-pictures", help="An item without a picture here keeps the one it has.")
    ] = False,
    format: Annotated[FileFormat | None, typer.Option(help="The files' format; by their names if not given.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Instead of files: a dataset of the trainer extra.")] = None,
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="That dataset's folder.", exists=True)] = None,
    rejects: Annotated[Path | None, typer.Option(metavar="FILE", help="Write rejected rows here, as JSONL.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 when any row is rejected.")] = False,
) -> None:
    """Insert or replace items, streaming, and count what was inserted, updated, unchanged and rejected.

    A rejected row costs only itself. The exit status is 0 as long as any row was taken.
    """
    from dmesr import KEEP_PICTURE, Item
    from dmesr.readers import ColumnMapping, read_items

    if bool(files) == bool(dataset):
        raise typer.BadParameter("name files, or a dataset by --dataset, and not both", param_hint="FILE")
    check_rejects_file(rejects)
    rows: Iterator[dmesr.Item | dmesr.RejectedRow]
    domain = ""  # what an item is; only a dataset knows
    if dataset:
        found = _dataset(dataset, data)
        domain, rows = found.domain, found.items()
    else:
        mapping = ColumnMapping(
            item_id=id,
            attributes=_attributes(attribute),
            picture=picture,
            picture_root=picture_root,
            list_separator=split,
        )
        kind: Format | None = format.value if format else None
        rows = chain.from_iterable(read_items(file, mapping=mapping, format=kind) for file in files or ())
    if keep_pictures:
        rows = (
            dataclasses.replace(row, picture=KEEP_PICTURE) if isinstance(row, Item) and row.picture is None else row
            for row in rows
        )
    with connected(ctx) as client, progress("importing") as tell:
        summary = client.items.upsert(
            rows, progress=lambda so_far: tell(so_far.rows, note=f"{len(so_far.rejected):,} rejected")
        )
        if domain:
            _tell_domain(client, domain)
    report_rejects(ctx, summary, noun="row", file=rejects, strict=strict)


def _attributes(given: list[str] | None) -> dict[str, str] | None:
    if not given:
        return None
    attributes: dict[str, str] = {}
    for entry in given:
        name, _, column = entry.partition("=")
        if not name or name in attributes:
            problem = "is given twice" if name else "has no name"
            raise typer.BadParameter(f"{entry!r} {problem}; expected NAME or NAME=COLUMN", param_hint="--attribute")
        attributes[name] = column or name
    return attributes


def _tell_domain(client: dmesr.Client, domain: str) -> None:
    """Says so where the catalog calls its items something else than the dataset does."""
    for catalog in client.admin.list_catalogs():
        if catalog.name == client.catalog_name and catalog.domain != domain:
            say(
                f"note: the descriptions will call each of these a {catalog.domain!r}, as the catalog {catalog.name} "
                f"does; to have them called a {domain!r}, import them into one that was created with --domain "
                f"{domain!r}"
            )


def _dataset(name: str, data: Path | None) -> Any:
    # Found by name, as the trainer's commands are: the SDK does not import it.
    from importlib import import_module

    try:
        datasets = import_module("dmesr_trainer.datasets")
    except ModuleNotFoundError as error:
        fail(f"--dataset needs the trainer extra (no module {error.name!r}): pip install 'dmesr[trainer]'", code=2)
    return datasets.load(name, data=data)


@command(app, "list", examples=["dmesr-cli items list", "dmesr-cli items list --limit 5 --json | jq '.[].item_id'"])
def list_(
    ctx: typer.Context,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many.")] = None,
) -> None:
    """List the items, ordered by id."""
    with connected(ctx) as client:
        found = islice(client.items.list(), limit)
        if as_json(ctx):
            print_json_array(found)
            return
        print_table(
            ["item", "title", "attributes", "picture", "updated"],
            (
                (one.item_id, shortened(one.title), len(one.attributes), one.picture is not None, one.update_time)
                for one in found
            ),
            right=["attributes"],
        )


@command(
    app,
    "get",
    examples=[
        "dmesr-cli items get 296",
        "dmesr-cli items get 296 318 --json",
        "dmesr-cli items get 296 --save-picture poster.jpg",
    ],
)
def get(
    ctx: typer.Context,
    item_ids: ItemIds,
    save_picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the picture of the one item to a file.")
    ] = None,
) -> None:
    """Show items with all their attributes. JSON is one object for one id, an array for more."""
    if save_picture is not None and len(item_ids) > 1:
        raise typer.BadParameter("it takes one item", param_hint="--save-picture")
    with connected(ctx) as client:
        if len(item_ids) == 1:
            item = client.items.get(item_ids[0])
            show(ctx, item, lambda: _print_items((item,)))
            if save_picture is not None:
                if item.picture is None:
                    fail(f"item {item.item_id} has no picture")
                save_picture.write_bytes(client.items.picture(str(item.picture)))
                say(f"wrote {save_picture}")
            return
        found = client.items.get_many(item_ids)
    show(ctx, found.items, lambda: _print_items(found.items))
    if found.missing:
        fail(f"no item has the id {', '.join(found.missing)}")


def _print_items(items: tuple[dmesr.Item, ...]) -> None:
    for place, item in enumerate(items):
        if place:
            print_line()
        print_line(f"item {item.item_id}")
        facts = [*item.attributes.items(), ("picture", item.picture), ("updated", item.update_time)]
        print_table(["", ""], facts)


@command(app, "delete", examples=["dmesr-cli items delete 296", "dmesr-cli items delete 296 318 --yes"])
def delete(ctx: typer.Context, item_ids: ItemIds, yes: Yes = False) -> None:
    """Delete items with their descriptions, their vectors and their places in the live indexes."""
    some = ", ".join(item_ids[:3]) + (f" and {len(item_ids) - 3:,} more" if len(item_ids) > 3 else "")
    confirm(ctx, f"Delete {some} with descriptions and vectors?", yes=yes)
    with connected(ctx) as client:
        done = client.items.delete(item_ids)
    show(ctx, done, lambda: say(f"deleted {done.deleted:,}"))
    if done.missing:
        fail(f"no item has the id {', '.join(done.missing)}")
