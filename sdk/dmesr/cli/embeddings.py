"""`dmesr-cli embeddings`: coverage, neighbours and bulk export of vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from zipfile import ZipFile

import typer

from .console import connected, fail, print_line, print_table, say, shortened, show
from .options import command, group

if TYPE_CHECKING:
    import numpy.typing as npt

    import dmesr

app = group(
    "embeddings",
    "Look at vectors, search in them, take them along.",
    examples=["dmesr-cli embeddings stats", "dmesr-cli embeddings export --output vectors.parquet"],
)

Recipe = Annotated[str, typer.Option(help="The recipe's name or id.")]
ModelOption = Annotated[
    str | None, typer.Option(help="A model's alias, name or NAME:VERSION: its adapted vectors instead of a recipe's.")
]
FORMATS = (".parquet", ".arrow", ".npz")


class Precision(StrEnum):
    """The number format of vectors."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"


@command(app, "stats", examples=["dmesr-cli embeddings stats", "dmesr-cli embeddings stats --recipe default --json"])
def stats(ctx: typer.Context, recipe: Recipe = "default") -> None:
    """Show coverage, width and spread of each source of a recipe."""
    with connected(ctx) as client:
        found = client.embeddings.stats(recipe)

    def people() -> None:
        made = found.recipe
        print_line(f"recipe {made.recipe_id} ({', '.join(made.names) or 'no name'}), version {found.version}")
        print_line(
            f"{found.items:,} items, {found.rows:,} with a row" + ("" if made.is_mllm else ", no multimodal LLM")
        )
        print_table(
            ["source", "dim", "present", "coverage", "mean norm", "mean pair cosine"],
            [
                (one.source.name, one.source.dim, one.source.present, one.coverage, one.mean_norm, one.mean_pair_cosine)
                for one in found.sources
            ],
            right=["dim", "present", "coverage", "mean norm", "mean pair cosine"],
        )
        for one in found.sources:
            if one.index is not None:
                index = one.index
                print_line(
                    f"{one.source.name} is searched by {index.kind}: {index.indexed_rows:,} rows, "
                    f"{index.unindexed_rows:,} more one by one, recall@10 {index.recall_at_10:.3f} of "
                    f"{index.recall_sample} of them, made {index.build_time:%Y-%m-%d %H:%M} UTC"
                )

    show(ctx, found, people)


@command(
    app,
    "neighbours",
    examples=[
        "dmesr-cli embeddings neighbours 296",
        "dmesr-cli embeddings neighbours 296 --source image -k 20",
        "dmesr-cli embeddings neighbours 296 --model production",
        "dmesr-cli embeddings neighbours --text 'a heist that goes wrong' --filter 'year >= 1990'",
    ],
)
def neighbours(
    ctx: typer.Context,
    item_id: Annotated[str | None, typer.Argument(help="The item whose neighbours to find.")] = None,
    text: Annotated[str | None, typer.Option(help="Near to this text, in the place of an item.")] = None,
    recipe: Recipe = "default",
    model: ModelOption = None,
    source: Annotated[str | None, typer.Option(help="The source to search in; text for a recipe.")] = None,
    k: Annotated[int, typer.Option("-k", "--count", min=1, help="How many.")] = 10,
    filter_: Annotated[
        str | None, typer.Option("--filter", help="Only items whose attributes meet this, as in docs/filters.md.")
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Compare with every vector, also where there is an index.")
    ] = False,
) -> None:
    """Find the items nearest to an item or a text by cosine similarity."""
    if (item_id is None) == (text is None):
        raise typer.BadParameter("give either an item or a text", param_hint="ITEM_ID or --text")
    with connected(ctx) as client:
        near = client.embeddings.neighbours(
            item_id=item_id, text=text, recipe=recipe, model=model, source=source, k=k, filter=filter_, exact=exact
        )
        titles = {one.item_id: one.title for one in client.items.get_many([one.item_id for one in near]).items}
    rows = [
        (place, one.item_id, shortened(titles.get(one.item_id, "")), one.similarity)
        for place, one in enumerate(near, 1)
    ]
    result = [{"item_id": one.item_id, "similarity": one.similarity, "title": titles.get(one.item_id)} for one in near]
    show(ctx, result, lambda: print_table(["", "item", "title", "similarity"], rows, right=["", "similarity"]))


@command(
    app,
    "drift",
    examples=[
        "dmesr-cli embeddings drift 2026-10 default",
        "dmesr-cli embeddings drift default@41 default --source text --json",
        "dmesr-cli embeddings drift qwen-3b qwen-7b --figure drift.png",
    ],
)
def drift(
    ctx: typer.Context,
    before: Annotated[str, typer.Argument(help="A recipe's name or id; RECIPE@VERSION for an earlier version.")],
    after: Annotated[str, typer.Argument(help="What it is compared with, written alike.")],
    source: Annotated[list[str] | None, typer.Option(help="A source; repeat it for more. All when not given.")] = None,
    k: Annotated[int, typer.Option("-k", "--count", min=1, help="How many neighbours are compared.")] = 10,
    sample: Annotated[int, typer.Option(min=1, help="At most so many items have their neighbours compared.")] = 1_000,
    top: Annotated[int, typer.Option(min=1, help="How many of the items that moved most are named.")] = 10,
    figure: Annotated[
        Path | None, typer.Option(help="Also draw it: .png, .svg or .pdf. Needs matplotlib.", metavar="FILE")
    ] = None,
) -> None:
    """Tell how far vectors have moved between two recipes, or two versions of one, and which items moved most.

    Where two encoders made them a cosine between before and after means nothing: neighbours are compared alone.
    """
    from dmesr.embedding_drift import drift as compared

    from . import drift_figure

    if figure is not None:
        drift_figure.check(figure)
    sides = [_side(before, name="BEFORE"), _side(after, name="AFTER")]
    with connected(ctx) as client:
        reads = [client.embeddings.read(recipe=name, version=version, sources=source) for name, version in sides]
        encoders = {one.recipe_id: one.encoder for one in client.embeddings.recipes()}
        report = compared(
            *reads,
            same_encoder=encoders[reads[0].recipe_id] == encoders[reads[1].recipe_id],
            k=k,
            sample=sample,
            top=top,
        )
        named = list(dict.fromkeys(moved.item_id for one in report.sources for moved in one.moved))
        titles = {one.item_id: one.title for one in client.items.get_many(named).items}
    if figure is not None:
        drift_figure.draw(report, figure)
    show(ctx, report, lambda: _tell_drift(report, titles))
    if figure is not None:
        say(f"drew {figure}")


