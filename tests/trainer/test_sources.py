from __future__ import annotations

from collections.abc import Callable

import dmesr
import numpy as np
import pytest
from dmesr_trainer.sources import Sources, content_groups, fetch
from running_server import RunningServer


def _sources(**changes: object) -> Sources:
    values = {
        "item_ids": ("a", "b", "c"),
        "vectors": {"text": np.array([[1, 2], [0, 0], [5, 6]], np.float32)},
        "present": {"text": np.array([True, False, True])},
    }
    return Sources(**{**values, **changes})


def test_alignment_follows_the_items_and_unknown_ones_have_nothing():
    aligned = _sources().aligned(["c", "x", "b", "a"])
    assert aligned.item_ids == ("c", "x", "b", "a")
    assert aligned.vectors["text"].tolist() == [[5, 6], [0, 0], [0, 0], [1, 2]]
    assert aligned.present["text"].tolist() == [True, False, False, True]
    assert aligned.coverage() == {"text": 2}


def test_alignment_of_an_empty_recipe():
    empty = _sources(
        item_ids=(), vectors={"text": np.zeros((0, 2), np.float32)}, present={"text": np.zeros(0, bool)}
    ).aligned(["a"])
    assert empty.present["text"].tolist() == [False]
    assert empty.vectors["text"].tolist() == [[0, 0]]


def test_equal_vectors_share_a_group_and_absent_ones_have_none():
    vectors_ND0 = np.array([[1, 2], [3, 4], [1, 2], [1, 2], [0, 0]], np.float32)
    groups_N = content_groups(vectors_ND0, np.array([True, True, True, False, True])).tolist()
    assert groups_N[0] == groups_N[2]
    assert len({groups_N[0], groups_N[1], groups_N[4]}) == 3
    assert groups_N[3] == -1


def test_a_vector_that_is_no_number_names_its_item():
    vectors = np.array([[1, 2], [np.nan, 0], [np.inf, 6]], np.float32)
    # That of "b" is absent, so only "c" is wrong.
    with pytest.raises(ValueError, match=r"source 'text': the vector of item 'c' has NaN or infinite .*1 such"):
        _sources(vectors={"text": vectors})


def test_shapes_that_do_not_fit_are_told():
    with pytest.raises(ValueError, match=r"source 'text': expected 3 rows, one an item; got vectors \(2, 2\)"):
        _sources(vectors={"text": np.zeros((2, 2), np.float32)})


@pytest.fixture
def client(start_server: Callable[..., RunningServer]):
    with dmesr.connect(start_server(enricher=False).address) as connected:
        connected.items.upsert(dmesr.Item(f"film-{number}", {"title": f"Film {number}"}) for number in range(6))
        yield connected


def test_fetch_reads_a_recipe_at_one_version_and_gives_the_pin_back(client: dmesr.Client):
    rng = np.random.default_rng(0)
    clip, own = rng.normal(size=(4, 8)).astype(np.float32), rng.normal(size=(5, 3)).astype(np.float32)
    for source, vectors in (("clip", clip), ("own", own)):
        client.embeddings.write(
            recipe="teams-own",
            source=source,
            item_ids=[f"film-{number}" for number in range(len(vectors))],
            vectors=vectors,
            create_recipe=True,
        )
    found = fetch(client, recipe="teams-own", item_ids=["film-1", "never-imported"])
    assert (found.recipe_id, len(found.digest)) == (client.embeddings.recipes()[0].recipe_id, 64)
    assert found.version == client.embeddings.read(recipe="teams-own").version
    assert found.coverage() == {"clip": 4, "own": 5}
    aligned = found.aligned(["film-4", "film-0"])
    np.testing.assert_array_equal(aligned.vectors["own"], own[[4, 0]])
    np.testing.assert_array_equal(aligned.vectors["clip"], np.stack([np.zeros(8), clip[0]]))
    assert fetch(client, recipe="teams-own", sources=["own"]).names == ("own",)


def test_fetch_says_when_nothing_fits(client: dmesr.Client):
    client.embeddings.write(
        recipe="teams-own",
        source="clip",
        item_ids=["film-0"],
        vectors=np.ones((1, 2), np.float32),
        create_recipe=True,
    )
    with pytest.raises(ValueError, match="none of the 2 items to train on has a vector in recipe 'teams-own'"):
        fetch(client, recipe="teams-own", item_ids=["film-1", "film-2"])
    with pytest.raises(dmesr.errors.RecipeNotFound):
        fetch(client, recipe="no-such-recipe")
