"""What may be wrong with tables, and the words for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from dmesr_server.control import Records
from dmesr_server.errors import ServiceError
from dmesr_server.store import ADAPTED, EMBEDDINGS, TRAINED, CatalogStore, Look, decoded, encoded
from dmesr_server.upkeep.findings import RESTORE_CONTROL, Finding, fault, leftover

_SNAPSHOT = "restore the store from a snapshot (`dmesr-cli store restore`)"
UNREADABLE = "UNREADABLE_TABLE"
#: Findings that no write under way explains away: looking again would tell the same.
AT_REST = frozenset({"UNUSED_PICTURES"})


def recipe_of(table: str) -> str | None:
    """The embedding recipe of a table of raw vectors; None for any other table."""
    return decoded(table.removeprefix(EMBEDDINGS)) if table.startswith(EMBEDDINGS) else None


def unreadable(catalog: str, table: str, error: ServiceError) -> Finding:
    """A table that cannot be read from end to end."""
    return fault(
        UNREADABLE,
        catalog=catalog,
        place=table,
        about=[table],
        problem=f"the table cannot be read from end to end: {error.message}",
        remedy=_remedy(catalog, table),
    )


def of_look(catalog: str, seen: Look) -> Iterator[Finding]:
    """What a look has told of one table alone."""
    if seen.rows != seen.counted:
        yield fault(
            "WRONG_COUNT",
            catalog=catalog,
            place=seen.name,
            about=[f"version {seen.version}"],
            problem=f"the table says that it has {seen.counted} rows, but {seen.rows} can be read",
            remedy=_remedy(catalog, seen.name),
        )
    if seen.duplicates:
        yield fault(
            "DUPLICATE_ROWS",
            catalog=catalog,
            place=seen.name,
            about=seen.duplicates,
            problem="keys stand more than once",
            remedy="delete these items (`dmesr-cli items delete ID`), import them again and enrich",
        )
    for what, keys in seen.wrong.items():
        wrong_hash = what == "WRONG_HASH"
        yield fault(
            f"{what}_ROWS" if not wrong_hash else "WRONG_HASH",
            catalog=catalog,
            place=seen.name,
            about=keys,
            problem="the content of rows is not what their hash says: it was changed or damaged on the disk"
            if wrong_hash
            else "rows contradict themselves",
            remedy=_row_remedy(catalog, seen.name),
        )
    if seen.lost:
        yield fault(
            "WRONG_INDEX",
            catalog=catalog,
            place=seen.name,
            about=seen.lost,
            problem="rows are there, but are not found when they are asked for by their key: its index is damaged",
            remedy=f"{_SNAPSHOT}; the rows themselves can be read (`dmesr-cli items list --json`)",
        )


def orphans(catalog: str, table: str, item_ids: Sequence[str]) -> Finding:
    """Rows of items that are gone."""
    return fault(
        "ORPHAN_ROWS",
        catalog=catalog,
        place=table,
        about=item_ids,
        problem="rows are of items that are gone",
        remedy="delete these items once more, which takes all their rows away (`dmesr-cli items delete ID`), or import "
        "them again",
    )


def without_picture(catalog: str, items: Look, missing: Sequence[str]) -> Finding:
    """Items whose picture is not there."""
    lost = pc.is_in(items.columns["picture_sha256"], value_set=pa.array(missing, pa.string()))
    return fault(
        "MISSING_PICTURES",
        catalog=catalog,
        place="items",
        about=items.columns["item_id"].filter(lost).to_pylist(),
        problem="items name a picture that is not in the store",
        remedy="import these items with their pictures again (`dmesr-cli items import`): what is missing is sent anew",
    )


def unused_pictures(catalog: str, hashes: Sequence[str]) -> Finding:
    """Pictures that no item names."""
    return leftover(
        "UNUSED_PICTURES",
        catalog=catalog,
        place="pictures",
        about=hashes,
        problem="no item names these pictures: others took their place, their items were deleted, or come yet",
        remedy="nothing needs to be done. To have the room back, import the catalogue into a new catalog",
    )


def without_records(catalog: str, tables: CatalogStore, records: Records) -> Iterator[Finding]:
    """Tables and rows whose recipe or model the control database does not tell of."""
    recipes = {encoded(recipe.recipe_id) for recipe in records.embedding_recipes if recipe.catalog == catalog}
    models = {encoded(model.ref) for model in records.models if model.catalog == catalog}
    described = {recipe_id for name, recipe_id in records.description_recipes if name == catalog}
    for table in tables.tables():
        if table.name.startswith(EMBEDDINGS) and table.name.removeprefix(EMBEDDINGS) not in recipes:
            yield fault(
                "TABLE_WITHOUT_RECIPE",
                catalog=catalog,
                place=table.name,
                about=[recipe_of(table.name) or ""],
                problem="the table's recipe is not in the control database, so nobody can read its vectors",
                remedy=RESTORE_CONTROL,
            )
        for prefix in (ADAPTED, TRAINED):
            if table.name.startswith(prefix) and table.name.removeprefix(prefix) not in models:
                yield leftover(
                    "TABLE_WITHOUT_MODEL",
                    catalog=catalog,
                    place=table.name,
                    about=[decoded(table.name.removeprefix(prefix))],
                    problem="the table's model does not exist: its deletion was cut short",
                    remedy=f"remove the folder catalogs/{encoded(catalog)}/{table.name}.lance of the store while no "
                    "server runs",
                )
    lost = tables.descriptions.recipes() - described
    if lost:
        yield fault(
            "DESCRIPTIONS_WITHOUT_RECIPE",
            catalog=catalog,
            place="descriptions",
            about=sorted(lost),
            problem="descriptions are of recipes that are not in the control database",
            remedy=RESTORE_CONTROL,
        )


def _remedy(catalog: str, table: str) -> str:
    if table.startswith(ADAPTED):
        return (
            f"stop the server, remove the folder catalogs/{encoded(catalog)}/{table}.lance of the store and start it: "
            "the table is made anew from the model and the vectors"
        )
    return _SNAPSHOT


def _row_remedy(catalog: str, table: str) -> str:
    if table == "items":
        return "import these items again (`dmesr-cli items import`)"
    if table.startswith(ADAPTED):
        return _remedy(catalog, table)
    if table == "pictures":
        return _SNAPSHOT
    return (
        "delete these items (`dmesr-cli items delete ID`), import them again and enrich, or write their vectors again"
    )
