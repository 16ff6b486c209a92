"""Prompts as they would be sent, on a machine that has neither the model's weights nor an endpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dmesr_server.enrichment import imports, previewing
from dmesr_server.enrichment.prompts import DONE
from dmesr_server.enrichment.specs import JobSpec
from dmesr_server.errors import ServiceError
from enriching import World, decoders, make_world, picture


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small files of a Qwen2.5-VL, and a file of weights that nobody could load."""
    folder = tmp_path_factory.mktemp("models") / "qwen"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl", "max_position_embeddings": 32_768}))
    sizes = {"patch_size": 14, "merge_size": 2, "min_pixels": 3_136, "max_pixels": 12_845_056}
    (folder / "preprocessor_config.json").write_text(json.dumps(sizes))
    (folder / "model.safetensors").write_bytes(b"no weights")
    return folder


@pytest.fixture
def asking(tmp_path: Path, tiny_encoder: Path, qwen: Path) -> Iterator[World]:
    """A world whose describer is `transformers`; one item with everything, one with text only."""
    mllm = {"model": str(qwen), "max_pixels": 28 * 28 * 100}
    world = make_world(
        tmp_path / "store", tiny_encoder, **{"enrichment.describer": "transformers", "enrichment.mllm": mllm}
    )
    world.control.catalogs.create("films", "film", "de")
    world.name = "films"
    world.put("1", title="Heat {domain}", genres="Crime", data=picture((9, 90, 200), size=(560, 840)))
    world.put("2", title="Ran")
    world.put("3", data=picture((9, 90, 200)))
    yield world
    world.heart.shutdown()
    world.control.close()
    world.store.close()


def preview(world: World, item_id: str, route: str, **asked: Any) -> previewing.Preview:
    return previewing.preview(
        control=world.control,
        config=world.config,
        catalog=world.control.catalogs.get(world.name),
        store=world.catalog,
        decoders=decoders(),
        item_id=item_id,
        route=route,
        **asked,
    )


def test_the_hybrid_prompt_with_one_round_of_refinement(asking: World):
    shown = preview(asking, "1", "hybrid")
    assert (shown.describer, shown.model.split("@")[0]) == ("transformers", "qwen")
    assert [(turn.role, turn.has_picture, turn.round, turn.is_placeholder) for turn in shown.turns] == [
        ("system", False, 0, False),
        ("user", True, 0, False),
        ("assistant", False, 1, True),
        ("user", False, 1, False),
        ("assistant", False, 1, True),
        ("user", False, 1, False),
    ]
    system, user, _, review, _, revise = (turn.text for turn in shown.turns)
    assert "film" in system
    assert "German" in system
    assert "title: Heat {domain}; genres: Crime" in user  # what stands in an attribute is never filled in
    assert DONE in review
    assert review != revise
    assert shown.picture_size_px == (229, 343)  # of about 100 squares of 28 by 28 pixels
    assert shown.picture_tokens == 8 * 12


def test_text_needs_no_picture_and_image_no_text(asking: World):
    text = preview(asking, "2", "text")
    assert [(turn.role, turn.has_picture) for turn in text.turns] == [("system", False), ("user", False)]
    assert (text.picture_size_px, text.picture_tokens) == (None, None)
    image = preview(asking, "3", "image")
    assert [turn.has_picture for turn in image.turns] == [False, True]
    assert image.picture_tokens is not None
    assert len(preview(asking, "1", "reflect").turns) == 2
    assert text.prompt_revision != image.prompt_revision


def test_it_is_the_recipe_that_a_job_would_make(asking: World):
    job = asking.start(JobSpec())
    made = asking.control.recipes.resolve("films", job.recipe_id).description_recipes
    shown = preview(asking, "1", "hybrid", recipe="default")
    assert shown.recipe_id == shown.asked_recipe_id == made["hybrid"]
    # Names the recipe's own describer, whatever is configured now; other settings are another recipe.
    other = make_world(
        Path(asking.config.store.uri),
        Path(asking.config.enrichment.encoder.model),
        **{"enrichment.describer": "palette", "enrichment.mllm": {"model": asking.config.enrichment.mllm.model}},
    )
    other.name = "films"
    changed = preview(other, "1", "hybrid", recipe="default")
    assert changed.describer == "transformers"
    assert changed.recipe_id != changed.asked_recipe_id == made["hybrid"]
    other.heart.shutdown()
    other.control.close()
    other.store.close()


def test_an_endpoint_is_not_called(asking: World):
    shown = preview(asking, "1", "image", describer="openai")
    assert shown.describer == "openai"
    assert shown.picture_tokens is None  # it alone knows
    assert shown.turns[1].has_picture


@pytest.mark.parametrize(
    ("item_id", "route", "asked", "reason", "said"),
    [
        ("nobody", "text", {}, "ITEM_NOT_FOUND", "nobody"),
        ("1", "smell", {}, "UNKNOWN_ROUTE", "smell"),
        ("2", "hybrid", {}, "ROUTE_NOT_APPLICABLE", "no picture"),
        ("3", "hybrid", {}, "ROUTE_NOT_APPLICABLE", "no text"),
        ("1", "text", {"describer": "palette"}, "NO_PROMPT", "palette"),
        ("1", "text", {"describer": "import"}, "NO_PROMPT", "import"),
        ("1", "text", {"describer": "oracle"}, "DESCRIBER_UNAVAILABLE", "oracle"),
        ("1", "text", {"recipe": "nothing"}, "RECIPE_NOT_FOUND", "nothing"),
    ],
)
def test_what_cannot_be_shown(asking: World, item_id: str, route: str, asked: dict[str, str], reason: str, said: str):
    with pytest.raises(ServiceError, match=said) as refused:
        preview(asking, item_id, route, **asked)
    assert refused.value.reason == reason


def test_imports_and_vectors_of_others_have_no_prompt(asking: World):
    imports.import_descriptions(
        control=asking.control,
        store=asking.catalog,
        config=asking.config,
        catalog="films",
        model="gpt-x",
        is_mllm=True,
        recipe="theirs",
        rows=[imports.ImportRow("1", "text", "By the model.")],
    )
    asking.control.recipes.save_embedding("films", "own", {}, {})
    for recipe in ("theirs", "own"):
        with pytest.raises(ServiceError) as refused:
            preview(asking, "1", "text", recipe=recipe)
        assert refused.value.reason == "NO_PROMPT"


def test_a_picture_that_cannot_be_sent(asking: World):
    asking.put("4", sha256="0" * 64)
    with pytest.raises(ServiceError) as missing:
        preview(asking, "4", "image")
    assert missing.value.reason == "PICTURE_NOT_FOUND"
    asking.put("5", data=b"no picture")
    with pytest.raises(ServiceError) as broken:
        preview(asking, "5", "image")
    assert broken.value.reason == "PICTURE_UNREADABLE"
