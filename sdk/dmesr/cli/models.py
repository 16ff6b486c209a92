"""`dmesr-cli models`: published models, their versions and the aliases that point to them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import lineage
from .console import confirm, connected, print_table, say, show
from .options import Yes, command, group

if TYPE_CHECKING:
    import dmesr

app = group(
    "models",
    "Publish models and choose which one recommends.",
    examples=["dmesr-cli models publish runs/films --name films", "dmesr-cli models promote films:3"],
)

Alias = Annotated[str, typer.Option(help="The alias.")]


@command(app, "list", examples=["dmesr-cli models list", "dmesr-cli models list --catalog films --json"])
def list_(ctx: typer.Context) -> None:
    """List the models, newest first."""
    with connected(ctx) as client:
        found = list(client.models.list())
    columns = ["model", "state", "aliases", "items adapted", "recipe", "published"]
    rows = [(one.ref, one.state, one.aliases, one.items_adapted, one.recipe_id, one.create_time) for one in found]
    show(ctx, found, lambda: print_table(columns, rows, right=["items adapted"]))


@command(
    app, "show", examples=["dmesr-cli models show production", "dmesr-cli models show films:3 --json | jq .manifest"]
)
def show_(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="An alias, a name (its newest version) or NAME:VERSION.")] = "production",
) -> None:
    """Show one model and its whole lineage.

    From the catalogue by its recipe, descriptions, vectors, training and metrics to the aliases it was promoted to,
    and how far its items have drifted since it was trained.
    """
    with connected(ctx) as client:
        found = client.models.get(model, lineage=True)
    show(ctx, found, lambda: lineage.print_chain(found))


@command(
    app,
    "publish",
    examples=[
        "dmesr-cli models publish runs/films --name films",
        "dmesr-cli models publish runs/films --name films --promote production",
    ],
)
def publish(
    ctx: typer.Context,
    folder: Annotated[
        Path, typer.Argument(help="The artefact's folder, with its manifest.json.", exists=True, file_okay=False)
    ],
    name: Annotated[str, typer.Option(help="The model's name. The server counts its versions.")],
    promote: Annotated[
        str | None,
        typer.Option(help="Point this alias to the model once it is ready.", metavar="ALIAS"),
    ] = None,
    wait: Annotated[bool, typer.Option(help="Wait until the items are adapted.")] = True,
) -> None:
    """Upload an artefact of the trainer and adapt the catalog's items."""
    if promote and not wait:
        raise typer.BadParameter(
            "only a model that is ready can be promoted: leave --no-wait out", param_hint="--promote"
        )
    with connected(ctx) as client:
        published = client.models.publish(folder, name=name, wait=wait)
        if promote:
            published = client.models.promote(published.ref, alias=promote)
    show(ctx, published, lambda: say(lineage.state_line(published)))


@command(
    app, "promote", examples=["dmesr-cli models promote films:3", "dmesr-cli models promote films --alias candidate"]
)
def promote(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="A name (its newest version) or NAME:VERSION.")],
    alias: Alias = "production",
) -> None:
    """Point an alias to a model, atomically."""
    with connected(ctx) as client:
        now = client.models.promote(model, alias=alias)
    show(ctx, now, lambda: say(f"{alias} is {now.ref}"))


@command(app, "rollback", examples=["dmesr-cli models rollback", "dmesr-cli models rollback --alias candidate"])
def rollback(ctx: typer.Context, alias: Alias = "production") -> None:
    """Point an alias back to the model that it pointed to before."""
    with connected(ctx) as client:
        now = client.models.rollback(alias=alias)
    show(ctx, now, lambda: say(f"{alias} is {now.ref} again"))


@command(app, "aliases", examples=["dmesr-cli models aliases", "dmesr-cli models aliases --json"])
def aliases(ctx: typer.Context) -> None:
    """List the aliases, the models that they point to and how their traffic is split."""
    with connected(ctx) as client:
        found = client.models.aliases()
    rows = [(one.name, one.model, _split_text(one), one.update_time) for one in found]
    show(ctx, found, lambda: print_table(["alias", "model", "split", "since"], rows))


@command(
    app,
    "split",
    examples=["dmesr-cli models split candidate --share 0.1", "dmesr-cli models split --share 0"],
)
def split(
    ctx: typer.Context,
    share: Annotated[float, typer.Option(min=0, max=1, help="Of the calls; 0 ends the split.")],
    other: Annotated[str | None, typer.Argument(help="The alias that answers the share.")] = None,
    alias: Alias = "production",
) -> None:
    """Let another alias answer a share of the calls to an alias, to compare two models."""
    if other is None and share > 0:
        raise typer.BadParameter("name the alias that answers the share", param_hint="OTHER")
    with connected(ctx) as client:
        now = client.models.split(share=share, other=other, alias=alias)
    show(ctx, now, lambda: say(f"{now.name}: {_split_text(now)}"))


def _split_text(alias: dmesr.Alias) -> str:
    if alias.split is None:
        return "answers all of its calls"
    return f"{alias.split.share:.4g} of its calls go to {alias.split.other}"


@command(app, "delete", examples=["dmesr-cli models delete films:2", "dmesr-cli models delete films:2 --yes"])
def delete(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="NAME:VERSION.")],
    yes: Yes = False,
) -> None:
    """Delete a model that no alias points to, with its adapted vectors."""
    confirm(ctx, f"Delete the model {model} with its adapted vectors?", yes=yes)
    with connected(ctx) as client:
        client.models.delete(model)
    show(ctx, {"deleted": model}, lambda: say(f"deleted {model}"))
