"""Recommends: histories → user vectors → the exact best k items, wholly by one version of one model.

Shapes: N items of the index, C candidates, B questions of one block, T positions, V width of the model's vectors,
W views, R items recommended in all.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

import numpy as np

from dmesr_server.abandoned import still_wanted
from dmesr_server.serving import products
from dmesr_server.serving.artefact import Artefact
from dmesr_server.serving.barred import Barred
from dmesr_server.serving.candidates import Candidates
from dmesr_server.serving.codes import FEW, ItemCodes
from dmesr_server.serving.index import ItemIndex
from dmesr_server.serving.popularity import popular
from dmesr_server.serving.towers import UserTower
from dmesr_server.topk import best, best_of_each, best_of_owned

_BLOCK_BYTES = 64 * 1024 * 1024  # of scores or of padded histories held at a time
_BLOCK_ROWS = 256
#: Histories in one run of the user tower: what it holds in between then stays in a core's cache. With 64 at once, each
#: takes a quarter longer.
_TOWER_ROWS = 16
#: What codes leave of several questions is scored together up to so many rows.
_NEAR_ROWS = 16_384


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
    plans = _plans(model, questions)
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


def _plans(model: ServedModel, questions: Sequence[Question]) -> list[_Plan]:
    index = model.index
    # All histories in one look: see :mod:`dmesr_server.topk` for what a step for each of them would cost.
    rows_X = index.ids.rows([item_id for question in questions for item_id in question.history])
    ends = list(itertools.accumulate(len(question.history) for question in questions))
    all_known = bool((rows_X >= 0).all())
    return [
        _plan(model, place, question, rows_X[start:end], all_known)
        for place, (question, start, end) in enumerate(zip(questions, [0, *ends], ends, strict=False))
    ]


def _plan(model: ServedModel, place: int, question: Question, rows_H: np.ndarray, all_known: bool) -> _Plan:
    index, settings = model.index, question.settings
    known, unknown = rows_H, tuple[str, ...]()
    if not all_known:
        known = rows_H[rows_H >= 0]
        unknown = tuple(dict.fromkeys(question.history[place] for place in np.flatnonzero(rows_H < 0).tolist()))
    excluded = index.rows_of(settings.deny)
    if settings.exclude_seen:
        excluded = np.concatenate([excluded, known]) if len(excluded) else known
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
    elif rows_C is not None and len(rows_C) > FEW * len(index):
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
    chosen = _chosen(index, queries_BV, plans)
    lengths = [len(rows_K) for rows_K, _ in chosen]
    rows_R = np.concatenate([rows_K for rows_K, _ in chosen])
    scores_R = np.concatenate([scores_K for _, scores_K in chosen])
    shares_RW = _shares(model, queries_BV, plans, rows_R, lengths)
    scored = [
        Scored(item_id, score, dict(zip(model.view_names, shares, strict=True)), count == 0)
        for item_id, score, shares, count in zip(
            index.ids.of(rows_R), scores_R.tolist(), shares_RW.tolist(), index.counts_N[rows_R].tolist(), strict=True
        )
    ]
    ends = list(itertools.accumulate(lengths))
    return {
        plan.place: RankedList(tuple(scored[start:end]), plan.strategy, plan.unknown_item_ids)
        for plan, start, end in zip(plans, [0, *ends], ends, strict=False)
    }


def _chosen(
    index: ItemIndex, queries_BV: np.ndarray, plans: Sequence[_Plan]
) -> Sequence[tuple[np.ndarray, np.ndarray]]:
    """The best k rows of each question, best first, and their scores."""
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    among_all = [row for row, plan in enumerate(plans) if plan.rows_C is None and plan.strategy is Strategy.MODEL]
    if index.codes is not None and among_all:
        found |= _by_codes(index, index.codes, queries_BV, plans, among_all)
        among_all = [row for row in among_all if row not in found]  # of whom the codes decide nothing
    if among_all:
        found |= _by_products(index, queries_BV, plans, among_all)
    return [found.get(row) or _alone(index, queries_BV[row], plan) for row, plan in enumerate(plans)]


def _by_codes(
    index: ItemIndex, codes: ItemCodes, queries_BV: np.ndarray, plans: Sequence[_Plan], asked: Sequence[int]
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    some = [plans[row] for row in asked]
    k = max(plan.question.settings.k for plan in some)
    near = codes.near(_some(queries_BV, asked), k, _barred(some))
    decided = [(row, rows) for row, rows in zip(asked, near, strict=True) if len(rows) <= FEW * len(index)]
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for together in _portions(decided):
        owners_R = np.repeat([row for row, _ in together], [len(rows) for _, rows in together])
        rows_R = np.concatenate([rows for _, rows in together])
        # Not BLAS: there a score's last bits depend on how many are asked for, and equal items would differ.
        scores_R = np.einsum("rv,rv->r", index.vectors_NV[rows_R], queries_BV[owners_R])
        chosen = best_of_owned(scores_R, owners_R, rows_R, k=k, owners=len(plans))
        for row, _ in together:
            best_K = chosen[row][: plans[row].question.settings.k]
            found[row] = rows_R[best_K], scores_R[best_K]
    return found


def _portions(near: Sequence[tuple[int, np.ndarray]]) -> Iterator[Sequence[tuple[int, np.ndarray]]]:
    """So many questions at a time that the vectors of what is near to them take no more memory than one may."""
    some: list[tuple[int, np.ndarray]] = []
    held = 0
    for row, rows in near:
        if some and held + len(rows) > _NEAR_ROWS:
            yield some
            some, held = [], 0
        some.append((row, rows))
        held += len(rows)
    if some:
        yield some


def _by_products(
    index: ItemIndex, queries_BV: np.ndarray, plans: Sequence[_Plan], asked: Sequence[int]
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    some = [plans[row] for row in asked]
    scores_BN = products.scores(_some(queries_BV, asked), index.vectors_NV)
    _barred(some).put(-np.inf, scores_BN)
    chosen = best_of_each(scores_BN, max(plan.question.settings.k for plan in some))
    found = {}
    for row, plan, scores_N, best_K in zip(asked, some, scores_BN, chosen, strict=True):
        rows_K = best_K[: plan.question.settings.k]
        found[row] = rows_K, scores_N[rows_K]
    return found


def _alone(index: ItemIndex, query_V: np.ndarray, plan: _Plan) -> tuple[np.ndarray, np.ndarray]:
    """For who chooses from few, or wants neighbours of an item."""
    rows_C = plan.rows_C
    if rows_C is not None:
        scores_C = np.einsum("cv,v->c", index.vectors_NV[rows_C], query_V)
    else:
        scores_C = products.scores(query_V[None], index.vectors_NV)[0]
    if plan.strategy is Strategy.SIMILAR:
        scores_C *= index.inverse_norms_N if rows_C is None else index.inverse_norms_N[rows_C]
    if rows_C is None:
        _barred([plan]).put(-np.inf, scores_C[None])
    else:
        scores_C[_positions(plan.excluded, rows_C)] = -np.inf
    chosen = best(scores_C, plan.question.settings.k)
    return chosen if rows_C is None else rows_C[chosen], scores_C[chosen]


def _barred(plans: Sequence[_Plan]) -> Barred:
    return Barred.by_question([plan.excluded for plan in plans], [plan.allowed_N for plan in plans])


def _some(queries_BV: np.ndarray, rows: Sequence[int]) -> np.ndarray:
    """The wanted rows; nothing is copied where all are, which is the usual case."""
    return queries_BV if len(rows) == len(queries_BV) else queries_BV[rows]


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
    real_BT = np.arange(lengths_B.max()) < lengths_B[:, None]
    rows_BT = np.zeros(real_BT.shape, np.int64)
    rows_BT[real_BT] = np.concatenate(rows)
    vectors_BTV = model.index.vectors_NV[rows_BT]
    vectors_BTV[~real_BT] = 0
    return model.user_tower.run(vectors_BTV, lengths_B)


def _positions(rows: np.ndarray, candidates_C: np.ndarray) -> np.ndarray:
    """Where rows of the index stand among the candidates; rows that are no candidates fall away."""
    if not len(candidates_C):
        return np.zeros(0, np.int64)
    places = np.searchsorted(candidates_C, rows)
    inside = places < len(candidates_C)
    places = places[inside]
    found: np.ndarray = places[candidates_C[places] == rows[inside]]
    return found


def _shares(
    model: ServedModel, queries_BV: np.ndarray, plans: Sequence[_Plan], rows_R: np.ndarray, lengths: Sequence[int]
) -> np.ndarray:
    """What each view contributed to each score, float32 [R, W]; so many rows of R are of each question."""
    index = model.index
    products_RV = index.vectors_NV[rows_R] * np.repeat(queries_BV, lengths, axis=0)
    similar = [plan.strategy is Strategy.SIMILAR for plan in plans]
    if any(similar):
        similar_R = np.repeat(similar, lengths)
        products_RV[similar_R] *= index.inverse_norms_N[rows_R[similar_R], None]
    shares_RW: np.ndarray = products_RV @ model.views_VW
    return shares_RW
