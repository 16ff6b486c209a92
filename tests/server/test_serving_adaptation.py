"""A model's vectors follow the embeddings, a pass at a time."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import tiny_artefact
from dmesr_server.config import ServingConfig
from dmesr_server.control import Control
from dmesr_server.serving import codes
from dmesr_server.serving.adaptation import Adaptation
from dmesr_server.serving.artefact import load
from dmesr_server.serving.index import ItemIndex
from dmesr_server.serving.index_files import IndexFiles
from dmesr_server.store import CatalogStore, ItemWrite, SourceColumn, Store
from resident import linux, resident_bytes

CATALOG, MODEL = "films", "tiny"
TEXTS = {"a": [1, 0, 0], "b": [0, 1, 0]}


class Clock:
    """Stands still but for what a look at it takes."""

    def __init__(self) -> None:
        self.now = 0.0
        self.look = 0.0

    def __call__(self) -> float:
        self.now += self.look
        return self.now


class World:
    """A catalog whose items have texts, and a model over it that is to be adapted."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clock = folder, Clock()
        self.store, self.control = Store(uri=str(folder / "store")), Control(f"sqlite:///{folder}/control.sqlite")
        self.control.migrate()
        self.control.catalogs.create(CATALOG)
        self.write(TEXTS)
        path = tiny_artefact.write(folder / "artefact", recipe_id="r1", items={}, sources=("text",))
        artefact = load(path, verify_checksums=True)
        self.control.models.create(
            CATALOG, MODEL, artefact.digest, "r1", artefact.manifest_json, lambda version: str(path)
        )
        self.adaptation = Adaptation(
            store=self.store,
            control=self.control,
            config=ServingConfig(),
            files=IndexFiles(folder / "indexes"),
            owner="test",
            clock=self.clock,
        )

    @property
    def catalog(self) -> CatalogStore:
        return self.store.catalog(CATALOG)

    def write(self, texts: Mapping[str, Sequence[float]]) -> None:
        self.catalog.items.upsert([ItemWrite(item_id, {"title": item_id}, None) for item_id in texts])
        embeddings = self.catalog.embeddings("r1")
        embeddings.declare("text", 3)
        vectors = np.array(list(texts.values()), np.float32)
        hashes = [str(vector) for vector in texts.values()]
        embeddings.upsert(list(texts), {"text": SourceColumn(vectors, np.ones(len(texts), bool), hashes)})

    @property
    def state(self) -> str:
        return self.control.models.resolve(CATALOG, f"{MODEL}:1").state

    def open(self, files: IndexFiles) -> ItemIndex:
        row = self.control.models.resolve(CATALOG, f"{MODEL}:1")
        index, _ = files.open(
            table=self.catalog.adapted(f"{MODEL}:1", tiny_artefact.V),
            artefact=Path(row.artefact_path),
            digest=row.digest,
            vector_dim=tiny_artefact.V,
        )
        return index

    def vectors(self) -> dict[str, list[float]]:
        ids, vectors_NV = self.catalog.adapted(f"{MODEL}:1", tiny_artefact.V).read_all()
        return dict(zip(ids, vectors_NV.tolist(), strict=True))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def expected(texts: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    return {item_id: tiny_artefact.item_vector({"text": vector}).tolist() for item_id, vector in texts.items()}


def test_a_model_is_ready_once_its_index_is_written(world: World):
    assert world.adaptation.step()
    assert (world.state, world.vectors()) == ("READY", expected(TEXTS))
    assert len(list((world.folder / "indexes").glob("*/vectors.npy"))) == 1
    assert not world.adaptation.step(), "nothing has changed"


@linux
@pytest.mark.parametrize("coded", [True, False])
def test_pages_are_handed_back_where_codes_spare_most_of_them(
    world: World, coded: bool, monkeypatch: pytest.MonkeyPatch
):
    if coded:
        if codes._queries_here() is None:
            pytest.skip("this processor's products of 8-bit numbers are not exact")
        monkeypatch.setattr(codes, "_WORTH_CODES", 1)
    world.adaptation.step()
    index = world.open(IndexFiles(world.folder / "indexes"))
    assert index.folder is not None
    assert dict(zip(index.ids, index.vectors_NV.tolist(), strict=True)) == expected(TEXTS)
    assert resident_bytes(index.folder / "vectors.npy") > 0
    index.hand_back()
    left = resident_bytes(index.folder / "vectors.npy")
    assert left == 0 if coded else left > 0, "without codes every question looks at every page"
    assert dict(zip(index.ids, index.vectors_NV.tolist(), strict=True)) == expected(TEXTS)


class TakenAway(IndexFiles):
    """Whose files a newer index takes away once they are mapped."""

    def keep(self, index: ItemIndex) -> None:
        super().keep(index)
        assert index.folder is not None
        shutil.rmtree(index.folder)


def test_an_index_that_is_taken_away_once_it_is_mapped_serves_on(world: World):
    world.adaptation.step()
    index = world.open(TakenAway(world.folder / "indexes"))
    assert not list((world.folder / "indexes").glob("*/vectors.npy"))
    assert dict(zip(index.ids, index.vectors_NV.tolist(), strict=True)) == expected(TEXTS)


def test_changes_are_followed(world: World):
    world.adaptation.step()
    world.write({"b": [3, 0, 0], "new": [0, 0, 1]})
    world.catalog.items.delete(["a"])
    assert world.adaptation.step()
    assert world.vectors() == expected({"b": [3, 0, 0], "new": [0, 0, 1]})


def test_a_model_rests_as_long_as_the_look_at_its_items_took(world: World):
    world.clock.look = 10.0  # by this clock, which is asked once before a look at the items and once after it
    world.adaptation.step()
    world.clock.look = 0.0
    world.write({"new": [0, 0, 1]})
    assert not world.adaptation.step(), "it looked just now"
    world.clock.now += 10.0
    assert world.adaptation.step()
    assert world.vectors() == expected({**TEXTS, "new": [0, 0, 1]})
