"""Which vectors of a model are out of date, against the same written naively."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tiny_artefact
from dmesr_server.serving.artefact import Artefact, load
from dmesr_server.serving.inputs import Changes, changes, input_hashes
from dmesr_server.store import CatalogStore, ItemWrite, SourceColumn, Store

#: By item and source; "bare" has a row without any vector, "unknown" vectors but no item.
HASHES: Mapping[str, Mapping[str, str | None]] = {
    "a": {"text": "f00", "image": "b4d"},
    "b": {"text": "f00", "image": None},
    "c": {"text": None, "image": 'odd "hash" é'},
    "bare": {"text": None, "image": None},
    "unknown": {"text": "f00", "image": "b4d"},
}
#: What was learned of single items: "d" has no vector of any source, "stranger" is no item of the catalog.
LEARNED = {"a": (3, None), "d": (2, [1.0] * 5), "stranger": (9, [1.0] * 5)}


def _naive(*values: str | None) -> str:
    return hashlib.sha256(json.dumps(list(values)).encode()).hexdigest()


def _column(source: str, hashes: Mapping[str, Mapping[str, str | None]]) -> SourceColumn:
    mine = [hashes[item_id][source] for item_id in hashes]
    vectors = np.ones((len(mine), tiny_artefact.DIMS[source]), np.float32)
    return SourceColumn(vectors, np.array([one is not None for one in mine]), mine)


@pytest.fixture
def catalog(tmp_path: Path) -> CatalogStore:
    found = Store(uri=str(tmp_path / "store")).catalog("films")
    found.items.upsert([ItemWrite(item_id, {"title": item_id}, None) for item_id in ("a", "b", "c", "d", "bare")])
    embeddings = found.embeddings("r1")
    for source, dim in tiny_artefact.DIMS.items():
        embeddings.declare(source, dim)
    embeddings.upsert(list(HASHES), {source: _column(source, HASHES) for source in tiny_artefact.DIMS})
    return found


@pytest.fixture
def artefact(tmp_path: Path) -> Artefact:
    folder = tiny_artefact.write(tmp_path / "artefact", recipe_id="r1", items=LEARNED)
    return load(folder, verify_checksums=True)


def _due(found: Changes) -> dict[str, str]:
    return dict(zip(found.due["item_id"].to_pylist(), found.due["input_hash"].to_pylist(), strict=True))


def test_every_item_with_a_source_or_a_learned_part_is_due_at_first(catalog: CatalogStore, artefact: Artefact):
    found = changes(artefact, catalog, catalog.adapted("dmesr:1", tiny_artefact.V))
    digest = artefact.digest
    assert _due(found) == {
        "a": _naive(digest, "f00", "b4d"),
        "b": _naive(digest, "f00", None),
        "c": _naive(digest, None, 'odd "hash" é'),
        "d": _naive(digest, None, None),
    }
    assert found.gone.to_pylist() == []


def test_only_what_has_changed_since_is_due(catalog: CatalogStore, artefact: Artefact):
    table = catalog.adapted("dmesr:1", tiny_artefact.V)
    due = _due(changes(artefact, catalog, table))
    table.upsert([*due, "left over"], np.ones((len(due) + 1, tiny_artefact.V), np.float32), [*due.values(), "0"])
    found = changes(artefact, catalog, table)
    assert (_due(found), found.gone.to_pylist()) == ({}, ["left over"])

    catalog.embeddings("r1").upsert(["b"], {"text": _column("text", {"b": {"text": "new"}})})
    catalog.items.delete(["a"])
    found = changes(artefact, catalog, table)
    assert _due(found) == {"b": _naive(artefact.digest, "new", None)}
    assert sorted(found.gone.to_pylist()) == ["a", "left over"]


def test_a_source_that_the_recipe_never_had_counts_as_absent(tmp_path: Path, artefact: Artefact):
    catalog = Store(uri=str(tmp_path / "other")).catalog("films")
    catalog.items.upsert([ItemWrite("a", {"title": "a"}, None)])
    catalog.embeddings("r1").declare("text", 3)
    catalog.embeddings("r1").upsert(["a"], {"text": _column("text", {"a": {"text": "f00"}})})
    found = changes(artefact, catalog, catalog.adapted("dmesr:1", tiny_artefact.V))
    assert _due(found) == {"a": _naive(artefact.digest, "f00", None)}


def test_a_model_without_sources_has_what_was_learned(catalog: CatalogStore, tmp_path: Path):
    folder = tiny_artefact.write(tmp_path / "none", recipe_id="", items=LEARNED, sources=())
    alone = load(folder, verify_checksums=True)
    found = changes(alone, catalog, catalog.adapted("none:1", tiny_artefact.V))
    assert _due(found) == {"d": _naive(alone.digest)}


def test_hashes_of_no_rows():
    assert input_hashes("m", [pa.nulls(0, pa.string())], rows=0) == []
    assert input_hashes("m", [], rows=2) == [_naive("m")] * 2
