"""Recommends: histories → user vectors → the exact best k items, wholly by one version of one model.

Shapes: N items of the index, C candidates, B questions of one block, T positions, V width of the model's vectors,
W views, R items recommended in all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

import numpy as np

from dmesr_server.abandoned import still_wanted
from dmesr_server.serving import products
from dmesr_server.serving.artefact import Artefact
from dmesr_server.serving.candidates import Candidates
from dmesr_server.serving.index import ItemIndex
from dmesr_server.serving.popularity import popular
from dmesr_server.serving.towers import UserTower
from dmesr_server.topk import best, within_reach

_BLOCK_BYTES = 64 * 1024 * 1024  # of scores or of padded histories held at a time
_BLOCK_ROWS = 256
#: Histories in one run of the user tower: what it holds in between then stays in a core's cache. With 64 at once, each
#: takes a quarter longer.
_TOWER_ROWS = 16
#: Candidates fewer than this share of the index are scored by themselves: copying their vectors costs less then.
_FEW = 1 / 32


class Strategy(Enum):
    """How a list came to be."""

    MODEL = "MODEL"
    POPULARITY = "POPULARITY"
    SIMILAR = "SIMILAR"


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

    @cached_property
    def view_names(self) -> tuple[str, ...]:
        """The views in the manifest's order."""
        return tuple(view.name for view in self.artefact.manifest.views)

    @cached_property
    def views_VW(self) -> np.ndarray:
        """1 where a view holds a place of the vector, float32: the shares of a score are one product with it."""
        views = self.artefact.manifest.views
        views_VW = np.zeros((self.artefact.manifest.vector_dim, len(views)), np.float32)
        for place, view in enumerate(views):
            views_VW[view.start : view.stop, place] = 1
        return views_VW


@dataclass(frozen=True)
class Settings:
    """How to recommend.

    Attributes:
        k: How many at most.
        exclude_seen: Leave out the items of the history.
        allow: Only these items; no such limit when empty.
        deny: Never these items.
        candidates: What a filter lets through of the model's index; None without a filter.
        fallback_item_id: The item whose neighbours stand in for an empty history; popular items where it is empty.
    """

    k: int
    exclude_seen: bool = True
    allow: Collection[str] = ()
    deny: Collection[str] = ()
    candidates: Candidates | None = None
    fallback_item_id: str = ""


@dataclass(frozen=True)
class Question:
    """What a user has interacted with, oldest first, and how to recommend. Ids that the index lacks are skipped."""

    history: Sequence[str]
    settings: Settings


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
    strategy: Strategy
    unknown_item_ids: tuple[str, ...]


def recommend(model: ServedModel, histories: Sequence[Sequence[str]], settings: Settings) -> list[RankedList]:
    """Recommends for each history by the same settings; see :func:`answer`."""
    return answer(model, [Question(history, settings) for history in histories])


def answer(model: ServedModel, questions: Sequence[Question]) -> list[RankedList]:
    """Answers questions, each by its own settings, with one run of the user tower and one matrix product a block.

    Args:
        model: The version that answers.
        questions: Any number.

    Returns:
        One list for each question, in order. Where nothing of a history is known, neighbours of the fallback item or
        popular items answer.

    Raises:
        ServiceError: INVALID_ARTEFACT when the user tower fails on these histories.
    """
    plans = [_plan(model, place, question) for place, question in enumerate(questions)]
    answers: dict[int, RankedList] = {}
    for block in _blocks(model, [plan for plan in plans if plan.strategy is not Strategy.POPULARITY]):
        still_wanted()
        answers |= _by_vectors(model, block)
    for plan in plans:
        if plan.strategy is Strategy.POPULARITY:
            answers[plan.place] = _by_popularity(model, plan)
    return [answers[place] for place in range(len(questions))]


@dataclass(frozen=True, eq=False)
class _Plan:
    """What is to be done for one question."""

    place: int
    question: Question
    strategy: Strategy
    rows_T: np.ndarray  # that the query is made of: the history's last known items, or the one to find neighbours of
    rows_C: np.ndarray | None  # to choose from, ascending; None for all of the index
    allowed_N: np.ndarray | None  # where rows_C would be many: what may be chosen
    excluded: np.ndarray  # rows never to return
    unknown_item_ids: tuple[str, ...]  # of the history: each once, in its order


