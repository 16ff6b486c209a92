"""The sample: a bookshop of invented novels with drawn covers, and readers whose tastes are planted.

A reader likes one genre in one setting at a time, which only the text tells, and one palette and composition of covers,
which only the picture shows. The setting moves on along a fixed journey and the palette changes now and then, so the
order of a history matters. Results on it check the wiring; they are no evidence that a method is good.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from dmesr import Item
from numpy.typing import NDArray

from dmesr_trainer.datasets.base import Interactions
from dmesr_trainer.datasets.covers import COMPOSITIONS, PALETTES, CoverStyle, draw_cover
from dmesr_trainer.datasets.vocabulary import (
    ADJECTIVES,
    ATMOSPHERES,
    AUTHORS,
    GENRES,
    NOUNS,
    PROTAGONISTS,
    SETTINGS,
    THEMES,
    TITLE_FORMS,
)

DEFAULT_SEED = 20260
READ_NOVELS = 304
NEW_NOVELS = 8  # published after the last interaction
READERS = 1_500
SHORTEST_HISTORY = 3
MEAN_HISTORY = 3.6  # short, so that ids alone have little to learn from
SHARE_WITHOUT_PICTURE = 0.1

_GENRES, _SETTINGS = tuple(GENRES), tuple(SETTINGS)
_DAY_SECONDS = 86_400
_FIRST_DAY = 1_704_067_200  # 2024-01-01T00:00:00Z


@dataclass(frozen=True)
class _Appeal:
    """What draws a reader to a novel, in logits."""

    genre: float = 5.0
    setting: float = 5.0
    palette: float = 4.0
    composition: float = 3.0
    popularity: float = 0.4  # standard deviation over novels
    setting_moves_on: float = 0.85  # probability after each novel
    palette_changes: float = 0.05  # likewise


_APPEAL = _Appeal()


@dataclass(frozen=True)
class Novel:
    """One invented novel, and the planted causes of its appeal."""

    item_id: str
    title: str
    author: str
    genre: int  # index into GENRES
    setting: int  # index into SETTINGS
    style: CoverStyle
    has_picture: bool
    is_new: bool
    plot: str
    themes: tuple[str, ...]
    atmosphere: tuple[str, ...]


class SampleDataset:
    """About 300 novels and 1,500 readers, made from a seed; the same seed gives the same data.

    Args:
        seed: What to make it from.
        readers: How many users.
    """

    name = "sample"
    domain = "novel"
    planted = True

    def __init__(self, *, seed: int = DEFAULT_SEED, readers: int = READERS) -> None:
        self._seed = seed
        self._readers = readers

    @property
    def new_item_ids(self) -> tuple[str, ...]:
        """The novels that nobody has read: each fits a planted taste exactly."""
        return tuple(novel.item_id for novel in self.novels if novel.is_new)

    @cached_property
    def novels(self) -> tuple[Novel, ...]:
        """All novels with the causes of their appeal, for tests and for showing what was planted."""
        rng = np.random.default_rng([self._seed, 0])
        count = READ_NOVELS + NEW_NOVELS
        # Every combination about equally often, and text independent of picture.
        cells = _even(rng, len(_GENRES) * len(_SETTINGS), count)
        styles = _even(rng, len(PALETTES) * len(COMPOSITIONS), count)
        without = set(rng.choice(READ_NOVELS, round(READ_NOVELS * SHARE_WITHOUT_PICTURE), replace=False).tolist())
        titles = _titles(rng, count)
        made = []
        for number in range(count):
            genre, setting = divmod(int(cells[number]), len(_SETTINGS))
            palette, composition = divmod(int(styles[number]), len(COMPOSITIONS))
            protagonist = str(rng.choice(PROTAGONISTS))
            place = str(rng.choice(SETTINGS[_SETTINGS[setting]]))
            story = str(rng.choice(GENRES[_GENRES[genre]])).format(place=place)
            made.append(
                Novel(
                    item_id=f"novel-{number + 1:03d}",
                    title=titles[number],
                    author=str(rng.choice(AUTHORS[_GENRES[genre]])),
                    genre=genre,
                    setting=setting,
                    style=CoverStyle(PALETTES[palette], COMPOSITIONS[composition]),
                    has_picture=number not in without,
                    is_new=number >= READ_NOVELS,
                    plot=f"{protagonist[0].upper()}{protagonist[1:]} {story}.",
                    themes=_three(rng, THEMES[_GENRES[genre]]),
                    atmosphere=_three(rng, ATMOSPHERES[_SETTINGS[setting]]),
                )
            )
        return tuple(made)

    def items(self) -> Iterator[Item]:
        """The novels with attributes and drawn covers, as PNG bytes."""
        for number, novel in enumerate(self.novels):
            yield Item(
                item_id=novel.item_id,
                attributes={
                    "title": novel.title,
                    "author": novel.author,
                    "genre": _GENRES[novel.genre],
                    "setting": _SETTINGS[novel.setting],
                    "themes": list(novel.themes),
                    "atmosphere": list(novel.atmosphere),
                    "plot": novel.plot,
                },
                picture=draw_cover(
                    style=novel.style, title=novel.title, author=novel.author, seed=self._seed * 1_000 + number
                )
                if novel.has_picture
                else None,
            )

    def interactions(self) -> Interactions:
        """What the readers read, reader by reader, oldest first. Nobody reads a novel twice."""
        rng = np.random.default_rng([self._seed, 1])
        known = [novel for novel in self.novels if not novel.is_new]
        ids = np.array([novel.item_id for novel in known])
        genres_N = np.array([novel.genre for novel in known])
        settings_N = np.array([novel.setting for novel in known])
        # A novel without a cover pleases nobody's eye and offends nobody's: half a match.
        palettes_N = np.array([PALETTES.index(novel.style.palette) if novel.has_picture else -1 for novel in known])
        compositions_N = np.array([COMPOSITIONS.index(n.style.composition) if n.has_picture else -1 for n in known])
        popularity_N = rng.normal(0.0, _APPEAL.popularity, len(known))

        users: list[str] = []
        items: list[str] = []
        times: list[int] = []
        for reader in range(self._readers):
            length = SHORTEST_HISTORY + int(rng.poisson(MEAN_HISTORY - SHORTEST_HISTORY))
            genre, setting = int(rng.integers(len(_GENRES))), int(rng.integers(len(_SETTINGS)))
            palette, composition = int(rng.integers(len(PALETTES))), int(rng.integers(len(COMPOSITIONS)))
            day = float(rng.uniform(0, 360))
            unread_N = np.ones(len(known), dtype=bool)
            for _ in range(length):
                logits_N = (
                    popularity_N
                    + _APPEAL.genre * (genres_N == genre)
                    + _APPEAL.setting * (settings_N == setting)
                    + _APPEAL.palette * _match(palettes_N, palette)
                    + _APPEAL.composition * _match(compositions_N, composition)
                )
                weights_N = np.where(unread_N, np.exp(logits_N), 0.0)
                chosen = int(rng.choice(len(known), p=weights_N / weights_N.sum()))
                unread_N[chosen] = False
                day += float(rng.exponential(9.0)) + 1.0
                users.append(f"reader-{reader + 1:04d}")
                items.append(str(ids[chosen]))
                times.append(_FIRST_DAY + int(day * _DAY_SECONDS))
                if rng.random() < _APPEAL.setting_moves_on:
                    setting = (setting + 1) % len(_SETTINGS)
                if rng.random() < _APPEAL.palette_changes:
                    palette = (palette + 1) % len(PALETTES)
        return Interactions(
            user_ids=np.array(users), item_ids=np.array(items), timestamps=np.array(times, dtype=np.int64)
        )


def _match(of_items_N: NDArray[np.int64], wanted: int) -> NDArray[np.float64]:
    return np.where(of_items_N < 0, 0.5, of_items_N == wanted)


def _even(rng: np.random.Generator, kinds: int, count: int) -> NDArray[np.int64]:
    """`count` draws of 0 … kinds − 1 in random order, each kind as often as any other, give or take one."""
    whole = np.concatenate([rng.permutation(kinds) for _ in range(-(-count // kinds))])
    return whole[:count]


def _three(rng: np.random.Generator, words: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(str(word) for word in rng.choice(words, 3, replace=False))


def _titles(rng: np.random.Generator, count: int) -> list[str]:
    titles: dict[str, None] = {}
    while len(titles) < count:
        noun, other = (str(word) for word in rng.choice(NOUNS, 2, replace=False))
        adjective = str(rng.choice(ADJECTIVES))
        title = str(rng.choice(TITLE_FORMS)).format(
            adjective=adjective,
            an_adjective=f"{'An' if adjective[0] in 'AEIOU' or adjective == 'Honest' else 'A'} {adjective}",
            noun=noun,
            nouns=_plural(noun),
            others=_plural(other),
        )
        titles[title] = None
    return list(titles)


def _plural(noun: str) -> str:
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith(("s", "z")) else f"{noun}s"
