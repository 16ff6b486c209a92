"""`dmesr-cli descriptions`: read what enrichment wrote, correct it, take it along, bring in your own."""

from __future__ import annotations

import getpass
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import description_files
from .console import cell, connected, fail, one_line, print_line, print_table, progress, say, show
from .editor import edited
from .options import command, group
from .rejects import check_rejects_file, report_rejects

if TYPE_CHECKING:
    import dmesr

app = group(
    "descriptions",
    "Read descriptions, correct them, take them along, or bring in your own.",
    examples=[
        "dmesr-cli descriptions show 296",
        "dmesr-cli descriptions edit 296 --route text --editor",
        "dmesr-cli descriptions export --output descriptions.parquet",
        "dmesr-cli descriptions import mine.jsonl --model gpt-4o-2024-08",
    ],
)

Recipe = Annotated[str, typer.Option(help="The recipe's name or id.")]


@command(
    app,
    "show",
    examples=["dmesr-cli descriptions show 296", "dmesr-cli descriptions show 296 318 --json"],
)
def show_(
    ctx: typer.Context,
    item_ids: Annotated[list[str], typer.Argument(help="The items.")],
    recipe: Recipe = "default",
) -> None:
    """Show the original text and the descriptions of items, the routes side by side with where they come from."""
    with connected(ctx) as client:
        found = client.enrichment.descriptions(item_ids, recipe=recipe)
    show(ctx, found, lambda: _print_descriptions(found))
    if found.missing:
        fail(f"no item has the id {', '.join(found.missing)}")


@command(
    app,
    "export",
    examples=[
        "dmesr-cli descriptions export --output descriptions.parquet",
        "dmesr-cli descriptions export --output failed.jsonl --failures",
        "dmesr-cli descriptions import descriptions.parquet --recipe taken-along",
    ],
)
def export(
    ctx: typer.Context,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file: .parquet or .jsonl.")],
    recipe: Recipe = "default",
    failures: Annotated[bool, typer.Option("--failures", help="Also those that failed, with the reason.")] = False,
) -> None:
    """Write all descriptions of a recipe with their provenance to a file that 'descriptions import' reads back."""
    if output.suffix.lower() not in description_files.FORMATS:
        known = ", ".join(description_files.FORMATS)
        raise typer.BadParameter(f"{output.name} ends in none of {known}", param_hint="--output")
    if not output.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {output.parent}", param_hint="--output")
    with connected(ctx) as client, progress("exporting") as tell:
        found = client.enrichment.list_descriptions(recipe=recipe, include_failures=failures)
        count = description_files.write(found, output, tell=tell)
    result = {"output": output, "descriptions": count}
    show(ctx, result, lambda: say(f"wrote {count:,} descriptions to {output}"))


