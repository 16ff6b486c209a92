"""Models and recommendations through the SDK, on a real server, with an artefact small enough to check by hand."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import dmesr
import dmesr.aio
import numpy as np
import pytest
from dmesr import Item
from running_server import RunningServer

from server import tiny_artefact

TEXT = {"a": [1, 0, 0], "b": [0, 1, 0], "c": [0, 0, 1], "new": [1, 1, 0]}
IMAGE = {"a": [1, 0], "c": [0, 1]}
KNOWN = {"a": (5, [0, 0, 0, 0, 0.5]), "b": (9, None), "c": (1, None)}
Artefact = Callable[..., Path]


@pytest.fixture
def recipe_id(films: dmesr.Client) -> str:
    """A recipe with vectors of the team's own for the two sources that the artefact reads."""
    films.items.upsert(Item(item_id, {"title": item_id.upper(), "genres": ["x", "y"]}) for item_id in TEXT)
    for source, vectors in (("text", TEXT), ("image", IMAGE)):
        films.embeddings.write(
            source=source,
            item_ids=list(vectors),
            vectors=np.array(list(vectors.values()), np.float32),
            recipe="mine",
            create_recipe=True,
        )
    return films.embeddings.stats("mine").recipe.recipe_id


@pytest.fixture
def artefact(tmp_path: Path, recipe_id: str) -> Artefact:
    """Writes artefacts; each seed makes a model of its own."""

    def make(*, seed: int = 0) -> Path:
        return tiny_artefact.write(
            tmp_path / f"artefact-{seed}",
            recipe_id=recipe_id,
            items=KNOWN | {"b": (9 + seed, None)},
            manifest_changes={"metrics": {"ndcg@10": 0.25}},
        )

    return make


def test_from_publishing_to_recommending(films: dmesr.Client, artefact: Artefact, recipe_id: str):
    model = films.models.publish(artefact(), name="tiny")
    assert (model.ref, model.state, model.recipe_id) == ("tiny:1", dmesr.ModelState.READY, recipe_id)
    assert (model.items_adapted, model.aliases, model.problem) == (4, (), None)
    assert model.manifest["metrics"] == {"ndcg@10": 0.25}
    assert model.create_time is not None
    assert films.models.promote("tiny").aliases == ("production",)

    found = films.recommend(history=["a", "nobody"], k=2, attributes=["title", "genres"])
    assert (found.model, found.strategy, found.unknown_item_ids) == ("tiny:1", dmesr.Strategy.MODEL, ("nobody",))
    user = tiny_artefact.user_vector(
        [tiny_artefact.item_vector({"text": TEXT["a"], "image": IMAGE["a"]}, KNOWN["a"][1])]
    )
    scores = {
        item_id: float(user @ tiny_artefact.item_vector({"text": TEXT[item_id], "image": IMAGE.get(item_id)}))
        for item_id in ("b", "c", "new")
    }
    best = sorted(scores, key=lambda item_id: -scores[item_id])[:2]
    assert [one.item_id for one in found] == best
    assert (len(found), found[0], found[:1]) == (2, next(iter(found)), (found[0],))
    for one in found:
        assert one.score == pytest.approx(scores[one.item_id], abs=1e-5)
        assert sum(one.shares.values()) == pytest.approx(one.score, abs=1e-5)
        assert set(one.shares) == {"coarse", "fine", "bias"}
        assert one.attributes == {"title": [one.item_id.upper()], "genres": ["x", "y"]}
        assert one.is_new == (one.item_id == "new")


def test_what_a_list_may_hold(films: dmesr.Client, artefact: Artefact):
    films.models.publish(artefact(), name="tiny")
    ref = "tiny:1"
    assert "a" in [one.item_id for one in films.recommend(history=["a"], model=ref, exclude_seen=False)]
    assert [one.item_id for one in films.recommend(history=["a"], model=ref, allow=["c", "a"])] == ["c"]
    assert {one.item_id for one in films.recommend(history=["a"], model=ref, deny=["c"])} == {"b", "new"}
    popular = films.recommend(history=[], model=ref, k=2)
    assert popular.strategy is dmesr.Strategy.POPULARITY
    assert [one.item_id for one in popular] == ["b", "a"]