def _side(given: str, *, name: str) -> tuple[str, int | None]:
    recipe, at, version = given.rpartition("@")
    if not at:
        return given, None
    if not recipe or not version.isdecimal():
        raise typer.BadParameter(f"{given!r} is neither RECIPE nor RECIPE@VERSION", param_hint=name)
    return recipe, int(version)


def _tell_drift(report: dmesr.Drift, titles: dict[str, str]) -> None:
    print_line(
        f"before: recipe {report.before[0]}, version {report.before[1]}; "
        f"after: recipe {report.after[0]}, version {report.after[1]}"
    )
    for names, what in ((report.only_before, "only before"), (report.only_after, "only after")):
        if names:
            print_line(f"{what}: {', '.join(names)}")
    columns = [
        "source",
        "before",
        "after",
        "both",
        "unchanged",
        "mean shift",
        "median",
        "99 %",
        f"same {report.k} nearest",
    ]
    print_table(
        columns,
        [
            (
                one.source,
                one.items[0],
                one.items[1],
                one.both,
                one.unchanged,
                one.mean_shift,
                one.shift_quantiles.get(0.5),
                one.shift_quantiles.get(0.99),
                one.overlap,
            )
            for one in report.sources
        ],
        right=columns[1:],
    )
    for one in report.sources:
        if not one.comparable:
            print_line(f"{one.source}: another encoder or width, so only neighbours are compared")
        for moved in one.moved:
            told = [f"shift {moved.shift:.3f}"] if moved.shift is not None else []
            told += [f"kept {moved.overlap:.0%} of its neighbours"] if moved.overlap is not None else []
            print_line(f"{one.source} {moved.item_id} {shortened(titles.get(moved.item_id, ''))}: {', '.join(told)}")


@command(
    app,
    "export",
    examples=[
        "dmesr-cli embeddings export --output vectors.parquet",
        "dmesr-cli embeddings export --source text --source image --output vectors.npz --dtype float16",
        "dmesr-cli embeddings export --model production --output adapted.arrow",
    ],
)
def export(
    ctx: typer.Context,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file: .parquet, .arrow or .npz.")],
    source: Annotated[list[str] | None, typer.Option(help="A source; repeat it for more. All when not given.")] = None,
    recipe: Recipe = "default",
    model: ModelOption = None,
    dtype: Annotated[Precision, typer.Option(help="The number format.")] = Precision.FLOAT32,
    version: Annotated[int | None, typer.Option(help="The table version; the newest when not given.", min=1)] = None,
) -> None:
    """Write vectors to a file: item_id and one column a source, null where the item has none.

    An .npz file holds item_id, and for each source the array NAME [N, D] and the mask NAME_present [N].
    """
    kind = output.suffix.lower()
    if kind not in FORMATS:
        known = ", ".join(FORMATS)
        raise typer.BadParameter(f"{output.name} ends in none of {known}", param_hint="--output")
    if not output.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {output.parent}", param_hint="--output")
    with connected(ctx) as client:
        found = client.embeddings.read(recipe=recipe, model=model, sources=source, dtype=dtype.value, version=version)
    try:
        _write(found, output, kind)
    except OSError as error:
        fail(f"cannot write {output}: {error.strerror or error}")
    present = {name: int(found.present(name).sum()) for name in found.sources}
    result = {
        "output": output,
        "rows": len(found.ids),
        "recipe_id": found.recipe_id,
        "model": found.model,
        "version": found.version,
        "present": present,
    }
    coverage = ", ".join(f"{name} {count:,}" for name, count in present.items())
    show(ctx, result, lambda: say(f"wrote {len(found.ids):,} items to {output} ({coverage}; version {found.version})"))


def _arrays(found: dmesr.Embeddings) -> Iterator[tuple[str, Callable[[], npt.NDArray[Any]]]]:
    import numpy as np

    yield "item_id", lambda: np.array(found.ids, dtype=np.str_)
    for source in found.sources:
        yield source, partial(found.matrix, source)
        yield f"{source}_present", partial(found.present, source)


def _write(found: dmesr.Embeddings, output: Path, kind: str) -> None:
    # A file of that name is replaced only by a whole one.
    unfinished = output.with_name(f".{output.name}.partial")
    try:
        if kind == ".parquet":
            found.to_parquet(unfinished)
        elif kind == ".arrow":
            import pyarrow as pa

            table = found.to_arrow()
            with pa.OSFile(str(unfinished), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
        else:
            import numpy as np

            # As np.savez writes it, but one array in memory at a time and with sources of any name.
            with ZipFile(unfinished, "w") as archive:
                for name, make in _arrays(found):
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                        np.lib.format.write_array(entry, make(), allow_pickle=False)
        unfinished.replace(output)
    finally:
        unfinished.unlink(missing_ok=True)