@command(
    app,
    "import",
    examples=[
        "dmesr-cli descriptions import mine.jsonl --model gpt-4o-2024-08",
        "dmesr-cli descriptions import texts.csv --model editors --no-mllm --item sku --text copy --route text",
        "dmesr-cli descriptions import exported.parquet --recipe taken-along",
        "dmesr-cli enrich start --describer import",
    ],
)
def import_(
    ctx: typer.Context,
    files: Annotated[list[Path], typer.Argument(help="CSV, Parquet or JSONL.", exists=True, dir_okay=False)],
    model: Annotated[
        str | None,
        typer.Option(
            help="Who made them: the model and its revision. Part of their identity. The column 'model' of an exported "
            "file by default."
        ),
    ] = None,
    mllm: Annotated[
        bool | None,
        typer.Option("--mllm/--no-mllm", help="Whether a multimodal LLM made them; by default as exported, or yes."),
    ] = None,
    item: Annotated[str, typer.Option(metavar="COLUMN", help="The column with item ids.")] = "item_id",
    text: Annotated[str, typer.Option(metavar="COLUMN", help="The column with texts.")] = "text",
    route: Annotated[
        str | None,
        typer.Option(help="All are of this route: text, image, hybrid or reflect. The column 'route' by default."),
    ] = None,
    recipe: Annotated[str, typer.Option(help="The recipe's name that gets them.")] = "default",
    rejects: Annotated[Path | None, typer.Option(metavar="FILE", help="Write rejected rows here, as JSONL.")] = None,
) -> None:
    """Bring in descriptions that were made elsewhere; then encode them with 'enrich start --describer import'."""
    from dmesr import ImportedDescription, RejectedRow
    from dmesr.readers import read_rows

    check_rejects_file(rejects)
    name, is_mllm = (model, mllm is not False) if model is not None else _maker(files, mllm)
    needed = (item, text) if route else (item, text, "route")
    unreadable: list[dmesr.RejectedRow] = []

    def read() -> Iterator[dmesr.ImportedDescription]:
        for file in files:
            for row in read_rows(file, needed=needed, optional=["author", "describer"], only_needed=True):
                if isinstance(row, RejectedRow):
                    unreadable.append(row)
                    continue
                texts = ["" if row.values[column] is None else str(row.values[column]) for column in needed]
                # In a file of another origin a column of that name is more likely the author of a book.
                exported = row.values.get("describer") in ("person", "import")
                author = str(row.values.get("author") or "") if exported else ""
                yield ImportedDescription(item_id=texts[0], route=route or texts[2], text=texts[1], author=author)

    with connected(ctx) as client:
        summary = client.enrichment.import_descriptions(read(), model=name, is_mllm=is_mllm, recipe=recipe)
    report_rejects(ctx, summary, noun="description", file=rejects, unreadable=unreadable)


def _maker(files: list[Path], mllm: bool | None) -> tuple[str, bool]:
    """Who made the texts of exported files."""
    from dmesr import InvalidInput

    try:
        found = description_files.makers(files)
    except InvalidInput as error:
        fail(f"{error}; name who made the texts with --model", code=2)
    if len(found) != 1:
        told = ", ".join(sorted(model for model, _ in found)) or "nobody"
        fail(f"the column 'model' names {told}; name the one who is to stand for all of them with --model", code=2)
    [(model, is_mllm)] = found
    return model, is_mllm if mllm is None else mllm


@command(
    app,
    "edit",
    examples=[
        'dmesr-cli descriptions edit 296 --route text --text "Two hit men, a boxer and a briefcase."',
        "dmesr-cli descriptions edit 296 --route hybrid --editor",
        "dmesr-cli descriptions edit 296 --route image --file poster.txt --author anna",
        "dmesr-cli descriptions edit 296 --route text --withdraw",
    ],
)
def edit(
    ctx: typer.Context,
    item_id: Annotated[str, typer.Argument(help="The item.")],
    route: Annotated[str, typer.Option(help="The route whose description it is: text, image, hybrid or reflect.")],
    text: Annotated[str | None, typer.Option(help="The text that is to stand.")] = None,
    file: Annotated[Path | None, typer.Option(metavar="FILE", help="Read the text from here; - is stdin.")] = None,
    editor: Annotated[bool, typer.Option("--editor", help="Edit what stands now in $VISUAL or $EDITOR.")] = False,
    withdraw: Annotated[
        bool, typer.Option("--withdraw", help="Take the correction back: what the describer makes stands again.")
    ] = False,
    author: Annotated[
        str | None, typer.Option(envvar="DMESR_AUTHOR", help="Who writes it; your login name by default.")
    ] = None,
    recipe: Recipe = "default",
) -> None:
    """Correct a description. No job touches the correction until it is withdrawn; the next job encodes it."""
    if (text is not None) + (file is not None) + editor + withdraw != 1:
        raise typer.BadParameter("give one of --text, --file, --editor and --withdraw")
    with connected(ctx) as client:
        enrichment = client.enrichment
        if withdraw:
            made = enrichment.withdraw_edit(item_id, route=route, recipe=recipe)
            note = "what the describer made stands again" if made is not None else "the next job describes it"
            show(ctx, made, lambda: say(f"{route} of item {item_id}: the correction is withdrawn; {note}"))
            return
        if editor:
            before = _standing(client, item_id, route=route, recipe=recipe)
            said = edited(before)
            if said in ("", before):
                fail("nothing was changed" if said else "the text is empty: nothing was changed")
        else:
            said = _read(file) if file is not None else text or ""
        if not said.strip():
            raise typer.BadParameter("the text is empty; --withdraw takes a correction back")
        corrected = enrichment.edit_description(
            item_id, route=route, text=said, author=author or _login(), recipe=recipe
        )
    show(
        ctx,
        corrected,
        lambda: say(
            f"{route} of item {item_id} is corrected; 'dmesr-cli enrich start' encodes it with what else is new"
        ),
    )


