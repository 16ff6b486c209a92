"""The check of a store: reads everything while calls go on, and says what is damaged, missing or left over.

The order keeps what is written meanwhile from looking wrong. Rows that name an item are read before the items, since an
item is written before them and deleted after them; the control database is read after both. What then still seems to
point nowhere is looked at again some times, since a deletion may have been under way: only what stays is told.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from dmesr_server.control import Control, EmbeddingRecipeRecord, ModelRecord, Records
from dmesr_server.errors import ServiceError
from dmesr_server.serving import stored_files
from dmesr_server.store import ADAPTED, DESCRIPTIONS, EMBEDDINGS, Look, Store, encoded, look
from dmesr_server.upkeep import check_records, check_tables
from dmesr_server.upkeep.findings import Finding, fault, leftover

_AGAIN_SECONDS = 1.0
_TIMES = 3  # that something must have been seen

#: Is told what is being done.
Tell = Callable[[str], None]
#: Whether clients write the vectors of a recipe's source.
Written = Callable[[EmbeddingRecipeRecord, str], bool]


@dataclass(frozen=True)
class Checked:
    """What was looked at.

    Attributes:
        catalogs: How many.
        tables: Of them.
        rows: Of the tables.
        models: Whose files were looked at.
        findings: All of them, faults first.
    """

    catalogs: int
    tables: int
    rows: int
    models: int
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Scope:
    """How much is looked at.

    Attributes:
        catalog: Only this one; None for all.
        contents: Read vectors and pictures and hash all that has a hash. Otherwise rows are counted and pointers
            followed, and of models' files only the sizes are looked at.
        read_only: Nothing may be written, not even a tag that keeps a version from house-keeping.
    """

    catalog: str | None
    contents: bool
    read_only: bool


def check(*, store: Store, control: Control, artefacts: Path, scope: Scope, written: Written, tell: Tell) -> Checked:
    """Looks at everything.

    Args:
        store: The tables.
        control: The control database.
        artefacts: The folder of the models' files.
        scope: How much.
        written: Whether clients write the vectors of a recipe's source.
        tell: Is told what is being done.

    Raises:
        ServiceError: CATALOG_NOT_FOUND, or STORE_UNAVAILABLE when the control database cannot be read: without it
            nobody knows what there should be.
    """
    tell("reading the control database")
    found: list[Finding] = [_broken(line) for line in control.integrity()]
    records = control.records()
    names = [row.name for row in records.catalogs]
    if scope.catalog is not None:
        names = [control.catalogs.get(scope.catalog).name]
    tables = rows = 0
    for name in names:
        seen = _Catalog(store, control, name, scope, written, tell)
        found += seen.findings(records)
        tables += seen.tables
        rows += seen.rows
    models = [model for model in records.models if model.catalog in names]
    for model in models:
        tell(f"looking at the files of the model {model.ref} of {model.catalog}")
        found += _of_model(control, model, contents=scope.contents)
    tell("following pointers")
    found += _lasting(lambda: check_records.dangling(control.records()))
    if scope.catalog is None:
        found += _lasting(lambda: _folders(store, control.records(), artefacts))
    there = {row.name for row in control.catalogs.list()}  # what was dropped meanwhile is nobody's concern
    strays = {"RECORDS_WITHOUT_CATALOG", "FOLDER_WITHOUT_CATALOG"}
    told = [
        one
        for one in found
        if (not one.catalog or one.catalog in there or one.kind in strays) and scope.catalog in (None, one.catalog)
    ]
    return Checked(
        catalogs=len(names),
        tables=tables,
        rows=rows,
        models=len(models),
        findings=tuple(sorted(told, key=lambda one: (one.severity.value, one.catalog, one.place, one.kind))),
    )


class _Catalog:
    """The tables of one catalog."""

    def __init__(self, store: Store, control: Control, name: str, scope: Scope, written: Written, tell: Tell):
        self.tables = 0
        self.rows = 0
        self._store = store
        self._control = control
        self._name = name
        self._scope = scope
        self._written = written
        self._tell = tell

    def findings(self, records: Records) -> list[Finding]:
        """What is wrong with them.

        Args:
            records: The control database as it was before.
        """
        recipes = {recipe.recipe_id: recipe for recipe in records.embedding_recipes if recipe.catalog == self._name}
        found: list[Finding] = []
        looks: dict[str, Look] = {}
        try:
            self._catalog = self._store.catalog(self._name)
            tables = self._catalog.tables()
        except ServiceError as error:
            return [check_tables.unreadable(self._name, "catalog", error)]
        # Items come after what names them, pictures last: items name them.
        for table in sorted(tables, key=lambda one: (one.name == "pictures", one.name == "items", one.name)):
            self._tell(f"reading the table {table.name} of {self._name}")
            recipe = recipes.get(check_tables.recipe_of(table.name) or "")
            try:
                seen = look(
                    table,
                    contents=self._scope.contents,
                    written=functools.partial(self._is_written, recipe),
                    hold=not self._scope.read_only,
                )
            except ServiceError as error:
                if table.name in {one.name for one in self._catalog.tables()}:  # not dropped meanwhile
                    found.append(check_tables.unreadable(self._name, table.name, error))
                continue
            looks[table.name] = seen
            self.rows += seen.rows
            self.tables += 1
            found += check_tables.of_look(self._name, seen)
        unreadable = {one.place for one in found if one.kind == check_tables.UNREADABLE}
        for follow in (functools.partial(self._orphans, looks, unreadable), self._records, self._pins):
            try:
                found += _lasting(follow)
            except ServiceError:
                if not unreadable:
                    raise
        return found

    def _is_written(self, recipe: EmbeddingRecipeRecord | None, source: str) -> bool:
        return recipe is not None and self._written(recipe, source)

    def _records(self) -> Iterator[Finding]:
        return check_tables.without_records(self._name, self._catalog, self._control.records())

    def _orphans(self, looks: dict[str, Look], unreadable: set[str]) -> Iterator[Finding]:
        """Rows that name an item or a picture that is gone: those that seemed so, looked at once more."""
        if "items" in unreadable:
            return
        items = looks.get("items")
        known = pa.chunked_array([], pa.string()) if items is None else items.columns["item_id"]
        for name, seen in looks.items():
            if name.startswith((EMBEDDINGS, ADAPTED)) or name == DESCRIPTIONS:
                suspects = _missing(seen.columns["item_id"], known)
                existing = self._catalog.items.existing(suspects) if suspects else set()
                gone = [one for one in self._still(name, suspects) if one not in existing]
                if gone:
                    yield check_tables.orphans(self._name, name, gone)
        if items is not None and "pictures" not in unreadable:
            yield from self._pictures(items, looks.get("pictures"))

    def _still(self, name: str, item_ids: list[str]) -> list[str]:
        """Those of the items that a table still has rows of."""
        if not item_ids:
            return []
        table = next((one for one in self._catalog.tables() if one.name == name), None)
        if table is None:
            return []
        rows = table.select_in(["item_id"], column="item_id", values=item_ids)
        return sorted(set(rows["item_id"].to_pylist()))

    def _pictures(self, items: Look, pictures: Look | None) -> Iterator[Finding]:
        known = pa.chunked_array([], pa.string()) if pictures is None else pictures.columns["sha256"]
        named = items.columns["picture_sha256"]
        missing = self._catalog.pictures.missing(_missing(named, known))
        if missing:
            yield check_tables.without_picture(self._name, items, missing)
        unused = _missing(known, named)
        if unused:
            yield check_tables.unused_pictures(self._name, unused)

    def _pins(self) -> Iterator[Finding]:
        for pin in self._control.records().pins:
            if pin.catalog == self._name and pin.tag not in self._catalog.embeddings(pin.recipe_id).pins():
                yield fault(
                    "LOST_PIN",
                    catalog=self._name,
                    place=pin.recipe_id,
                    about=[pin.pin_id],
                    problem=f"the pin {pin.pin_id} of {pin.holder or 'nobody'} is to keep version {pin.version}, but "
                    "the table has no tag for it: the version may be cleaned up",
                    remedy="pin the newest version and read that",
                )


def _missing(wanted: pa.ChunkedArray, known: pa.ChunkedArray) -> list[str]:
    """Values that are not among the known ones, each once."""
    there = pc.drop_null(wanted).unique()
    lost = there.filter(pc.invert(pc.is_in(there, value_set=known.combine_chunks())))
    return sorted(lost.to_pylist())


def _lasting(look_once: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """What is found each time: deletions and creations that are under way have ended by then."""
    found = list(look_once())
    for _ in range(_TIMES - 1):
        if all(one.kind in check_tables.AT_REST for one in found):
            break
        time.sleep(_AGAIN_SECONDS)
        again = {(one.kind, one.catalog, one.place): one for one in look_once()}
        found = [again[key] for one in found if (key := (one.kind, one.catalog, one.place)) in again]
    return found


def _of_model(control: Control, model: ModelRecord, *, contents: bool) -> Iterator[Finding]:
    folder = Path(model.artefact_path)
    faults = dict(stored_files.damaged(folder, model.manifest_json, contents=contents))
    if not faults:
        return
    if model.ref not in {row.ref for row in control.records().models if row.catalog == model.catalog}:
        return  # deleted meanwhile
    first = next(iter(faults))
    yield fault(
        "MODEL_FILES",
        catalog=model.catalog,
        place=model.ref,
        about=list(faults),
        problem=f"files of the model {model.ref} in {folder} are damaged or missing: {first} {faults[first]}",
        remedy=f"copy them into {folder} from the folder that was published, or from a snapshot "
        f"(store/artefacts/{model.catalog}/{model.name}/{model.version}); or promote another model, delete this one "
        "and publish it again",
    )


def _folders(store: Store, records: Records, artefacts: Path) -> Iterator[Finding]:
    """Folders that nothing in the control database tells of."""
    catalogs = {encoded(row.name) for row in records.catalogs}
    remedy = "remove the folder; nothing reads it"
    if "://" not in store.uri:
        for folder in Path(store.uri).glob("catalogs/*"):
            if folder.name not in catalogs and any(folder.glob("*.lance")):
                yield leftover(
                    "FOLDER_WITHOUT_CATALOG",
                    catalog="",
                    place=str(folder),
                    about=[folder.name],
                    problem=f"{folder} holds tables of a catalog that does not exist",
                    remedy=remedy + ". Where the catalog is missed, restore the control database instead",
                )
    models = {(model.catalog, model.name, str(model.version)) for model in records.models}
    for folder in artefacts.glob("[!.]*/*/*"):
        if folder.is_dir() and folder.relative_to(artefacts).parts not in models:
            yield leftover(
                "FOLDER_WITHOUT_MODEL",
                catalog="",
                place=str(folder),
                about=[folder.name],
                problem=f"{folder} holds the files of a model that does not exist",
                remedy=remedy,
            )


def _broken(line: str) -> Finding:
    return fault(
        "BROKEN_CONTROL_DATABASE",
        catalog="",
        place="control database",
        about=[line],
        problem=f"SQLite finds the control database's file damaged: {line}",
        remedy="stop the server and restore the store from a snapshot",
    )
