"""The steps of the demonstration: import, enrich, publish, recommend. Each answers with what it saw."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import dmesr

from dmesr_trainer.datasets.base import Dataset
from dmesr_trainer.export import export
from dmesr_trainer.sequences import Sequences
from dmesr_trainer.training import TrainResult

METHODS = ("popularity", "none", "dmesr")  # floor, ids alone, the method
MODEL = "dmesr"
SHOWN_HISTORY = 5
K = 10
# Attributes that tell in a word or two what an item is, where titles do not.
_ABOUT = ("genre", "genres", "category", "categories", "setting", "brand")
_ABOUT_VALUES = 3


@dataclass(frozen=True)
class Catalogue:
    """What was imported."""

    items: int
    with_picture: int
    summary: dmesr.UpsertSummary


@dataclass(frozen=True)
class Coverage:
    """How many items have a source."""

    source: str
    items: int
    share: float  # of the catalogue


@dataclass(frozen=True)
class Told:
    """An item as people read it."""

    item_id: str
    title: str
    about: str  # its genre and the like; may be empty

    def __str__(self) -> str:
        return f"{self.title} ({self.about})" if self.about else self.title


@dataclass(frozen=True)
class Shown:
    """A recommended item."""

    item: Told
    score: float
    shares: dict[str, float]
    is_new: bool
    held_out: bool  # the item that this user really took next


@dataclass(frozen=True)
class UserList:
    """Ten recommendations for one user."""

    user_id: str
    history: tuple[Told, ...]  # the last ones, oldest first
    items: tuple[Shown, ...]
    model: str


def prepare_catalog(client: dmesr.Client, dataset: Dataset) -> dmesr.Client:
    """A client bound to the dataset's catalog, made where it is missing."""
    with suppress(dmesr.errors.CatalogExists):
        client.admin.create_catalog(dataset.name, domain=dataset.domain)
    return client.catalog(dataset.name)


def import_items(
    client: dmesr.Client, dataset: Dataset, *, progress: Callable[[int], object] | None = None
) -> Catalogue:
    """Streams the dataset's items into the catalog."""
    pictures = 0

    def counted() -> Iterable[dmesr.Item | dmesr.RejectedRow]:
        nonlocal pictures
        for number, item in enumerate(dataset.items(), start=1):
            pictures += isinstance(item, dmesr.Item) and item.picture is not None
            if progress:
                progress(number)
            yield item

    summary = client.items.upsert(counted())
    return Catalogue(items=client.items.count(), with_picture=pictures - len(summary.picture_problems), summary=summary)


def coverage(client: dmesr.Client) -> tuple[Coverage, ...]:
    """How many items have each source now."""
    stats = client.embeddings.stats()
    return tuple(Coverage(one.source.name, one.source.present, one.coverage) for one in stats.sources)


def described_item(client: dmesr.Client) -> tuple[dmesr.Item, dict[str, str]] | None:
    """The first item with the most descriptions, and its texts by route; "original" is the fine view's."""
    best: tuple[dmesr.Item, dict[str, str]] | None = None
    for item in client.items.list():
        if best and item.picture is None:
            continue  # the text route alone: not more than what was found
        found = client.enrichment.descriptions([item.item_id])
        texts = {"original": found.original_texts.get(item.item_id, "")}
        texts |= {one.route: one.text for one in found.descriptions if one.text}
        if best is None or len(texts) > len(best[1]):
            best = item, texts
        if item.picture is not None:
            break
    return best


def publish(client: dmesr.Client, result: TrainResult, *, folder: Path, dataset: Dataset) -> dmesr.Model:
    """Exports the model, publishes it and points "production" to it."""
    model = client.models.publish(export(result, folder, dataset=dataset.name), name=MODEL)
    return client.models.promote(model.ref)


def tell(items: Iterable[dmesr.Item]) -> dict[str, Told]:
    """How to call each item, by id."""
    return {item.item_id: _told(item) for item in items}


def _told(item: dmesr.Item) -> Told:
    found: list[str] = []
    for name in _ABOUT:
        value = item.attributes.get(name, ())
        found += [value] if isinstance(value, str) else [str(one) for one in value] if isinstance(value, list) else []
    return Told(item.item_id, item.title, ", ".join(found[:_ABOUT_VALUES]))


def recommend(
    client: dmesr.Client, sequences: Sequences, *, users: Sequence[int], told: Mapping[str, Told]
) -> tuple[UserList, ...]:
    """Ten recommendations for each of these users, from all but the last of their events."""
    lists = []
    for user in users:
        history = [sequences.item_ids[item] for item in sequences.input(user, "test")]
        held_out = sequences.item_ids[sequences.events(user)[-1]]
        found = client.recommend(history=history, k=K)
        shown = tuple(
            Shown(
                item=named(told, one.item_id),
                score=one.score,
                shares=dict(one.shares),
                is_new=one.is_new,
                held_out=one.item_id == held_out,
            )
            for one in found
        )
        last = tuple(named(told, item) for item in history[-SHOWN_HISTORY:])
        lists.append(UserList(user_id=sequences.user_ids[user], history=last, items=shown, model=found.model))
    return tuple(lists)


def named(told: Mapping[str, Told], item_id: str) -> Told:
    """How to call an item; by its id where the catalogue does not have it."""
    return told.get(item_id) or Told(item_id, item_id, "")


def users_to_show(sequences: Sequences) -> tuple[int, ...]:
    """Two held-out users whose histories differ the most in length among the first ones: not chosen by result."""
    first = sequences.held_out_users_H[:20].tolist()
    by_length = sorted(first, key=lambda user: (int(sequences.lengths_U[user]), user))
    return tuple(dict.fromkeys((*by_length[:1], *by_length[-1:])))
