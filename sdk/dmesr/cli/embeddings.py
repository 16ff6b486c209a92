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