def test_many_histories(films: dmesr.Client, artefact: Artefact):
    films.models.publish(artefact(), name="tiny")
    histories = [["a"], ["b"], [], ["c", "a"], ["nobody"], ["a", "b", "c"]]  # the server takes 4 in one call
    lists = films.recommend_batch(histories=histories, k=3, model="tiny")
    assert [found.recommendations for found in lists] == [
        films.recommend(history=history, k=3, model="tiny").recommendations for history in histories
    ]
    assert {found.model for found in lists} == {"tiny:1"}
    assert films.recommend_batch(histories=[], model="tiny") == []


def test_versions_and_aliases(films: dmesr.Client, artefact: Artefact):
    folder = artefact(seed=1)
    first = films.models.publish(folder, name="tiny")
    assert films.models.publish(artefact(seed=2), name="tiny").ref == "tiny:2"
    assert films.models.publish(folder, name="tiny").ref == "tiny:1"  # the same artefact is the same model
    assert [model.ref for model in films.models.list()] == ["tiny:2", "tiny:1"]
    assert films.models.get("tiny").version == 2
    films.models.promote("tiny:1")
    with pytest.raises(dmesr.NoEarlierModel):
        films.models.rollback()
    films.models.promote("tiny:2")
    assert films.models.get().ref == "tiny:2"
    with pytest.raises(dmesr.ModelInUse):
        films.models.delete("tiny:2")
    assert films.models.rollback().ref == "tiny:1"
    films.models.delete("tiny:2")
    with pytest.raises(dmesr.ModelNotFound):
        films.models.get("tiny:2")
    assert films.models.get("production").digest == first.digest


def test_adapted_vectors(films: dmesr.Client, artefact: Artefact):
    films.models.publish(artefact(), name="tiny")
    found = films.embeddings.read(model="tiny")
    assert (found.model, found.sources, found.ids) == ("tiny:1", ("vector",), ["a", "b", "c", "new"])
    expected = [
        tiny_artefact.item_vector({"text": TEXT[i], "image": IMAGE.get(i)}, KNOWN.get(i, (0, None))[1]) for i in TEXT
    ]
    np.testing.assert_allclose(found.matrix("vector"), expected, atol=1e-6)
    some = films.embeddings.read(model="tiny:1", item_ids=["new", "nobody"])
    assert some.found.tolist() == [True, False]
    near = films.embeddings.neighbours(item_id="a", model="tiny", k=1)
    assert len(near) == 1


def test_a_folder_that_is_no_artefact_never_travels(films: dmesr.Client, artefact: Artefact, tmp_path: Path):
    with pytest.raises(dmesr.InvalidInput, match=r"cannot read .*manifest\.json: No such file"):
        films.models.publish(tmp_path, name="tiny")
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(dmesr.InvalidInput, match="is no JSON"):
        films.models.publish(tmp_path, name="tiny")
    (tmp_path / "manifest.json").write_text('{"files": {"../secret": {}}}')
    with pytest.raises(dmesr.InvalidInput, match=r"lists '\.\./secret'"):
        films.models.publish(tmp_path, name="tiny")
    folder = artefact()
    (folder / "items.arrow").unlink()
    with pytest.raises(dmesr.InvalidInput, match=r"lists 'items\.arrow'"):
        films.models.publish(folder, name="tiny")


def test_an_artefact_that_was_changed_is_refused(films: dmesr.Client, artefact: Artefact):
    folder = artefact()
    with (folder / "items.arrow").open("ab") as file:
        file.write(b"x")
    with pytest.raises(dmesr.InvalidArtefact, match=r"items\.arrow"):
        films.models.publish(folder, name="tiny")
    with pytest.raises(dmesr.InvalidField, match="name"):
        films.models.publish(shutil.copytree(folder, folder.parent / "copy"), name="Not A Name")


