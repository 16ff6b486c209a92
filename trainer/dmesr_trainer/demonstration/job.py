"""The steps of the demonstration: import, enrich, train, publish, recommend. Each answers with what it saw."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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
_HISTORIES_SCANNED = 1_000  # when looking for a list that has a new item


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
class Shown:
    """A recommended item as people read it."""

    item_id: str
    title: str
    score: float
    shares: dict[str, float]
    is_new: bool
    held_out: bool  # the item that this user really took next


@dataclass(frozen=True)
class UserList:
    """Ten recommendations for one user."""

    user_id: str
    history: tuple[str, ...]  # the last titles, oldest first
    items: tuple[Shown, ...]
    model: str


@dataclass(frozen=True)
class NewItem:
    """An item without any training event, recommended."""

    item_id: str
    title: str
    is_new: bool
    user_id: str
    history: tuple[str, ...]
    rank: int  # in the user's list of the whole catalogue, from 1
    score: float


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

    def counted() -> Iterable[dmesr.Item]:
        nonlocal pictures
        for number, item in enumerate(dataset.items(), start=1):
            pictures += item.picture is not None
            if progress:
                progress(number)
            yield item

    summary = client.items.upsert(counted())
    return Catalogue(items=client.items.count(), with_picture=pictures - len(summary.picture_problems), summary=summary)


def coverage(client: dmesr.Client) -> tuple[Coverage, ...]:
    """How many items have each source now."""
    stats = client.embeddings.stats()
    return tuple(Coverage(one.source.name, one.source.present, one.coverage) for one in stats.sources)


def described_item(client: dmesr.Client) -> tuple[dmesr.Item, dict[str, str]]:
    """The first item that all routes describe, and its texts by route; "original" is the fine view's."""
    for item in client.items.list():
        if item.picture is None:
            continue
        found = client.enrichment.descriptions([item.item_id])
        texts = {one.route: one.text for one in found.descriptions if one.text}
        if len(texts) >= 3:
            return item, {"original": found.original_texts[item.item_id], **texts}
    raise ValueError("no item has a picture and all three descriptions; is the enrichment complete?")


def publish(client: dmesr.Client, result: TrainResult, *, folder: Path, dataset: Dataset) -> dmesr.Model:
    """Exports the model, publishes it and points "production" to it."""
    model = client.models.publish(export(result, folder, dataset=dataset.name), name=MODEL)
    return client.models.promote(model.ref)


def recommend(
    client: dmesr.Client, sequences: Sequences, *, users: Sequence[int], titles: dict[str, str]
) -> tuple[UserList, ...]:
    """Ten recommendations for each of these users, from all but the last of their events."""
    lists = []
    for user in users:
        history = [sequences.item_ids[item] for item in sequences.input(user, "test")]
        held_out = sequences.item_ids[sequences.events(user)[-1]]
        found = client.recommend(history=history, k=K)
        shown = tuple(
            Shown(
                item_id=one.item_id,
                title=titles.get(one.item_id, one.item_id),
                score=one.score,
                shares=dict(one.shares),
                is_new=one.is_new,
                held_out=one.item_id == held_out,
            )
            for one in found
        )
        lists.append(
            UserList(
                user_id=sequences.user_ids[user],
                history=tuple(titles.get(item, item) for item in history[-SHOWN_HISTORY:]),
                items=shown,
                model=found.model,
            )
        )
    return tuple(lists)


def users_to_show(sequences: Sequences) -> tuple[int, int]:
    """Two held-out users whose histories differ the most in length among the first ones: not chosen by result."""
    first = sequences.held_out_users_H[:20]
    by_length = sorted(first.tolist(), key=lambda user: (int(sequences.lengths_U[user]), user))
    return by_length[0], by_length[-1]


def find_new_item(client: dmesr.Client, sequences: Sequences, *, titles: dict[str, str]) -> NewItem | None:
    """The best placed item without a training event, over the lists of many users; None where no list has one.

    The lists are made of the whole catalogue: nothing is done to let a new item in.
    """
    users = sequences.held_out_users_H[:_HISTORIES_SCANNED].tolist()
    histories = [[sequences.item_ids[item] for item in sequences.events(user)] for user in users]
    for k in (K, 100):
        best: NewItem | None = None
        for user, history, found in zip(
            users, histories, client.recommend_batch(histories=histories, k=k), strict=True
        ):
            for rank, one in enumerate(found, start=1):
                if one.is_new and (best is None or rank < best.rank):
                    best = NewItem(
                        item_id=one.item_id,
                        title=titles.get(one.item_id, one.item_id),
                        is_new=one.is_new,
                        user_id=sequences.user_ids[user],
                        history=tuple(titles.get(item, item) for item in history[-SHOWN_HISTORY:]),
                        rank=rank,
                        score=one.score,
                    )
        if best is not None:
            return best
    return None
