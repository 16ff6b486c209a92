"""The sample: what is planted is there, and nothing tells it that should not."""

from __future__ import annotations

import io
import itertools
import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from dmesr import Item
from dmesr_trainer.datasets import load
from dmesr_trainer.datasets.covers import (
    COMPOSITIONS,
    HEIGHT_PX,
    PALETTES,
    TITLE_BLOCK_PX,
    WIDTH_PX,
    CoverStyle,
    draw_cover,
)
from dmesr_trainer.datasets.sample import NEW_NOVELS, READ_NOVELS, SampleDataset
from PIL import Image


@pytest.fixture(scope="module")
def sample() -> SampleDataset:
    return SampleDataset()


@pytest.fixture(scope="module")
def items(sample: SampleDataset) -> list[Item]:
    return list(sample.items())


def _histories(sample: SampleDataset) -> dict[str, list[str]]:
    events = sample.interactions()
    histories: dict[str, list[str]] = defaultdict(list)
    for user, item in zip(events.user_ids.tolist(), events.item_ids.tolist(), strict=True):
        histories[user].append(item)
    return histories


def _art(style: CoverStyle, seed: int) -> np.ndarray:
    """The cover without its lettering, [height, width, RGB], 0 to 1."""
    picture = Image.open(io.BytesIO(draw_cover(style=style, title="A Title", author="An Author", seed=seed)))
    return np.asarray(picture, np.float64)[: HEIGHT_PX - TITLE_BLOCK_PX] / 255


def _colourfulness(art: np.ndarray) -> float:
    return float((art.max(-1) - art.min(-1)).mean())


def test_the_same_seed_gives_the_same_data(sample: SampleDataset):
    again = SampleDataset()
    assert list(itertools.islice(again.items(), 12)) == list(itertools.islice(sample.items(), 12))
    one, other = sample.interactions(), again.interactions()
    assert np.array_equal(one.item_ids, other.item_ids)
    assert np.array_equal(one.timestamps, other.timestamps)


def test_another_seed_gives_other_data():
    one, other = SampleDataset(seed=1, readers=50), SampleDataset(seed=2, readers=50)
    assert [novel.title for novel in one.novels] != [novel.title for novel in other.novels]
    assert one.interactions().item_ids.tolist() != other.interactions().item_ids.tolist()


def test_it_says_that_it_is_planted():
    dataset = load("sample")
    assert (dataset.name, dataset.domain, dataset.planted) == ("sample", "novel", True)


def test_the_catalogue(items: list[Item]):
    assert len({item.item_id for item in items}) == len({item.title for item in items}) == READ_NOVELS + NEW_NOVELS
    assert sum(item.picture is None for item in items) == 30
    assert list(items[0].attributes) == ["title", "author", "genre", "setting", "themes", "atmosphere", "plot"]


def test_nobody_has_read_the_new_novels(sample: SampleDataset):
    read = set(sample.interactions().item_ids.tolist())
    assert len(sample.new_item_ids) == NEW_NOVELS
    assert read.isdisjoint(sample.new_item_ids)
    assert all(novel.has_picture for novel in sample.novels if novel.is_new)


def test_readers(sample: SampleDataset):
    events = sample.interactions()
    histories = _histories(sample)
    assert len(histories) == 1_500
    assert min(map(len, histories.values())) >= 3
    assert all(len(set(history)) == len(history) for history in histories.values())
    for user in ("reader-0001", "reader-1500"):
        assert (np.diff(events.timestamps[events.user_ids == user]) > 0).all()


def test_the_order_of_a_history_matters(sample: SampleDataset):
    """From one novel to the next the setting goes one step on the journey, and the genre stays."""
    novels = {novel.item_id: novel for novel in sample.novels}
    pairs = [
        (novels[before], novels[after])
        for history in _histories(sample).values()
        for before, after in itertools.pairwise(history)
    ]
    steps = Counter((after.setting - before.setting) % 6 for before, after in pairs)
    assert steps[1] / len(pairs) > 0.6
    assert sum(after.genre == before.genre for before, after in pairs) / len(pairs) > 0.6


def test_the_picture_counts_beside_the_text(sample: SampleDataset):
    novels = {novel.item_id: novel for novel in sample.novels}
    pairs = [
        (novels[before].style, novels[after].style)
        for history in _histories(sample).values()
        for before, after in itertools.pairwise(history)
        if novels[before].has_picture and novels[after].has_picture
    ]
    assert sum(one.palette == other.palette for one, other in pairs) / len(pairs) > 0.4  # 1/6 by chance
    assert sum(one.composition == other.composition for one, other in pairs) / len(pairs) > 0.4  # 1/4 by chance


def test_text_and_picture_are_independent(sample: SampleDataset):
    """Every genre meets every palette about equally often, so neither tells the other."""
    met = Counter((novel.genre, novel.style.palette) for novel in sample.novels)
    assert len(met) == 36
    assert max(met.values()) <= 20


def test_the_text_does_not_tell_the_picture(items: list[Item]):
    told = " ".join(str(value) for item in items for value in item.attributes.values()).lower()
    words = set(re.findall(r"[a-z]+", told))
    assert words.isdisjoint({"red", "orange", "blue", "green", "pink", "black", "white", "grey", "purple", "dark"})
    assert words.isdisjoint({"radial", "symmetric", "layered", "scattered", "diagonal", "cover", "colour"})


def test_covers_are_what_an_encoder_expects():
    for palette, composition in itertools.product(PALETTES, COMPOSITIONS):
        data = draw_cover(style=CoverStyle(palette, composition), title="Seven Quiet Keys", author="Honor Pell", seed=5)
        picture = Image.open(io.BytesIO(data))
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (WIDTH_PX, HEIGHT_PX))


def test_a_cover_is_its_own():
    style = CoverStyle("tide", "layered")
    assert np.array_equal(_art(style, 1), _art(style, 1))
    assert not np.array_equal(_art(style, 1), _art(style, 2))


def test_every_cover_has_something_on_it():
    for composition, seed in itertools.product(COMPOSITIONS, range(12)):
        art = _art(CoverStyle("noir", composition), seed)
        colours = Counter(map(tuple, np.round(art, 2).reshape(-1, 3).tolist()))
        assert colours.most_common(1)[0][1] / colours.total() < 0.94


def test_palettes_differ_in_the_pixels():
    mean = {
        palette: np.mean(
            [_art(CoverStyle(palette, one), seed).mean((0, 1)) for one in COMPOSITIONS for seed in (1, 2, 3)], 0
        )
        for palette in PALETTES
    }
    assert all(np.abs(mean[one] - mean[other]).max() > 0.1 for one, other in itertools.combinations(PALETTES, 2))
    assert mean["blossom"].mean() > mean["carnival"].mean() > mean["ember"].mean()
    assert mean["tide"].argmax() == 2
    assert mean["moss"].argmax() == 1
    colourful = {palette: _colourfulness(_art(CoverStyle(palette, "layered"), 3)) for palette in PALETTES}
    assert min(colourful, key=colourful.__getitem__) == "noir"
    assert max(colourful, key=colourful.__getitem__) == "carnival"


def test_compositions_differ_in_the_pixels():
    def asymmetry(composition: str) -> float:
        arts = [_art(CoverStyle("ember", composition), seed) for seed in range(8)]
        return float(np.mean([np.abs(art - art[:, ::-1]).mean() for art in arts]))

    assert asymmetry("radial") < 0.02
    assert all(asymmetry(one) > 0.05 for one in ("layered", "scattered", "diagonal"))
