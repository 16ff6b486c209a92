"""`dmesr-cli catalogs`: the catalogues that live side by side on a server."""

from __future__ import annotations

from typing import Annotated

import typer

from .console import confirm, connected, print_table, say, show
from .options import Yes, command, group

app = group(
    "catalogs",
    "Create, list and drop catalogs.",
    examples=["dmesr-cli catalogs create films --domain film", "dmesr-cli catalogs list"],
)

Name = Annotated[str, typer.Argument(help="The catalog's name: lower-case letters, digits, '-' and '_'.")]


@command(
    app,
    "create",
    examples=[
        "dmesr-cli catalogs create films --domain film",
        "dmesr-cli catalogs create restaurants --domain restaurant --language de",
    ],
    catalog=False,
)
def create(
    ctx: typer.Context,
    name: Name,
    domain: Annotated[
        str, typer.Option(help="What an item is, in the words that prompts use: film, restaurant, video game.")
    ] = "item",
    language: Annotated[str, typer.Option(help="Language of the descriptions, as a BCP 47 tag.")] = "en",
) -> None:
    """Create a catalog."""
    with connected(ctx) as client:
        made = client.admin.create_catalog(name, domain=domain, language=language)
    show(ctx, made, lambda: say(f"created the catalog {made.name} ({made.domain}, {made.language})"))


@command(app, "list", examples=["dmesr-cli catalogs list", "dmesr-cli catalogs list --json"], catalog=False)
def list_(ctx: typer.Context) -> None:
    """List the catalogs."""
    with connected(ctx) as client:
        found = client.admin.list_catalogs()
    rows = [(one.name, one.domain, one.language, one.items, one.create_time) for one in found]
    show(
        ctx,
        found,
        lambda: print_table(["name", "domain", "language", "items", "created"], rows, right=["items"]),
    )


@command(app, "drop", examples=["dmesr-cli catalogs drop films", "dmesr-cli catalogs drop films --yes"], catalog=False)
def drop(ctx: typer.Context, name: Name, yes: Yes = False) -> None:
    """Drop a catalog with its items, pictures, descriptions, vectors and models."""
    confirm(ctx, f"Drop the catalog {name} with everything in it?", yes=yes)
    with connected(ctx) as client:
        client.admin.drop_catalog(name)
    show(ctx, {"dropped": name}, lambda: say(f"dropped the catalog {name}"))
