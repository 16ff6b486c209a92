"""A new item: nobody has interacted with it, no model was trained on it, and it is recommended all the same."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import dmesr

from dmesr_trainer.demonstration.job import SHOWN_HISTORY, Told, named
from dmesr_trainer.sequences import Sequences

_USERS_ASKED = 1_000
_ADAPTATION_SECONDS = 60.0

# Real films of the years after MovieLens ml-latest-small was made: unknown to its users, and to every model.
_LATER_FILMS = (
    dmesr.Item(
        "toy-story-4",
        attributes={
            "title": "Toy Story 4",
            "genres": ["Adventure", "Animation", "Children", "Comedy", "Fantasy"],
            "year": "2019",
            "director": ["Josh Cooley"],
            "actors": ["Tom Hanks", "Tim Allen", "Annie Potts", "Tony Hale"],
            "plot": "When a new toy joins Woody and the gang, a road trip alongside old and new friends shows how big "
            "the world can be for a toy.",
        },
    ),
    dmesr.Item(
        "avengers-endgame",
        attributes={
            "title": "Avengers: Endgame",
            "genres": ["Action", "Adventure", "Sci-Fi"],
            "year": "2019",
            "director": ["Anthony Russo", "Joe Russo"],
            "actors": ["Robert Downey Jr.", "Chris Evans", "Mark Ruffalo", "Chris Hemsworth"],
            "plot": "With half of all life gone, the Avengers assemble once more to undo what Thanos did.",
        },
    ),
    dmesr.Item(
        "the-rise-of-skywalker",
        attributes={
            "title": "Star Wars: Episode IX - The Rise of Skywalker",
            "genres": ["Action", "Adventure", "Sci-Fi"],
            "year": "2019",
            "director": ["J.J. Abrams"],
            "actors": ["Daisy Ridley", "Adam Driver", "John Boyega", "Oscar Isaac"],
            "plot": "The Resistance faces the First Order once more, while Rey and Kylo Ren find what binds them.",
        },
    ),
    dmesr.Item(
        "joker",
        attributes={
            "title": "Joker",
            "genres": ["Crime", "Drama", "Thriller"],
            "year": "2019",
            "director": ["Todd Phillips"],
            "actors": ["Joaquin Phoenix", "Robert De Niro", "Zazie Beetz"],
            "plot": "A failed comedian in Gotham City, whom everybody looks through, becomes the face of a revolt.",
        },
    ),
)
#: What can be put into a dataset's catalogue after training, where its own new items come into nobody's list.
LATER_ITEMS: dict[str, tuple[dmesr.Item, ...]] = {"movielens": _LATER_FILMS}


@dataclass(frozen=True)
class NewItem:
    """An item that nobody has interacted with, recommended."""

    item: Told
    user_id: str
    history: tuple[Told, ...]
    rank: int  # in the user's list of the whole catalogue, from 1
    score: float
    shares: dict[str, float]
    inserted: bool  # put in by the demonstration after training; else it was in the catalogue from the start


def find(client: dmesr.Client, sequences: Sequences, *, told: Mapping[str, Told], depth: int) -> NewItem | None:
    """The best placed item of the catalogue without any event, over the lists of many users.

    The lists are made of the whole catalogue: nothing is done to let a new item in.

    Args:
        client: Bound to the catalog.
        sequences: Who interacted with what.
        told: How to call the catalogue's items.
        depth: How far down the lists to look, at most the server's `max_k`.

    Returns:
        None where no list has one.
    """
    met = set(sequences.item_ids)
    users = sequences.held_out_users_H[:_USERS_ASKED].tolist()
    histories = [[sequences.item_ids[item] for item in sequences.events(user)] for user in users]
    best: NewItem | None = None
    for user, history, found in zip(
        users, histories, client.recommend_batch(histories=histories, k=depth), strict=True
    ):
        for rank, one in enumerate(found, start=1):
            if one.item_id not in met and one.is_new and (best is None or rank < best.rank):
                best = NewItem(
                    item=named(told, one.item_id),
                    user_id=sequences.user_ids[user],
                    history=tuple(named(told, item) for item in history[-SHOWN_HISTORY:]),
                    rank=rank,
                    score=one.score,
                    shares=dict(one.shares),
                    inserted=False,
                )
    return best


@contextmanager
def inserted(client: dmesr.Client, items: Sequence[dmesr.Item], *, history: Sequence[str]) -> Iterator[dmesr.Job]:
    """Puts items into the catalogue of a trained model, and takes them out again.

    Only these items are described and encoded; the server's item tower does the rest, without training.

    Args:
        client: Bound to the catalog.
        items: What to put in.
        history: Any items that the model knows; the server is asked about them until it recommends the new ones.

    Yields:
        The enrichment job, ended; the model knows the items.

    Raises:
        TimeoutError: The live model did not take them in.
    """
    ids = [item.item_id for item in items]
    client.items.upsert(items)
    try:
        job = client.enrichment.start(item_ids=ids).wait()
        deadline = time.monotonic() + _ADAPTATION_SECONDS
        while len(client.recommend(history=history, k=len(ids), allow=ids)) < len(ids):
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"the model did not take in {', '.join(ids)} within {_ADAPTATION_SECONDS:.0f} s; see the server's "
                    "log"
                )
            time.sleep(0.1)
        yield job
    finally:
        client.items.delete(ids)