def _plan(model: ServedModel, place: int, question: Question) -> _Plan:
    index, settings = model.index, question.settings
    rows_H = index.ids.rows(question.history)
    known = rows_H[rows_H >= 0]
    unknown = tuple(dict.fromkeys(question.history[place] for place in np.flatnonzero(rows_H < 0).tolist()))
    excluded = index.rows_of(settings.deny)
    if settings.exclude_seen:
        excluded = np.concatenate([excluded, known])
    strategy, rows_T = Strategy.MODEL, known[-model.artefact.manifest.max_history :]
    if not len(known):
        looked_at = index.rows_of([settings.fallback_item_id])
        strategy, rows_T = (Strategy.SIMILAR if len(looked_at) else Strategy.POPULARITY), looked_at
        excluded = np.concatenate([excluded, looked_at])
    rows_C, allowed_N = None, None
    if settings.candidates is not None:
        rows_C, allowed_N = settings.candidates.rows_C, settings.candidates.allowed_N
    if settings.allow:
        rows_C = np.unique(index.rows_of(settings.allow))
        if allowed_N is not None:
            rows_C = rows_C[allowed_N[rows_C]]
    elif rows_C is not None and len(rows_C) > _FEW * len(index):
        rows_C = None  # the mask does
    return _Plan(place, question, strategy, rows_T, rows_C, allowed_N, excluded, unknown)


