"""The prompts of the routes: rendered exactly, checked, replaceable."""

from pathlib import Path

import pytest
from dmesr_server.config import MllmConfig
from dmesr_server.enrichment import prompts
from dmesr_server.enrichment.engines import Turn
from dmesr_server.errors import ServiceError
from PIL import Image

PICTURE = Image.new("RGB", (8, 8))
WORDS = {"domain": "video game", "language": "de"}


def opening(
    route: str, *, mode: str = "rounds", folder: Path | None = None, attributes: str = "title: {done}; €"
) -> tuple:
    picture = PICTURE if route != "text" else None
    return prompts.load(folder).opening(route, attributes=attributes, picture=picture, mode=mode, **WORDS)


def test_rounds_of_a_hybrid_are_rendered_exactly(tmp_path: Path):
    (tmp_path / "system.txt").write_text("You describe a {domain} in {language}.\n")
    (tmp_path / "hybrid.txt").write_text("Draft it.\n{attributes}\n")
    (tmp_path / "review.txt").write_text("Anything missing in this {domain}? Else say {done}.")
    (tmp_path / "revise.txt").write_text("Now revise.")
    loaded = prompts.load(tmp_path)
    turns = opening("hybrid", folder=tmp_path)
    assert turns == (
        Turn("system", "You describe a video game in German."),
        Turn("user", "Draft it.\ntitle: {done}; €", PICTURE),
    )
    reviewed = loaded.review(turns, "A draft.", **WORDS)
    assert reviewed == (
        *turns,
        Turn("assistant", "A draft."),
        Turn("user", "Anything missing in this video game? Else say NOTHING TO ADD."),
    )
    assert loaded.revise(reviewed, "- the kite", **WORDS) == (
        *reviewed,
        Turn("assistant", "- the kite"),
        Turn("user", "Now revise."),
    )


@pytest.mark.parametrize("route", ["text", "image", "hybrid", "reflect"])
@pytest.mark.parametrize("mode", ["rounds", "single"])
def test_packaged_prompts_ask_for_the_item_and_leave_nothing_open(route: str, mode: str):
    system, user = opening(route, mode=mode, attributes="title: Heat; genres: crime")
    assert system.picture is None
    assert "video game" in system.text
    assert "German" in system.text
    assert (user.picture is PICTURE) == (route != "text")
    assert ("title: Heat; genres: crime" in user.text) == (route != "image")
    assert "{" not in system.text + user.text


def test_every_route_begins_alike_for_the_prefix_cache():
    assert len({opening(route)[0] for route in ("text", "image", "hybrid", "reflect")}) == 1
    assert len(opening("text")[0].text) < 400


def test_revision_follows_the_files_of_the_route_alone(tmp_path: Path):
    packaged = prompts.load(None)
    (tmp_path / "review.txt").write_text("Check it, or say {done}.")
    own = prompts.load(tmp_path)
    same = {
        (route, mode): packaged.revision(route, mode=mode) == own.revision(route, mode=mode)
        for route in ("text", "image", "hybrid", "reflect")
        for mode in ("rounds", "single")
    }
    assert [asked for asked, equal in same.items() if not equal] == [("hybrid", "rounds")]
    assert packaged.revision("hybrid", mode="rounds") != packaged.revision("hybrid", mode="single")
    (tmp_path / "system.txt").write_text("Be brief.")
    assert prompts.load(tmp_path).revision("text", mode="rounds") != packaged.revision("text", mode="rounds")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("hybird.txt", "{attributes}", "no prompt has this name"),
        ("text.txt", "Describe it.", "lacks the placeholder {attributes}"),
        ("review.txt", "Check it.", "lacks the placeholder {done}"),
        ("image.txt", "{attributes}", "unknown placeholder {attributes}"),
        ("system.txt", "  \n", "empty"),
        ("image.txt", b"\xff\xfe", "UTF-8"),
    ],
)
def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path, name: str, content: str | bytes, said: str):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ServiceError) as raised:
        prompts.load(tmp_path)
    assert raised.value.reason == "DESCRIBER_UNAVAILABLE"
    assert said in raised.value.message
    assert name in raised.value.message


def test_a_folder_that_is_missing_or_empty_is_told(tmp_path: Path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(ServiceError, match="prompts_folder"):
            prompts.load(folder)


@pytest.mark.parametrize(
    ("tag", "name"),
    [("en", "English"), ("pt-BR", "Portuguese (pt-BR)"), ("zh", "Chinese"), ("tlh", "the language tlh")],
)
def test_languages_are_named(tag: str, name: str):
    from dmesr_server.enrichment.prompts import languages

    assert languages.name(tag) == name


def test_defaults_are_the_papers():
    assert MllmConfig().model == "Qwen/Qwen2.5-VL-3B-Instruct"
    assert MllmConfig().hybrid_mode == "rounds"
