"""Vectors through the SDK, on a real server: a team's own, read back, searched, pinned."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence

import dmesr
import dmesr.aio
import numpy as np
import pytest
from dmesr import Item
from running_server import RunningServer

N, D = 130, 6


@pytest.fixture
def ids(films: dmesr.Client) -> list[str]:
    """The ids of N items, some beyond what the server takes in one call."""
    names = [f"{n:03}" for n in range(N)]
    films.items.upsert(Item(name, {"title": name}) for name in names)
    return names


@pytest.fixture
def vectors() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((N, D), dtype=np.float32)


def test_what_is_written_is_what_is_read(films: dmesr.Client, ids: list[str], vectors: np.ndarray):
    written = films.embeddings.write(
        source="clip", item_ids=ids[10:], vectors=vectors[10:], recipe="mine", create_recipe=True
    )
    assert (written.inserted, written.rejected) == (N - 10, ())
    again = films.embeddings.write(source="clip", item_ids=ids[10:20], vectors=vectors[10:20], recipe="mine")
    assert (again.updated, again.unchanged) == (0, 10)

    whole = films.embeddings.read(recipe="mine")
    assert whole.ids == ids[10:]
    assert whole.sources == ("clip",)
    np.testing.assert_array_equal(whole.matrix("clip"), vectors[10:])
    assert whole.present("clip").all()
    assert whole.found.all()
    assert (whole.model, whole.version > 0) == (None, True)

    backwards = films.embeddings.read(recipe=whole.recipe_id, sources=["clip"], item_ids=[*ids[::-1], "unknown"])
    assert backwards.ids == [*ids[::-1], "unknown"]
    np.testing.assert_array_equal(backwards.matrix("clip")[: N - 10], vectors[10:][::-1])
    np.testing.assert_array_equal(backwards.matrix("clip")[N - 10 :], np.zeros((11, D)))
    assert backwards.present("clip").tolist() == [True] * (N - 10) + [False] * 11
    assert not backwards.found[-1]

    half = films.embeddings.read(recipe="mine", dtype="float16")
    assert half.matrix("clip").dtype == np.float16
    np.testing.assert_array_equal(half.matrix("clip"), vectors[10:].astype(np.float16))


def test_a_read_of_many_messages(films: dmesr.Client, ids: list[str]):
    wide = np.random.default_rng(1).standard_normal((N, 8_000), dtype=np.float32)  # 4 MB, and a message holds 3
    films.embeddings.write(source="wide", item_ids=ids, vectors=wide, recipe="mine", create_recipe=True)
    found = films.embeddings.read(recipe="mine")
    np.testing.assert_array_equal(found.matrix("wide"), wide)
    assert found.matrix("wide").flags.writeable  # put together from several messages


def test_two_sources_of_one_recipe(films: dmesr.Client, ids: list[str], vectors: np.ndarray):
    films.embeddings.write(source="a", item_ids=ids[:2], vectors=vectors[:2], recipe="mine", create_recipe=True)
    films.embeddings.write(source="b", item_ids=ids[1:3], vectors=vectors[1:3, :2], recipe="mine")
    found = films.embeddings.read(recipe="mine")
    assert found.ids == ids[:3]
    assert {name: found.present(name).tolist() for name in found.sources} == {
        "a": [True, True, False],
        "b": [False, True, True],
    }
    np.testing.assert_array_equal(found.matrix("b"), [[0, 0], *vectors[1:3, :2]])
    assert films.embeddings.read(recipe="mine", sources=["b"]).sources == ("b",)
    stats = films.embeddings.stats("mine")
    assert (stats.items, stats.rows) == (N, 3)
    assert {one.source.name: (one.source.dim, one.source.present, one.source.external) for one in stats.sources} == {
        "a": (D, 2, True),
        "b": (2, 2, True),
    }
    assert [recipe.names for recipe in films.embeddings.recipes()] == [("mine",)]


def test_several_sources_are_written_at_once(films: dmesr.Client, ids: list[str], vectors: np.ndarray):
    """A row that is bad in one source is rejected with all; a source that is not written stays what it is."""
    films.embeddings.write(source="old", item_ids=ids[:50], vectors=vectors[:50], recipe="mine", create_recipe=True)
    broken = vectors.copy()
    broken[7] = np.nan
    half = (2 * vectors[:, :3]).astype(np.float16)
    written = films.embeddings.write(item_ids=ids, vectors={"one": broken, "two": half}, recipe="mine")
    assert (written.inserted, [row.item_id for row in written.rejected]) == (N - 1, ["007"])
    again = films.embeddings.write(item_ids=ids[:20], vectors={"two": half[:20], "one": vectors[:20]}, recipe="mine")
    assert (again.unchanged, again.inserted) == (19, 1)
    whole = films.embeddings.read(recipe="mine")
    np.testing.assert_array_equal(whole.matrix("one"), vectors)
    np.testing.assert_array_equal(whole.matrix("two"), half.astype(np.float32))
    np.testing.assert_array_equal(whole.matrix("old")[:50], vectors[:50])
    assert whole.present("old").sum() == 50


def test_a_source_is_named_once(films: dmesr.Client, ids: list[str], vectors: np.ndarray):
    for arguments, message in (
        ({"vectors": vectors}, "source is missing"),
        ({"vectors": {"one": vectors}, "source": "two"}, "give one of the two"),
        ({"vectors": {}}, "empty mapping"),
        ({"vectors": {"one": vectors, "two": vectors[1:]}}, "source 'two', items '000' to '129': 130 item ids"),
    ):
        with pytest.raises(dmesr.InvalidInput, match=message):
            films.embeddings.write(item_ids=ids, recipe="mine", create_recipe=True, **arguments)
    with pytest.raises(dmesr.InvalidField, match="'Two'"):
        films.embeddings.write(item_ids=ids, vectors={"Two": vectors}, recipe="mine", create_recipe=True)


def test_rows_that_are_not_numbers_are_rejected_alone(films: dmesr.Client, ids: list[str], vectors: np.ndarray):
    vectors[1, 2] = np.nan
    vectors[3, 0] = np.inf
    summary = films.embeddings.write(
        source="clip", item_ids=[*ids[:4], "unknown"], vectors=vectors[:5], recipe="mine", create_recipe=True
    )
    assert summary.inserted == 2
    assert {row.item_id: row.reason for row in summary.rejected} == {
        ids[1]: "NON_FINITE_VECTOR",
        ids[3]: "NON_FINITE_VECTOR",
        "unknown": "ITEM_NOT_FOUND",
    }


def test_batches_stream(films: dmesr.Client, ids: list[str], vectors: np.ndarray):
    def batches() -> Iterator[tuple[Sequence[str], np.ndarray]]:
        for start in range(0, N, 50):
            yield ids[start : start + 50], vectors[start : start + 50].astype(np.float16)

    summary = films.embeddings.write_batches(batches(), source="clip", recipe="mine", create_recipe=True)
    assert summary.inserted == N
    np.testing.assert_array_equal(films.embeddings.read(recipe="mine").matrix("clip"), vectors.astype(np.float16))


def test_a_width_that_differs_is_refused(films: dmesr.Client, ids: list[str], vectors: np.ndarray):
    films.embeddings.write(source="clip", item_ids=ids[:1], vectors=vectors[:1], recipe="mine", create_recipe=True)
    with pytest.raises(dmesr.DimensionMismatch, match="clip"):
        films.embeddings.write(source="clip", item_ids=ids[:1], vectors=vectors[:1, :3], recipe="mine")
    with pytest.raises(dmesr.InvalidInput, match="the batches before are 6 wide"):
        films.embeddings.write_batches(
            [(ids[:1], vectors[:1]), (ids[1:2], vectors[1:2, :3])], source="clip", recipe="mine"
        )


def test_what_does_not_exist_is_named(films: dmesr.Client, ids: list[str], vectors: np.ndarray):
    with pytest.raises(dmesr.RecipeNotFound):
        films.embeddings.read(recipe="none")
    with pytest.raises(dmesr.RecipeNotFound):
        films.embeddings.write(source="clip", item_ids=ids[:1], vectors=vectors[:1], recipe="none")
    with pytest.raises(dmesr.RecipeNotFound):
        films.embeddings.stats("none")
    with pytest.raises(dmesr.ModelNotFound):
        films.embeddings.read(model="none")
    films.embeddings.write(source="clip", item_ids=ids[:1], vectors=vectors[:1], recipe="mine", create_recipe=True)
    with pytest.raises(dmesr.SourceNotFound, match="image"):
        films.embeddings.read(recipe="mine", sources=["image"])
    with pytest.raises(dmesr.VersionNotFound):
        films.embeddings.read(recipe="mine", version=99)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"item_ids": []}, "item_ids is empty; pass None for all items"),
        ({"sources": []}, "sources is empty; pass None for all sources"),
        ({"sources": "text"}, "sources is one string"),
        ({"dtype": "float64"}, "dtype is 'float64'"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(films: dmesr.Client, arguments: dict[str, object], message: str):
    with pytest.raises(dmesr.InvalidInput, match=message):
        films.embeddings.read(**arguments)  # type: ignore[arg-type]


def test_neighbours(films: dmesr.Client, ids: list[str]):
    circle = np.array([[1, 0], [1, 0.1], [0, 1], [-1, 0]], np.float32)
    films.embeddings.write(source="clip", item_ids=ids[:4], vectors=circle, recipe="mine", create_recipe=True)
    near = films.embeddings.neighbours(item_id=ids[0], recipe="mine", source="clip", k=2)
    assert [one.item_id for one in near] == [ids[1], ids[2]]
    assert near[0].similarity == pytest.approx(1 / np.sqrt(1.01), abs=1e-6)
    assert near[1].similarity == pytest.approx(0, abs=1e-6)
    to_vector = films.embeddings.neighbours(vector=[-2.0, 0.0], recipe="mine", source="clip", k=1)
    assert [(one.item_id, round(one.similarity, 6)) for one in to_vector] == [(ids[3], 1.0)]
    with pytest.raises(dmesr.VectorMissing):
        films.embeddings.neighbours(item_id=ids[5], recipe="mine", source="clip")
    with pytest.raises(dmesr.DimensionMismatch):
        films.embeddings.neighbours(vector=[1.0], recipe="mine", source="clip")
    for arguments in ({}, {"item_id": ids[0], "vector": [1.0]}):
        with pytest.raises(dmesr.InvalidInput, match="one of item_id, vector and text"):
            films.embeddings.neighbours(**arguments)  # type: ignore[arg-type]
    with pytest.raises(dmesr.InvalidInput, match="k is 0"):
        films.embeddings.neighbours(item_id=ids[0], k=0)


def test_a_pin_keeps_what_was_there(films: dmesr.Client, ids: list[str], vectors: np.ndarray):
    films.embeddings.write(source="clip", item_ids=ids[:2], vectors=vectors[:2], recipe="mine", create_recipe=True)
    with films.embeddings.pin("mine", ttl_seconds=60, holder="a test") as pin:
        films.embeddings.write(source="clip", item_ids=ids[:3], vectors=vectors[1:4], recipe="mine")
        pinned = films.embeddings.read(recipe="mine", version=pin.version)
        assert pinned.version == pin.version
        np.testing.assert_array_equal(pinned.matrix("clip"), vectors[:2])
        assert films.embeddings.read(recipe="mine").ids == ids[:3]
        assert pin.recipe_id == pinned.recipe_id
        assert len(pin.digest) == 64
        assert pin.expire_time is not None
        pin.release()  # leaving `with` after that is no error
    with pytest.raises(dmesr.VersionNotFound):
        pin.release()


async def test_the_async_face(sdk_server: RunningServer, films: dmesr.Client, ids: list[str], vectors: np.ndarray):
    async def batches() -> AsyncIterator[tuple[Sequence[str], np.ndarray]]:
        yield ids[:50], vectors[:50]
        yield ids[50:], vectors[50:]

    async with dmesr.aio.connect(sdk_server.address, catalog=films.catalog_name) as client:
        written = await client.embeddings.write_batches(batches(), source="clip", recipe="mine", create_recipe=True)
        assert written.inserted == N
        async with await client.embeddings.pin("mine") as pin:
            found = await client.embeddings.read(recipe="mine", version=pin.version)
        np.testing.assert_array_equal(found.matrix("clip"), vectors)
        near = await client.embeddings.neighbours(item_id=ids[0], recipe="mine", source="clip", k=3)
        assert len(near) == 3
        assert (await client.embeddings.stats("mine")).rows == N
        assert len(await client.embeddings.recipes()) == 1