def _blocks(model: ServedModel, plans: Sequence[_Plan]) -> Iterator[Sequence[_Plan]]:
    """So many questions at a time that neither scores nor padded histories take much memory."""
    positions = max((len(plan.rows_T) for plan in plans), default=0)
    row_bytes: int = 4 * max(len(model.index), positions * model.index.vectors_NV.shape[1], 1)
    rows = max(1, min(_BLOCK_ROWS, _BLOCK_BYTES // row_bytes))
    for start in range(0, len(plans), rows):
        yield plans[start : start + rows]


def _by_vectors(model: ServedModel, plans: Sequence[_Plan]) -> dict[int, RankedList]:
    index = model.index
    queries_BV = _queries(model, plans)
    rows, found = [], []
    for (rows_C, scores_C), plan in zip(_scored(index, queries_BV, plans), plans, strict=True):
        chosen = best(scores_C, plan.question.settings.k)
        rows.append(chosen if rows_C is None else rows_C[chosen])
        found.append(scores_C[chosen])
    shares = iter(_shares(model, queries_BV, plans, rows).tolist())
    return {
        plan.place: RankedList(
            items=tuple(
                Scored(
                    item_id=item_id,
                    score=score,
                    shares=dict(zip(model.view_names, next(shares), strict=True)),
                    is_new=count == 0,
                )
                for item_id, score, count in zip(
                    index.ids.of(rows_K), scores_K.tolist(), index.counts_N[rows_K].tolist(), strict=True
                )
            ),
            strategy=plan.strategy,
            unknown_item_ids=plan.unknown_item_ids,
        )
        for plan, rows_K, scores_K in zip(plans, rows, found, strict=True)
    }


def _scored(
    index: ItemIndex, queries_BV: np.ndarray, plans: Sequence[_Plan]
) -> Iterator[tuple[np.ndarray | None, np.ndarray]]:
    """For each question rows of the index, ascending, with their scores: all that can be among its best k.

    None stands for all rows. The score of a row that may not be chosen is -inf.
    """
    coded = [plan.rows_C is None and plan.strategy is Strategy.MODEL and index.codes is not None for plan in plans]
    whole = [plan.rows_C is None and not by_codes for plan, by_codes in zip(plans, coded, strict=True)]
    reached = index.codes.scores(_some(queries_BV, coded)) if index.codes is not None and any(coded) else iter(())
    products_N = iter(products.scores(_some(queries_BV, whole), index.vectors_NV)) if any(whole) else iter(())
    for row, plan in enumerate(plans):
        rows_C = plan.rows_C
        if coded[row]:
            rows_C = _within_reach(*next(reached), plan)
            if len(rows_C) > _FEW * len(index):
                rows_C = None  # codes as coarse as that decide nothing
        if rows_C is not None:
            # Not BLAS: there a score's last bits depend on how many are asked for, and equal items would differ.
            scores_C = np.einsum("cv,v->c", index.vectors_NV[rows_C], queries_BV[row])
        elif whole[row]:
            scores_C = next(products_N)
        else:
            scores_C = products.scores(queries_BV[row : row + 1], index.vectors_NV)[0]
        if plan.strategy is Strategy.SIMILAR:
            scores_C *= index.inverse_norms_N if rows_C is None else index.inverse_norms_N[rows_C]
        if rows_C is None and plan.allowed_N is not None:
            np.copyto(scores_C, -np.inf, where=~plan.allowed_N)
        scores_C[_positions(plan.excluded, rows_C)] = -np.inf
        yield rows_C, scores_C


def _within_reach(scores_N: np.ndarray, reach: int, plan: _Plan) -> np.ndarray:
    """The rows that may be chosen and whose codes put them within reach of the best k."""
    forbidden = np.iinfo(scores_N.dtype).min
    if plan.allowed_N is not None:
        np.copyto(scores_N, forbidden, where=~plan.allowed_N)
    scores_N[plan.excluded] = forbidden
    return within_reach(scores_N, plan.question.settings.k, reach)


def _some(queries_BV: np.ndarray, wanted: Sequence[bool]) -> np.ndarray:
    """The wanted rows; nothing is copied where all are, which is the usual case."""
    return queries_BV if all(wanted) else queries_BV[np.flatnonzero(wanted)]


def _by_popularity(model: ServedModel, plan: _Plan) -> RankedList:
    index = model.index
    rows_C = plan.rows_C if plan.rows_C is not None or plan.allowed_N is None else np.flatnonzero(plan.allowed_N)
    rows = popular(index, k=plan.question.settings.k, candidates_C=rows_C, excluded=plan.excluded)
    counts = index.counts_N[rows].tolist()
    return RankedList(
        items=tuple(
            Scored(item_id, float(count), {}, is_new=count == 0)
            for item_id, count in zip(index.ids.of(rows), counts, strict=True)
        ),
        strategy=Strategy.POPULARITY,
        unknown_item_ids=plan.unknown_item_ids,
    )


def _queries(model: ServedModel, plans: Sequence[_Plan]) -> np.ndarray:
    """The vector of each question, float32 [B, V]: the user's, or the direction of the item to find neighbours of."""
    index = model.index
    queries_BV = np.empty((len(plans), index.vectors_NV.shape[1]), np.float32)
    of_users = [row for row, plan in enumerate(plans) if plan.strategy is Strategy.MODEL]
    if of_users:
        queries_BV[of_users] = _users(model, [plans[row].rows_T for row in of_users])
    for row, plan in enumerate(plans):
        if plan.strategy is Strategy.SIMILAR:
            queries_BV[row] = (index.vectors_NV[plan.rows_T] * index.inverse_norms_N[plan.rows_T, None])[0]
    return queries_BV


def _users(model: ServedModel, rows: Sequence[np.ndarray]) -> np.ndarray:
    parts = [rows[start : start + _TOWER_ROWS] for start in range(0, len(rows), _TOWER_ROWS)]
    return np.concatenate([_users_of_part(model, part) for part in parts])


def _users_of_part(model: ServedModel, rows: Sequence[np.ndarray]) -> np.ndarray:
    lengths_B = np.array([len(row) for row in rows], np.int64)
    vectors_BTV = np.zeros((len(rows), int(lengths_B.max()), model.index.vectors_NV.shape[1]), np.float32)
    for place, row in enumerate(rows):
        vectors_BTV[place, : len(row)] = model.index.vectors_NV[row]
    return model.user_tower.run(vectors_BTV, lengths_B)


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


def _shares(
    model: ServedModel, queries_BV: np.ndarray, plans: Sequence[_Plan], rows: Sequence[np.ndarray]
) -> np.ndarray:
    """What each view contributed to each score, float32 [R, W]."""
    index = model.index
    rows_R = np.concatenate(rows)
    lengths = [len(row) for row in rows]
    products_RV = index.vectors_NV[rows_R] * np.repeat(queries_BV, lengths, axis=0)
    similar_R = np.repeat([plan.strategy is Strategy.SIMILAR for plan in plans], lengths)
    if similar_R.any():
        products_RV[similar_R] *= index.inverse_norms_N[rows_R[similar_R], None]
    shares_RW: np.ndarray = products_RV @ model.views_VW
    return shares_RW
