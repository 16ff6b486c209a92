import numpy as np
import pytest
from dmesr_server.enrichment import routes
from dmesr_server.enrichment.describers import DescribeRequest, PaletteDescriber, colours, layout, prose, reflection
from dmesr_server.enrichment.describers import attributes as sentences
from dmesr_server.enrichment.specs import JobSpec
from enriching import World, counts, picture
from PIL import Image

FILM = (
    ("title", ("Heat (1995)",)),
    ("genres", ("Action", "Crime")),
    ("director", ("Michael Mann",)),
    ("actors", ("Al Pacino, Robert De Niro",)),
    ("plot", ("A thief and a detective meet",)),
    ("runtime", ("170 min",)),
)


def request(route: str, *, attributes=FILM, picture: Image.Image | None = None) -> DescribeRequest:
    return DescribeRequest("1", route, attributes, picture, "film", "en")


async def texts(*requests: DescribeRequest) -> list[str]:
    return [answer.text for answer in await PaletteDescriber(workers=1).describe(requests)]


def flat(colour: tuple[int, int, int], size: tuple[int, int] = (60, 90)) -> Image.Image:
    return Image.new("RGB", size, colour)


def test_lab_of_known_colours():
    rgb = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 0, 255]]], np.uint8)
    expected = [[0, 0, 0], [100, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86]]  # CIELAB, D65
    np.testing.assert_allclose(colours.lab(rgb)[0], expected, atol=0.05)


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((0, 0, 0), "black"),
        ((255, 255, 255), "white"),
        ((128, 128, 128), "grey"),
        ((229, 40, 30), "scarlet"),
        ((30, 110, 220), "bright blue"),
        ((15, 28, 70), "navy blue"),
        ((240, 125, 15), "orange"),
        ((110, 65, 185), "violet"),
    ],
)
def test_colours_have_the_names_that_people_use(rgb: tuple[int, int, int], name: str):
    names = colours.name_indices(np.full((2, 2, 3), rgb, np.uint8))
    assert [share.name for share in colours.shares(names)] == [name]


def test_shares_are_parts_of_the_picture():
    picture = np.zeros((10, 10, 3), np.uint8)
    picture[:3] = 255
    shares = colours.shares(colours.name_indices(picture))
    assert [(share.name, share.share) for share in shares] == [("black", 0.7), ("white", 0.3)]


def test_measures_of_a_composed_picture():
    picture = flat((10, 10, 10), (90, 90))
    picture.paste((250, 250, 248), (60, 60, 90, 90))  # a white square in the bottom right corner
    seen = layout.measure(picture)
    assert seen.mass == ("bottom", "right")
    assert seen.thirds == ("black", "black", "black")
    assert seen.halves < 0  # the lower half is lighter
    assert seen.background.name == "black"
    assert seen.dark_share == pytest.approx(8 / 9)
    assert seen.light_share == pytest.approx(1 / 9)
    assert seen.symmetry < 0
    mirrored = flat((10, 10, 10), (90, 90))
    mirrored.paste((250, 250, 248), (30, 30, 60, 60))
    centred = layout.measure(mirrored)
    assert centred.symmetry == pytest.approx(1.0)
    assert centred.mass == ("middle", "centre")
    assert centred.frame > 0


def test_warmth_and_lines():
    assert layout.measure(flat((230, 120, 30))).warmth > 0.8
    assert layout.measure(flat((30, 60, 230))).warmth < -0.3
    stripes = np.zeros((90, 60, 3), np.uint8)
    stripes[:, ::6] = 255
    assert layout.measure(Image.fromarray(stripes)).verticality > 0.9
    assert layout.measure(Image.fromarray(stripes.transpose(1, 0, 2).copy())).verticality < -0.9


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (2, 3)])
def test_thin_pictures_can_be_measured(size: tuple[int, int]):
    seen = layout.measure(flat((200, 30, 30), size))
    assert seen.aspect == size[0] / size[1]
    assert prose.look(seen)


async def test_text_route_is_a_fluent_sentence():
    (text,) = await texts(request("text"))
    assert text == (
        "Heat (1995) is an action and crime film, directed by Michael Mann, starring Al Pacino, Robert De Niro. "
        "A thief and a detective meet. Runtime: 170 min."
    )


async def test_image_route_tells_colours_first_and_nothing_of_the_attributes():
    dark = flat((12, 12, 14))
    dark.paste((184, 18, 46), (15, 20, 45, 60))
    (text,) = await texts(request("image", attributes=(), picture=dark))
    assert text.startswith("Black and crimson in a very dark, vivid, warm")
    assert "Heat" not in text


async def test_hybrid_route_relates_text_and_picture():
    text, image, hybrid = await texts(
        *(
            request(route, picture=None if route == "text" else flat((245, 225, 60)))
            for route in ("text", "image", "hybrid")
        )
    )
    assert hybrid.startswith("Heat (1995) is an action and crime film with a sunny, cheerful look in lemon yellow,")
    assert image in hybrid
    assert "A thief and a detective meet." in hybrid
    assert "yellow" not in text


async def test_same_input_gives_the_same_text_and_other_pictures_other_texts():
    rng = np.random.default_rng(3)
    patches = [rng.integers(0, 256, (6, 4, 3), np.uint8) for _ in range(40)]
    shown = [Image.fromarray(patch).resize((60, 90), Image.Resampling.NEAREST) for patch in patches]
    requests = [request("image", attributes=(), picture=picture) for picture in shown]
    once, twice = await texts(*requests), await texts(*requests)
    assert once == twice
    assert len(set(once)) > 35