def _standing(client: dmesr.Client, item_id: str, *, route: str, recipe: str) -> str:
    """The text that stands; empty where there is none."""
    found = client.enrichment.descriptions([item_id], recipe=recipe)
    if found.missing:
        fail(f"no item has the id {item_id}")
    return next((one.text for one in found.descriptions if one.route == route), "")


def _read(file: Path) -> str:
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        fail(f"cannot read {file}: {error}")


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container without users
        fail("nobody is logged in: say who writes it with --author", code=2)


def _print_descriptions(found: dmesr.Descriptions) -> None:
    by_item: dict[str, list[dmesr.Description]] = {item_id: [] for item_id in found.original_texts}
    for one in found.descriptions:
        by_item.setdefault(one.item_id, []).append(one)
    for place, (item_id, made) in enumerate(by_item.items()):
        if place:
            print_line()
        print_line(f"item {item_id}")
        print_line(f"  original: {found.original_texts.get(item_id) or '-'}")
        for one in made:
            print_line(f"  {one.route}: {_text(one)}")
            if one.replaced is not None:
                print_line(f"  {one.route}, as it was before a person corrected it: {_text(one.replaced)}")
        if made:
            print_line()
            _print_provenance(made)
        else:
            print_line("  no description yet: 'dmesr-cli enrich start' makes them")


def _text(one: dmesr.Description) -> str:
    if one.text:
        return one_line(one.text)
    return f"failed: {one.problem.message if one.problem is not None else 'no reason was recorded'}"


def _print_provenance(made: list[dmesr.Description]) -> None:
    """One column a route, one row for whatever is known of any of them."""
    told = [_provenance(one) for one in made]
    names = list(dict.fromkeys(name for one in told for name in one))
    rows = [(name, *(one.get(name, "") for one in told)) for name in names]
    print_table(["", *(one.route for one in made)], rows)


def _provenance(one: dmesr.Description) -> dict[str, str]:
    made = one.provenance
    if made is None:
        return {}
    person = one.is_corrected
    tokens = f"{made.tokens_in:,} in, {made.tokens_out:,} out, {made.tokens_cached:,} cached"
    known = {
        "describer": made.describer if made.is_mllm or person else f"{made.describer}, no multimodal LLM",
        "author": made.author,
        "model": "" if made.model == "none" else made.model,
        "engine": made.engine,
        "prompts": made.prompt_revision,
        "rounds": str(made.rounds or ""),
        "stopped by": made.stop_reason,
        "tokens": tokens if made.tokens_in or made.tokens_out else "",
        "took": _duration(made.milliseconds) if made.milliseconds else "",
        **_sampling(made.sampling),
        "made": cell(made.create_time) if made.create_time is not None else "",
        "state": "stale: the item has changed since" if one.stale else "",
        "picture": made.picture_sha256[:12],
        "content": made.content_hash[:12],
        "recipe": made.description_recipe_id,
    }
    return {name: value for name, value in known.items() if value}


def _duration(milliseconds: float) -> str:
    return f"{milliseconds:.3g} ms" if milliseconds < 1_000 else f"{milliseconds / 1e3:,.1f} s"


def _sampling(recorded: str) -> dict[str, str]:
    """Sampling settings in one line, and whatever else was recorded beside them in lines of their own."""
    settings: dict[str, Any] = json.loads(recorded) if recorded else {}
    plain = [f"{name} {value}" for name, value in settings.items() if not isinstance(value, dict)]
    told = {"sampling": ", ".join(plain)} if plain else {}
    for name, value in settings.items():
        if isinstance(value, dict):
            told[name] = ", ".join(f"{key.replace('_', ' ')} {cell(entry)}" for key, entry in value.items())
    return told
