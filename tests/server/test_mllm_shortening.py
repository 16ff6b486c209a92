"""How attributes are shortened, and what a picture counts."""

import pytest
from dmesr_server.enrichment import picture_tokens, rendering, shortening
from dmesr_server.enrichment.picture_tokens import Patches

PLOT = "A girl and a keeper build a kite that carries a message over the bay. " * 20
REVIEW = "It moved me and my two children to tears, all three of us, twice. " * 10
ITEM = (("title", ("Kite",)), ("plot", (PLOT,)), ("genres", ("adventure", "family")), ("review", (REVIEW,)))


def test_what_fits_stays_whole():
    cut = shortening.shortened(ITEM, characters=10_000)
    assert cut.attributes == ITEM
    assert cut.cut == ()


def test_longest_values_are_cut_first_to_one_length():
    cut = shortening.shortened(ITEM, characters=600)
    left = dict(cut.attributes)
    assert cut.cut == ("plot", "review")
    assert left["title"] == ("Kite",)
    assert left["genres"] == ("adventure", "family")
    assert left["plot"][0].endswith("…")
    assert abs(len(left["plot"][0]) - len(left["review"][0])) < 12  # a word
    assert 550 < len(rendering.original_text(cut.attributes)) <= 600
    assert cut.record(characters_before=2_100) == {
        "rule": "longest-first-1",
        "characters": [2_100, cut.characters],
        "cut": ["plot", "review"],
    }


def test_only_one_value_is_cut_where_that_is_enough():
    whole = len(rendering.original_text(ITEM))
    assert shortening.shortened(ITEM, characters=whole - 300).cut == ("plot",)


def test_last_attributes_go_when_every_value_is_short():
    cut = shortening.shortened(ITEM, characters=60)
    assert [name for name, _ in cut.attributes] == ["title", "plot"]
    assert cut.cut == ("plot", "genres", "review")
    assert shortening.shortened(ITEM, characters=0).attributes == ()


def test_scripts_without_spaces_are_cut_where_they_are():
    cut = shortening.shortened((("plot", ("风筝" * 100,)),), characters=90)
    assert 80 < cut.characters <= 90


@pytest.mark.parametrize(
    ("width", "height", "tokens"),
    [
        (280, 280, 100),  # 10 × 10
        (300, 270, 110),  # rounded to 11 × 10
        (10, 10, 4),  # enlarged to 56 × 56
        (4000, 3000, 494),  # shrunk: 26 × 19 squares of 28
        (1, 300, None),  # sides too unlike
    ],
)
def test_tokens_of_a_picture(width: int, height: int, tokens: int | None):
    assert Patches(side_px=28, min_pixels=56 * 56, max_pixels=512 * 28 * 28).tokens(width, height) == tokens


def test_patches_are_read_from_the_models_files():
    qwen = {"model_type": "qwen2_5_vl"}
    assert picture_tokens.patches(qwen, {}, max_pixels=1_000_000) == Patches(28, 3136, 1_000_000)
    stated = {"patch_size": 16, "merge_size": 2, "size": {"shortest_edge": 65536, "longest_edge": 500_000}}
    assert picture_tokens.patches({"model_type": "qwen3_vl"}, stated, max_pixels=1_000_000) == Patches(
        32, 65536, 500_000
    )
    assert picture_tokens.patches({"model_type": "llava"}, {}, max_pixels=1) is None
