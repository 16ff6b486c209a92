from __future__ import annotations

import pytest
from dmesr_server.control import Control, DescriptionRecipeRow
from dmesr_server.errors import ServiceError
from store_workers import in_threads


@pytest.fixture
def recipes(control_url):
    control = Control(control_url)
    control.migrate()
    control.catalogs.create("films")
    control.catalogs.create("games")
    yield control.recipes
    control.close()


def not_found(act, *arguments) -> None:
    with pytest.raises(ServiceError) as caught:
        act(*arguments)
    assert caught.value.reason == "RECIPE_NOT_FOUND"


def test_recipes_are_kept_as_they_were_first_said(recipes):
    spec = {"describer": "palette", "is_mllm": False, "ünï": ["cödé", None, 1.5], "b": 1, "a": 2}
    recipe = DescriptionRecipeRow("d1", "text", spec)
    recipes.save_description("films", recipe)
    recipes.save_description("films", recipe)
    recipes.save_description("games", recipe)
    assert recipes.description("d1") == recipe
    assert list(recipes.description("d1").spec) == list(spec), "the order of keys too"
    not_found(recipes.description, "d2")

    recipes.save_embedding("films", "e1", {"model": "m"}, {"text": "d1"})
    first = recipes.resolve("films", "e1")
    recipes.save_embedding("films", "e1", {"model": "m"}, {"text": "d1"})
    assert recipes.resolve("films", "e1") == first
    assert (first.spec, first.description_recipes, first.names) == ({"model": "m"}, {"text": "d1"}, ())
    not_found(recipes.resolve, "games", "e1")


def test_names_move_and_ids_stay(recipes):
    for recipe_id in ("e1", "e2"):
        recipes.save_embedding("films", recipe_id, {}, {})
    recipes.bind("films", "default", "e1")
    recipes.bind("films", "mine", "e1")
    recipes.bind("films", "default", "e2")
    recipes.bind("films", "default", "e2")
    assert recipes.resolve("films", "default").recipe_id == "e2"
    assert recipes.resolve("films", "e1").names == ("mine",)
    assert [(recipe.recipe_id, recipe.names) for recipe in recipes.list("films")] == [
        ("e2", ("default",)),
        ("e1", ("mine",)),
    ]
    assert recipes.list("games") == []
    not_found(recipes.resolve, "films", "other")
    not_found(recipes.resolve, "games", "default")
    not_found(recipes.bind, "games", "default", "e1")


def test_names_of_one_catalog_are_not_anothers(recipes):
    for catalog in ("films", "games"):
        recipes.save_embedding(catalog, "e1", {}, {})
    recipes.bind("films", "default", "e1")
    assert recipes.resolve("games", "e1").names == ()


def test_threads_save_and_bind_the_same(recipes):
    def save(number: int) -> None:
        recipes.save_embedding("films", "e1", {"m": 1}, {})
        recipes.bind("films", "default", "e1")

    in_threads(save, [(number,) for number in range(8)])
    assert [recipe.names for recipe in recipes.list("films")] == [("default",)]