def test_attributes_without_a_title_or_with_empty_values():
    read = sentences.read((("genres", ("(no genres listed)",)), ("brand", ("HP",)), ("description", (",",))))
    assert read.introduction("product") == "A product, by HP."
    assert sentences.read(()).introduction("item") == "An item."
    listed = sentences.read((("name", ("Chez Nous",)), ("categories", ("French; Wine Bars",)), ("city", ("Lyon",))))
    assert listed.introduction("restaurant") == "Chez Nous is a french and wine bars restaurant, in Lyon."


async def test_long_attributes_leave_room_for_the_picture():
    long = (("title", ("T " * 500,)), ("plot", ("word " * 12_000,)), ("notes", ("x " * 5_000,)))
    text, hybrid = await texts(
        request("text", attributes=long), request("hybrid", attributes=long, picture=flat((9, 9, 9)))
    )
    assert len(text) < 2_000
    assert len(hybrid) < 1_500
    assert "Almost only black" in hybrid


async def test_reflect_route_tells_where_text_and_picture_agree():
    night = (("title", ("Black Night",)), ("genres", ("Film-Noir", "Crime")), ("plot", ("Two killers hide.",)))
    (text,) = await texts(request("reflect", attributes=night, picture=flat((10, 10, 12))))
    assert text.startswith("Black Night is a film-noir and crime film. Text and picture agree: ")
    assert 'the words "night", "noir", "crime" and "killer" suit a picture that is dark' in text
    assert 'the word "noir" suits a picture that is muted' in text
    assert 'the word "black" meets black in the picture' in text
    assert "differ" not in text
    assert text.endswith("Two killers hide.")


async def test_reflect_route_tells_where_text_and_picture_differ():
    summer = (("title", ("Green Summer",)), ("genres", ("Comedy",)))
    (text,) = await texts(request("reflect", attributes=summer, picture=flat((8, 12, 60))))
    assert 'the words "summer" and "comedy" suggest one that is bright, but it is dark' in text
    assert 'the word "summer" suggests one that is warm in colour, but it is cool in colour' in text
    assert 'the word "green" meets no such colour in the picture' in text
    assert "agree" not in text


async def test_reflect_route_invents_neither():
    plain = (("title", ("Heat (1995)",)), ("runtime", ("170 min",)))
    (text,) = await texts(request("reflect", attributes=plain, picture=flat((120, 120, 120))))
    assert "No word of the text speaks for or against the picture's look." in text
    (image,) = await texts(request("image", attributes=(), picture=flat((120, 120, 120))))
    assert image in text


def test_compared_words_stand_once_in_their_singular():
    seen = layout.measure(flat((230, 40, 30)))
    found = reflection.reflect((("plot", ("Flames, flame and FLAMES; reds",)),), seen)
    assert found.agreements == (
        'the word "flame" suits a picture that is warm in colour',
        'the word "red" meets scarlet in the picture',
    )
    assert found.differences == ()


def test_what_is_read_is_what_people_expect():
    for words in reflection._SUGGESTIONS.values():
        assert len(words) == len(set(words))
    assert set(reflection._COLOUR_WORDS.values()) <= set(colours.FAMILY_OF.values())


async def test_reflect_is_described_when_it_is_asked_for_and_leaves_the_others_as_they_are():
    describer = PaletteDescriber(workers=1)
    assert routes.checked([], describer.routes) == ("text", "image", "hybrid")
    assert routes.checked(["reflect", "text"], describer.routes) == ("text", "reflect")
    long = (("title", ("T " * 500,)), ("plot", ("night " * 12_000,)), ("notes", ("x " * 5_000,)))
    (text,) = await texts(request("reflect", attributes=long, picture=flat((9, 9, 9))))
    assert len(text) < 1_500
    assert "Almost only black" in text


async def test_a_job_that_asks_for_reflect_has_a_recipe_with_it(world: World):
    world.put("1", data=picture((10, 10, 12)), title="Midnight")
    world.put("2", title="Noon")
    usual = await world.run(JobSpec())
    asked = await world.run(JobSpec(recipe="x-reflect", routes=("text", "image", "hybrid", "reflect")))
    assert usual.recipe_id != asked.recipe_id
    assert counts(asked, "described") == {"original": 0, "text": 0, "image": 0, "hybrid": 0, "reflect": 1}
    assert world.present("1", "2") == {"1": {"original", "text", "image", "hybrid"}, "2": {"original", "text"}}
    assert world.present("1", "2", recipe="x-reflect") == {
        "1": {"original", "text", "image", "hybrid", "reflect"},
        "2": {"original", "text"},
    }
    row = world.rows("1", recipe="x-reflect")["1", "reflect"]
    assert 'the word "midnight" suits a picture that is dark' in row.text
    assert row.provenance["is_mllm"] is False


def test_recipe_says_what_it_is():
    describer = PaletteDescriber(workers=1)
    assert describer.is_mllm is False
    assert describer.recipe_fields("text") == {"prompt_revision": "palette-1", "language": "en"}
    assert describer.recipe_fields("image")["picture_pixels"] == describer.picture_pixels
    assert describer.recipe_fields("hybrid")["prompt_revision"] == "palette-1"
    assert describer.recipe_fields("reflect") == {
        "prompt_revision": "palette-reflect-1",
        "language": "en",
        "picture_pixels": describer.picture_pixels,
    }
