"""Recommends: histories → user vectors → the exact best k items, wholly by one version of one model.

Shapes: N items of the index, C candidates, B histories of one block, T positions, V width of the model's vectors.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dmesr_server.serving.artefact import Artefact
from dmesr_server.serving.index import ItemIndex, best
from dmesr_server.serving.popularity import popular
from dmesr_server.serving.towers import UserTower

_BLOCK_BYTES = 64 * 1024 * 1024  # of scores or of padded histories held at a time
_BLOCK_ROWS = 256


@dataclass(frozen=True, eq=False)
class ServedModel:
    """One version of one model, ready to answer. Immutable: a request that holds it is answered by it alone."""

    catalog: str
    name: str
    version: int
    artefact: Artefact
    user_tower: UserTower
    index: ItemIndex
    table_version: int  # of the adapted table that the index was read from

    @property
    def ref(self) -> str:
        """`name:version`."""
        return f"{self.name}:{self.version}"


@dataclass(frozen=True)
class Settings:
    """How to recommend.

    Attributes:
        k: How many at most.
        exclude_seen: Leave out the items of the history.
        allow: Only these items; no such limit when empty.
        deny: Never these items.
    """

    k: int
    exclude_seen: bool = True
    allow: Collection[str] = ()
    deny: Collection[str] = ()


@dataclass(frozen=True)
class Scored:
    """A recommended item: its score and what each view contributed to it."""

    item_id: str
    score: float
    shares: Mapping[str, float]
    is_new: bool


@dataclass(frozen=True)
class RankedList:
    """The answer to one history."""

    items: tuple[Scored, ...]
    by_popularity: bool
    unknown_item_ids: tuple[str, ...]


def recommend(model: ServedModel, histories: Sequence[Sequence[str]], settings: Settings) -> list[RankedList]:
    """Recommends for each history.

    Args:
        model: The version that answers.
        histories: Item ids, oldest first. Ids that the index lacks are skipped and reported.
        settings: How to recommend.

    Returns:
        One list for each history, in order. Popularity answers for a history of which nothing is known.

    Raises:
        ServiceError: INVALID_ARTEFACT when the user tower fails on these histories.
    """
    index = model.index
    candidates_C = np.unique(index.rows_of(settings.allow)) if settings.allow else None
    vectors_CV = index.vectors_NV if candidates_C is None else index.vectors_NV[candidates_C]
    denied = index.rows_of(settings.deny)
    known = [index.rows_of(history) for history in histories]
    limit = model.artefact.manifest.max_history
    block = _block_rows(model, positions=min(limit, max((len(rows) for rows in known), default=0)))

    answers: list[RankedList | None] = [None] * len(histories)
    with_history = [place for place, rows in enumerate(known) if len(rows)]
    for start in range(0, len(with_history), block):
        places = with_history[start : start + block]
        users_BV = _users(model, [known[place][-limit:] for place in places])
        scores_BC = users_BV @ vectors_CV.T
        for place, user_V, scores_C in zip(places, users_BV, scores_BC, strict=True):
            excluded = _excluded(known[place], denied, settings)
            scores_C[_positions(excluded, candidates_C)] = -np.inf
            chosen = best(scores_C, settings.k)
            rows = chosen if candidates_C is None else candidates_C[chosen]
            answers[place] = RankedList(
                items=tuple(_scored(model, user_V, rows, scores_C[chosen])),
                by_popularity=False,
                unknown_item_ids=_unknown(index, histories[place]),
            )
    for place, history in enumerate(histories):
        if answers[place] is None:
            # Nothing of the history is in the index, so nothing seen could come back.
            rows = popular(index, k=settings.k, candidates_C=candidates_C, excluded=denied)
            answers[place] = RankedList(
                items=tuple(
                    Scored(index.ids[row], float(index.counts_N[row]), {}, is_new=bool(index.counts_N[row] == 0))
                    for row in rows
                ),
                by_popularity=True,
                unknown_item_ids=_unknown(index, history),
            )
    return [answer for answer in answers if answer is not None]


def _block_rows(model: ServedModel, *, positions: int) -> int:
    """How many histories to work on at a time, so that neither scores nor padded histories take much memory."""
    row_bytes: int = 4 * max(len(model.index), positions * model.index.vectors_NV.shape[1], 1)
    return max(1, min(_BLOCK_ROWS, _BLOCK_BYTES // row_bytes))


def _users(model: ServedModel, rows: Sequence[np.ndarray]) -> np.ndarray:
    lengths_B = np.array([len(row) for row in rows], np.int64)
    vectors_BTV = np.zeros((len(rows), int(lengths_B.max()), model.index.vectors_NV.shape[1]), np.float32)
    for place, row in enumerate(rows):
        vectors_BTV[place, : len(row)] = model.index.vectors_NV[row]
    return model.user_tower.run(vectors_BTV, lengths_B)


def _excluded(seen: np.ndarray, denied: np.ndarray, settings: Settings) -> np.ndarray:
    return np.concatenate([seen, denied]) if settings.exclude_seen else denied


def _positions(rows: np.ndarray, candidates_C: np.ndarray | None) -> np.ndarray:
    """Where rows of the index stand among the candidates; rows that are no candidates fall away."""
    if candidates_C is None:
        return rows
    if not len(candidates_C):
        return np.zeros(0, np.int64)
    places = np.searchsorted(candidates_C, rows)
    inside = places < len(candidates_C)
    places = places[inside]
    found: np.ndarray = places[candidates_C[places] == rows[inside]]
    return found


def _scored(model: ServedModel, user_V: np.ndarray, rows: np.ndarray, scores: np.ndarray) -> list[Scored]:
    index = model.index
    products_KV = user_V * index.vectors_NV[rows]
    shares = {view.name: products_KV[:, view.start : view.stop].sum(1) for view in model.artefact.manifest.views}
    return [
        Scored(
            item_id=index.ids[row],
            score=float(score),
            shares={name: float(values[place]) for name, values in shares.items()},
            is_new=bool(index.counts_N[row] == 0),
        )
        for place, (row, score) in enumerate(zip(rows, scores, strict=True))
    ]


def _unknown(index: ItemIndex, history: Sequence[str]) -> tuple[str, ...]:
    """Each unknown id once, in the order of the history."""
    return tuple(dict.fromkeys(item_id for item_id in history if item_id not in index.rows))