def test_filters_and_fallbacks(films: dmesr.Client, artefact: Artefact):
    films.models.promote(films.models.publish(artefact(), name="tiny").ref)
    found = films.recommend(history=["a"], k=1, filter='genres has "y" and title in ["NEW", "C"]')
    assert [one.item_id for one in found] == ["new"]
    assert (found.alias, found.strategy) == ("production", dmesr.Strategy.MODEL)
    lists = films.recommend_batch(histories=[["a"], []], k=9, filter='not title = "B"', fallback="c")
    assert [{one.item_id for one in found} for found in lists] == [{"c", "new"}, {"a", "new"}]
    assert [found.strategy for found in lists] == [dmesr.Strategy.MODEL, dmesr.Strategy.SIMILAR]
    with pytest.raises(dmesr.InvalidFilter, match="at character 12") as caught:
        films.recommend(history=["a"], filter="genres has y")
    assert caught.value.metadata["position"] == "11"


def test_two_aliases_side_by_side(films: dmesr.Client, artefact: Artefact):
    for seed, alias in ((0, "production"), (1, "candidate")):
        films.models.promote(films.models.publish(artefact(seed=seed), name="tiny").ref, alias=alias)
    assert [(one.name, one.model, one.split) for one in films.models.aliases()] == [
        ("candidate", "tiny:2", None),
        ("production", "tiny:1", None),
    ]
    now = films.models.split(share=0.5, other="candidate")
    assert now.split is not None
    assert (now.name, now.split.other, now.split.share) == ("production", "candidate", 0.5)
    assert films.models.aliases()[1] == now
    by_unit = {unit: films.recommend(history=["a"], unit=unit).alias for unit in map(str, range(30))}
    assert set(by_unit.values()) == {"production", "candidate"}
    for unit, alias in by_unit.items():
        (found,) = films.recommend_batch(histories=[["a"]], unit=unit)
        assert (found.alias, found.model) == (alias, {"production": "tiny:1", "candidate": "tiny:2"}[alias])
    assert films.models.split(share=0).split is None
    assert films.recommend(history=["a"]).alias == "production"
    assert films.recommend(history=["a"], model="tiny:2").alias == ""
    with pytest.raises(dmesr.AliasNotFound):
        films.models.split(share=0.1, other="nobody")
    for share, other in ((2, "candidate"), (0.5, None), (0.5, "")):
        with pytest.raises(dmesr.InvalidInput):
            films.models.split(share=share, other=other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"history": "a"}, "history is one string"),
        ({"history": [1]}, r"history\[0\] is 1"),
        ({"history": [], "k": 0}, "k is 0"),
        ({"history": [], "allow": []}, "allow is empty; nothing could be recommended"),
        ({"history": [], "model": ""}, "model is ''"),
        ({"history": [], "fallback": ""}, "fallback is ''"),
        ({"history": [], "unit": 7}, "unit is 7"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(films: dmesr.Client, arguments: dict[str, object], message: str):
    with pytest.raises(dmesr.InvalidInput, match=message):
        films.recommend(**arguments)  # type: ignore[arg-type]


def test_what_does_not_exist_is_named(films: dmesr.Client):
    for call in (
        lambda: films.recommend(history=[]),
        lambda: films.recommend_batch(histories=[[]], model="none:3"),
        lambda: films.models.get("none"),
        lambda: films.models.promote("none"),
        lambda: films.models.delete("none:1"),
    ):
        with pytest.raises(dmesr.NotFound):
            call()
    with pytest.raises(dmesr.AliasNotFound):
        films.models.rollback()
    assert list(films.models.list()) == []


async def test_the_async_face(sdk_server: RunningServer, films: dmesr.Client, artefact: Artefact):
    async with dmesr.aio.connect(sdk_server.address, catalog=films.catalog_name) as client:
        model = await client.models.publish(artefact(), name="tiny", wait=False)
        assert model.state in (dmesr.ModelState.ADAPTING, dmesr.ModelState.READY)
        while model.state is not dmesr.ModelState.READY:
            model = await client.models.get(model.ref)
        await client.models.promote(model.ref)
        assert [one.ref async for one in client.models.list()] == ["tiny:1"]
        found = await client.recommend(history=["a"], filter="title exists", unit="u")
        assert (await client.models.aliases())[0].split is (await client.models.split(share=0)).split
        assert (await client.recommend_batch(histories=[["a"]]))[0].recommendations == found.recommendations
