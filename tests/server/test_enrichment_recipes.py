from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
from dmesr_server.config import Config, EncoderConfig, EnrichmentConfig
from dmesr_server.enrichment import describers, encoders, recipes, rendering, routes
from dmesr_server.enrichment.describers import ImportedDescriber, PaletteDescriber
from dmesr_server.errors import ServiceError
from dmesr_server.store import StoredItem, attributes_hash

ATTRIBUTES = (("title", ("Heat (1995)",)), ("genres", ("Action", "Crime")))


@dataclass(frozen=True)
class Emb:
    """As much of an encoder as a recipe asks for."""

    fields: dict = field(default_factory=lambda: {"name": "x", "model": "m", "dim": 4})

    def recipe_fields(self) -> dict:
        return self.fields


def item(attributes=ATTRIBUTES, sha256: str | None = "ab" * 32) -> StoredItem:
    return StoredItem("1", attributes, sha256, attributes_hash(attributes), datetime.now(UTC))


def made(*, describer=None, encoder=None, domain: str = "film", language: str = "en") -> recipes.EmbeddingRecipe:
    return recipes.make(
        describer=describer or PaletteDescriber(workers=1), encoder=encoder or Emb(), domain=domain, language=language
    )


def test_original_text_enumerates_the_attributes_in_their_order():
    assert rendering.original_text(ATTRIBUTES) == "title: Heat (1995); genres: Action, Crime"
    messy = (("release_date", (" 15\tDec \n1995 ",)), ("empty", ("", " ")), ("note", ("a\x00b\u202ec",)))
    assert rendering.original_text(messy) == "release date: 15 Dec 1995; note: a b c"
    assert rendering.original_text((("title", ("",)),)) == ""


def test_routes_apply_where_their_input_is_there():
    nothing = item((), None)
    assert [routes.input_hash(nothing, route) for route in routes.ROUTES] == [None, None, None]
    assert routes.original_hash(nothing) is None
    text_only, picture_only, whole = item(sha256=None), item(()), item()
    assert [routes.input_hash(text_only, route) is not None for route in routes.ROUTES] == [True, False, False]
    assert [routes.input_hash(picture_only, route) is not None for route in routes.ROUTES] == [False, True, False]
    assert [routes.input_hash(whole, route) is not None for route in routes.ROUTES] == [True, True, True]
    blank = item((("title", (" ",)),), None)
    assert routes.input_hash(blank, "text") is None


def test_a_new_poster_changes_image_and_hybrid_alone():
    before, after = item(), item(sha256="cd" * 32)
    changed = {route for route in routes.ROUTES if routes.input_hash(before, route) != routes.input_hash(after, route)}
    assert changed == {"image", "hybrid"}
    retitled = item((("title", ("Ronin",)),))
    changed = {
        route for route in routes.ROUTES if routes.input_hash(before, route) != routes.input_hash(retitled, route)
    }
    assert changed == {"text", "hybrid"}


def test_staleness():
    made_from = routes.input_hash(item(), "image")
    assert made_from is not None
    assert not routes.is_stale(item(), "image", made_from)
    assert routes.is_stale(item(sha256=None), "image", made_from)
    assert not routes.is_stale(item(sha256=None), "image", "")  # imported where there never was a picture


def test_routes_are_checked():
    assert routes.checked(["hybrid", "text", "text"]) == ("text", "hybrid")
    assert routes.checked([]) == ("text", "image", "hybrid")
    for unknown in ("smell", "original"):
        with pytest.raises(ServiceError) as caught:
            routes.checked([unknown])
        assert (caught.value.reason, caught.value.metadata["route"]) == ("UNKNOWN_ROUTE", unknown)


def test_what_shapes_a_text_or_a_vector_makes_another_recipe():
    base = made()
    assert made().recipe_id == base.recipe_id
    assert len(base.recipe_id) == 16
    others = {
        "domain": made(domain="book"),
        "encoder": made(encoder=Emb({"name": "x", "model": "n", "dim": 4})),
        "import": made(describer=ImportedDescriber(model="gpt-x", is_mllm=True)),
    }
    ids = {other.recipe_id for other in others.values()}
    assert len({base.recipe_id, *ids}) == 4
    # Another encoder encodes the same descriptions anew; nobody is asked to describe again.
    assert _description_ids(others["encoder"]) == _description_ids(base)
    assert _description_ids(others["domain"]) != _description_ids(base)


def test_palette_writes_english_whatever_the_catalog_speaks():
    assert made(language="de").recipe_id == made(language="en").recipe_id


def test_imports_are_told_apart_by_their_model():
    one = recipes.make_imported(model="gpt-a", is_mllm=True, encoder=Emb())
    other = recipes.make_imported(model="gpt-b", is_mllm=True, encoder=Emb())
    assert not set(_description_ids(one)) & set(_description_ids(other))
    assert one.descriptions["text"].spec["is_mllm"] is True


def test_recipe_does_not_depend_on_where_it_was_made(tiny_encoder):
    config = EncoderConfig(model=str(tiny_encoder))
    ids = {made(encoder=encoders.create(config)).recipe_id for _ in range(2)}
    assert len(ids) == 1


def test_unknown_describers_are_named():
    with pytest.raises(ServiceError) as caught:
        describers.create("clairvoyant", EnrichmentConfig())
    assert caught.value.reason == "DESCRIBER_UNAVAILABLE"
    assert "palette" in caught.value.message


def test_chosen_encoder():
    configured = Config().enrichment.encoder
    assert encoders.chosen("", configured) == configured
    assert encoders.chosen("some/model", configured).model == "some/model"
    assert encoders.chosen("bundled:all-MiniLM-L6-v2", configured) == configured
    assert encoders.chosen("sentence-transformers:some/model", configured) == configured.model_copy(
        update={"model": "some/model"}
    )


def _description_ids(recipe: recipes.EmbeddingRecipe) -> list[str]:
    return [description.recipe_id for description in recipe.descriptions.values()]
