"""Leave-last-out evaluation of a model through the server, with popularity beside it.

Legend: U evaluated users, E events.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from .console import Tell, fail

if TYPE_CHECKING:
    import dmesr

IDS_PER_CALL = 1_000
HISTORIES_PER_CALL = 200  # progress is told this often


@dataclass(frozen=True)
class Scores:
    """Means over users and their standard errors (sample standard deviation over the root of the number of users).

    Attributes:
        hit_rate: Share of users whose hidden item is in the list, 0 to 1.
        hit_rate_se: Its standard error.
        ndcg: Mean of 1 / log2(1 + rank), 0 outside the list.
        ndcg_se: Its standard error.
    """

    hit_rate: float
    hit_rate_se: float
    ndcg: float
    ndcg_se: float


@dataclass(frozen=True)
class Evaluation:
    """How a model did, and on what.

    Attributes:
        model: The model that answered, "name:version".
        k: Length of the lists.
        users: Users evaluated.
        skipped_users: Users with fewer than two events.
        unusable_rows: Rows of the file that could not be used.
        repeat_users: Evaluated users whose hidden item stands in their history too.
        unknown_targets: Evaluated users whose hidden item is not in the catalog; misses for both.
        unknown_history_items: Distinct items of the histories that the model does not know.
        popular_answers: Users whose whole history the model does not know.
        catalog_items: Items that compete.
        scores: The model's.
        popularity: Those of the most frequent items of the events that are not hidden.
    """

    model: str
    k: int
    users: int
    skipped_users: int
    unusable_rows: int
    repeat_users: int
    unknown_targets: int
    unknown_history_items: int
    popular_answers: int
    catalog_items: int
    scores: Scores
    popularity: Scores


@dataclass(frozen=True)
class Case:
    """One user: what is known, and what is hidden."""

    history: tuple[str, ...]
    target: str

    @property
    def is_repeat(self) -> bool:
        """Whether the hidden item stands in the history too."""
        return self.target in self.history


@dataclass(frozen=True)
class Events:
    """What a file of interactions holds.

    Attributes:
        by_user: Each user's items, oldest first.
        unusable: Rows that lack a user, an item or a time, or cannot be read.
    """

    by_user: dict[str, list[str]]
    unusable: tuple[dmesr.RejectedRow, ...]


def read_events(file: Path, *, user: str, item: str, time: str | None) -> Events:
    """Reads each user's items.

    Args:
        file: CSV, TSV, Parquet or JSONL.
        user: The column with user ids.
        item: The column with item ids.
        time: The column that orders a user's events; None for the file's order, which also breaks ties.
    """
    from dmesr import RejectedRow
    from dmesr.readers import read_interactions

    timed: dict[str, list[tuple[float, str]]] = {}
    unusable: list[dmesr.RejectedRow] = []
    for row in read_interactions(file, user=user, item=item, time=time):
        if isinstance(row, RejectedRow):
            unusable.append(row)
        else:
            timed.setdefault(row.user, []).append((0.0 if row.time is None else row.time, row.item))
    ordered = {who: [what for _, what in sorted(events, key=_moment)] for who, events in timed.items()}
    return Events(by_user=ordered, unusable=tuple(unusable))


def _moment(event: tuple[float, str]) -> float:
    return event[0]


def cases_of(events: dict[str, list[str]], *, max_users: int | None, seed: int) -> list[Case]:
    """The users with at least two events, or a random draw of them."""
    cases = [Case(history=tuple(items[:-1]), target=items[-1]) for items in events.values() if len(items) > 1]
    if max_users is not None and max_users < len(cases):
        cases = Random(seed).sample(cases, max_users)
    return cases


def evaluate_model(
    client: dmesr.Client,
    events: Events,
    *,
    model: str,
    k: int,
    max_users: int | None,
    seed: int,
    tell: Tell,
) -> Evaluation:
    """Hides each user's last item and counts how often, and how high, the model recommends it.

    Args:
        client: The client, bound to the catalog.
        events: The interactions.
        model: The alias, name or "name:version".
        k: Length of the lists.
        max_users: Users to draw; all when None.
        seed: Seed of that draw.
        tell: Takes the number of users done.
    """
    by_user = events.by_user
    cases = cases_of(by_user, max_users=max_users, seed=seed)
    if not cases:
        fail("no user has two events: there is nothing to hide and recommend from")
    known = _in_catalog(client, {case.target for case in cases} | {one for items in by_user.values() for one in items})
    # The version is fixed first: a promotion half-way must not mix two models.
    ref = client.models.get(model).ref
    ranks: list[int | None] = []
    unknown: set[str] = set()
    popular = 0
    for start in range(0, len(cases), HISTORIES_PER_CALL):
        batch = cases[start : start + HISTORIES_PER_CALL]
        for case, found in zip(batch, _recommend(client, batch, model=ref, k=k), strict=True):
            ids = [one.item_id for one in found]
            ranks.append(ids.index(case.target) + 1 if case.target in ids else None)
            unknown.update(found.unknown_item_ids)
            popular += found.strategy.name == "POPULARITY"
        tell(len(ranks), total=len(cases))
    catalog_items = client.items.count()
    floor = popularity_ranks(cases, hidden_from=by_user, known=known, catalog_items=catalog_items)
    return Evaluation(
        model=ref,
        k=k,
        users=len(cases),
        skipped_users=sum(len(items) < 2 for items in by_user.values()),
        unusable_rows=len(events.unusable),
        repeat_users=sum(case.is_repeat for case in cases),
        unknown_targets=sum(case.target not in known for case in cases),
        unknown_history_items=len(unknown),
        popular_answers=popular,
        catalog_items=catalog_items,
        scores=scores_of(ranks, k=k),
        popularity=scores_of(floor, k=k),
    )


def _in_catalog(client: dmesr.Client, item_ids: set[str]) -> set[str]:
    asked = sorted(item_ids)
    missing: set[str] = set()
    for start in range(0, len(asked), IDS_PER_CALL):
        missing.update(client.items.get_many(asked[start : start + IDS_PER_CALL]).missing)
    return item_ids - missing


def _recommend(client: dmesr.Client, batch: Sequence[Case], *, model: str, k: int) -> list[dmesr.Recommendations]:
    # Leaving out what was seen would leave out a hidden item that was seen before: such a user has a call of
    # its own, which denies the rest of the history instead.
    fresh = [case for case in batch if not case.is_repeat]
    lists = iter(client.recommend_batch(histories=[case.history for case in fresh], k=k, model=model) if fresh else [])
    return [
        client.recommend(
            history=case.history,
            k=k,
            model=model,
            exclude_seen=False,
            deny=sorted(set(case.history) - {case.target}),
        )
        if case.is_repeat
        else next(lists)
        for case in batch
    ]


def popularity_ranks(
    cases: Sequence[Case], *, hidden_from: dict[str, list[str]], known: set[str], catalog_items: int
) -> list[int | None]:
    """The rank of each hidden item by its frequency, ties counted against it; None where the catalog lacks it.

    Args:
        cases: The evaluated users.
        hidden_from: Each user's items; the last of each user with two or more is hidden and not counted.
        known: Items of the catalog among those of the events.
        catalog_items: Items in the catalog: those without an event compete with a count of 0.
    """
    counts = Counter(
        item for items in hidden_from.values() for item in (items[:-1] if len(items) > 1 else items) if item in known
    )
    # How many items have at least this count, for every count that occurs.
    at_least: dict[int, int] = {0: catalog_items}
    total = 0
    for count, size in sorted(Counter(counts.values()).items(), reverse=True):
        total += size
        at_least[count] = total
    ranks: list[int | None] = []
    for case in cases:
        if case.target not in known:
            ranks.append(None)
            continue
        count = counts[case.target]
        left_out = sum(item in known and counts[item] >= count for item in set(case.history) - {case.target})
        ranks.append(at_least[count] - left_out)
    return ranks


def scores_of(ranks: Sequence[int | None], *, k: int) -> Scores:
    """HR@k and NDCG@k with one relevant item a user.

    Args:
        ranks: Rank of each user's hidden item, from 1; None where it is not in the list. [U]
        k: Length of the list.
    """
    hits = [float(rank is not None and rank <= k) for rank in ranks]
    gains = [1.0 / math.log2(1 + rank) if rank is not None and rank <= k else 0.0 for rank in ranks]
    return Scores(
        hit_rate=_mean(hits),
        hit_rate_se=_standard_error(hits),
        ndcg=_mean(gains),
        ndcg_se=_standard_error(gains),
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _standard_error(values: Sequence[float]) -> float:
    if len(values) < 2:
        return math.nan
    mean = _mean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
