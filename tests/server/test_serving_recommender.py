"""Scores, shares, exclusion and order against NumPy and by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny_artefact
from dmesr_server.serving import index, towers
from dmesr_server.serving.artefact import load
from dmesr_server.serving.candidates import Candidates
from dmesr_server.serving.codes import ItemCodes
from dmesr_server.serving.recommender import Question, RankedList, ServedModel, Settings, Strategy, answer, recommend
from dmesr_server.topk import best, best_of_each
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SOURCES = {
    "a": {"text": [1, 0, 0], "image": [0, 1]},
    "b": {"text": [0, 1, 0], "image": None},
    "c": {"text": None, "image": [1, 0]},
    "d": {"text": [1, 1, 2], "image": [1, -1]},
    "new": {"text": [0, 2, 1], "image": [0.5, 0.5]},
}
LEARNED = {"a": (9, [0, 0, 0, 0, 1]), "b": (4, [0.5, 0, 0, 0, -1]), "c": (4, None), "d": (1, [0, 0, 0, 1, 0])}
VECTORS = {
    name: tiny_artefact.item_vector(sources, LEARNED.get(name, (0, None))[1]) for name, sources in SOURCES.items()
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    folder = tiny_artefact.write(tmp_path_factory.mktemp("model") / "artefact", recipe_id="r", items=LEARNED)
    artefact = load(folder, verify_checksums=True)
    ids = ["a", "b", "c", "d", "new"]
    return ServedModel(
        catalog="default",
        name="tiny",
        version=1,
        artefact=artefact,
        user_tower=towers.load_user_tower(artefact, threads=1),
        index=index.indexed(
            ids, np.stack([VECTORS[name] for name in ids]), np.array([LEARNED.get(name, (0,))[0] for name in ids])
        ),
        table_version=1,
    )


@pytest.fixture(scope="module", params=["floats", "codes"])
def large(model: ServedModel, request: pytest.FixtureRequest) -> ServedModel:
    """The same model over 700 items of whole numbers, so that many scores are equal and all are exact."""
    rng = np.random.default_rng(3)
    vectors_NV = rng.integers(-2, 3, (700, tiny_artefact.V)).astype(np.float32)
    vectors_NV[13] = 0
    ids = [f"i{row:03d}" for row in range(700)]
    made = index.indexed(ids, vectors_NV, np.zeros(len(ids), np.int64))
    if request.param == "codes":
        made = replace(made, codes=ItemCodes(vectors_NV))
    return replace(model, index=made)


def _ids(ranked: RankedList) -> list[str]:
    return [scored.item_id for scored in ranked.items]


def test_item_tower_gives_the_written_out_vectors(model: ServedModel):
    tower = towers.load_item_tower(model.artefact, threads=1)
    assert tower is not None
    present = {name: np.array([SOURCES[item][name] is not None for item in SOURCES]) for name in ("text", "image")}
    vectors = {
        name: np.array([SOURCES[item][name] or [0] * tiny_artefact.DIMS[name] for item in SOURCES], np.float32)
        for name in ("text", "image")
    }
    expected = np.stack([tiny_artefact.item_vector(sources) for sources in SOURCES.values()])
    np.testing.assert_allclose(tower.run(vectors, present), expected, atol=1e-6)


def test_scores_and_shares_by_hand(model: ServedModel):
    (ranked,) = recommend(model, [["a", "b"]], Settings(k=10))
    # a = [1,0,0,2,0] + [1,0,-1,0,0] + bias 1 = [2,0,-1,2,1]; b = [0,1,1,0,0] + [.5,0,0,0,-1] = [.5,1,1,0,-1]
    # user = mean with 1 at the bias = [1.25, .5, 0, 1, 1]
    # c = [0,2,0,1,0] → coarse 1, fine 1, bias 0; new = [.5,2,2,1,0] + [.5,1,-.5,.5,0] = [1,3,1.5,1.5,0] → 2.75+1.5
    # d = [2,1,1,4,0] + [-1,2,1,1,0] + [0,0,0,1,0] = [1,3,2,6,0] → 2.75 + 6
    assert [(s.item_id, s.score) for s in ranked.items] == [("d", 8.75), ("new", 4.25), ("c", 2.0)]
    assert ranked.items[0].shares == {"coarse": 2.75, "fine": 6.0, "bias": 0.0}
    assert [s.is_new for s in ranked.items] == [False, True, False]
    assert ranked.strategy is Strategy.MODEL
    assert ranked.unknown_item_ids == ()


@pytest.mark.parametrize(
    "length", [1, tiny_artefact.MAX_HISTORY - 1, tiny_artefact.MAX_HISTORY, tiny_artefact.MAX_HISTORY + 1, 9]
)
def test_scores_equal_numpy_at_every_length(model: ServedModel, length: int):
    history = [("a", "d", "c", "b")[place % 4] for place in range(length)]
    (ranked,) = recommend(model, [history], Settings(k=10, exclude_seen=False))
    user = tiny_artefact.user_vector([VECTORS[item] for item in history])
    for scored in ranked.items:
        assert scored.score == pytest.approx(float(user @ VECTORS[scored.item_id]), abs=1e-4)
        assert sum(scored.shares.values()) == pytest.approx(scored.score, abs=1e-5)
    assert len(ranked.items) == 5


def test_a_batch_gives_what_single_calls_give(model: ServedModel):
    histories = [["a"], [], ["b", "nobody", "c", "d", "a"], ["nobody"], ["d"] * 7]
    settings = Settings(k=3)
    together = recommend(model, histories, settings)
    for history, ranked in zip(histories, together, strict=True):
        (alone,) = recommend(model, [history], settings)
        assert _ids(alone) == _ids(ranked)
        assert [s.score for s in alone.items] == pytest.approx([s.score for s in ranked.items], abs=1e-5)
        assert alone.strategy == ranked.strategy


def test_seen_allow_and_deny_come_before_the_best_k(model: ServedModel):
    assert _ids(recommend(model, [["a", "b"]], Settings(k=1, deny=["d", "nobody"]))[0]) == ["new"]
    assert _ids(recommend(model, [["a", "b"]], Settings(k=5, allow=["c", "a", "nobody"]))[0]) == ["c"]
    assert _ids(recommend(model, [["a", "b"]], Settings(k=5, exclude_seen=False, allow=["c", "a"]))[0]) == ["a", "c"]
    assert _ids(recommend(model, [["a"]], Settings(k=5, allow=["c", "d"], deny=["d"]))[0]) == ["c"]
    assert recommend(model, [["a"]], Settings(k=5, allow=["nobody"]))[0].items == ()
    assert recommend(model, [list(SOURCES)], Settings(k=5))[0].items == ()


def test_unknown_ids_are_skipped_and_reported_once(model: ServedModel):
    (ranked,) = recommend(model, [["x", "a", "y", "x", "b"]], Settings(k=2))
    assert ranked.unknown_item_ids == ("x", "y")
    assert _ids(ranked) == _ids(recommend(model, [["a", "b"]], Settings(k=2))[0])


@pytest.mark.parametrize("history", [[], ["x", "y"]])
def test_without_a_known_history_popular_items_come_equal_counts_by_id(model: ServedModel, history: list[str]):
    (ranked,) = recommend(model, [history], Settings(k=4, deny=["d"]))
    assert ranked.strategy is Strategy.POPULARITY
    assert [(s.item_id, s.score, s.shares, s.is_new) for s in ranked.items] == [
        ("a", 9.0, {}, False),
        ("b", 4.0, {}, False),
        ("c", 4.0, {}, False),
        ("new", 0.0, {}, True),
    ]
    assert ranked.unknown_item_ids == tuple(history)
    assert _ids(recommend(model, [history], Settings(k=4, allow=["c", "b"]))[0]) == ["b", "c"]


def test_an_index_without_items_leaves_the_old_one_alone(model: ServedModel):
    less = model.index.without(["b", "nobody"])
    assert list(less.ids) == ["a", "c", "d", "new"]
    assert less.ids.rows(list(less.ids)).tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(less.vectors_NV[less.rows_of(["d"])[0]], VECTORS["d"])
    assert list(model.index.ids) == ["a", "b", "c", "d", "new"]
    assert model.index.without(["nobody"]) is model.index


@given(
    scores=st.lists(st.sampled_from([0.0, 1.0, 2.0, -1.0, -np.inf]), max_size=40),
    k=st.integers(min_value=0, max_value=45),
)
def test_best_is_the_sorted_list_cut_off(scores: list[float], k: int):
    expected = [place for place in sorted(range(len(scores)), key=lambda p: (-scores[p], p)) if scores[place] > -np.inf]
    assert best(np.array(scores, np.float64), k).tolist() == expected[:k]


@given(size=st.integers(300, 900), k=st.integers(1, 5), highest=st.integers(0, 40), seed=st.integers(0, 99))
def test_best_of_many_is_the_sorted_list_cut_off(size: int, k: int, highest: int, seed: int):
    rng = np.random.default_rng(seed)
    scores = rng.integers(-1, highest + 1, size).astype(np.float32)  # equal ones among them, few or many
    scores[rng.random(size) < rng.random()] = -np.inf
    rows = np.stack([scores, np.roll(scores, 1), np.full(size, -np.inf, np.float32), rng.random(size, np.float32)])
    for row, found in zip(rows, best_of_each(rows, k), strict=True):
        ranked = sorted(range(size), key=lambda place: (-row[place], place))
        assert found.tolist() == [place for place in ranked if row[place] > -np.inf][:k]


def _naive(model: ServedModel, question: Question) -> tuple[Strategy, dict[str, float]]:
    """The description of a question's answer, item by item: who may come, and their scores."""
    vectors = dict(zip(model.index.ids, model.index.vectors_NV.astype(np.float64), strict=True))
    how, history = question.settings, [item for item in question.history if item in vectors]
    may = set(how.allow or vectors) & set(vectors) - set(how.deny)
    if how.candidates is not None:
        may &= {model.index.ids[row] for row in how.candidates.rows_C}
    if how.exclude_seen:
        may -= set(history)
    if history:
        user = tiny_artefact.user_vector([vectors[item] for item in history])
        return Strategy.MODEL, {item: float(user @ vectors[item]) for item in may}
    if how.fallback_item_id in vectors:
        near = vectors[how.fallback_item_id]
        lengths = {item: np.linalg.norm(near) * np.linalg.norm(vectors[item]) for item in may}
        cosines = {item: float(near @ vectors[item] / (lengths[item] or 1)) for item in may}
        return Strategy.SIMILAR, {item: value for item, value in cosines.items() if item != how.fallback_item_id}
    return Strategy.POPULARITY, dict.fromkeys(may, 0.0)


_some_ids = st.lists(st.sampled_from([*(f"i{row:03d}" for row in range(0, 700, 7)), "nobody"]), max_size=6)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    questions=st.lists(
        st.tuples(
            _some_ids,
            st.integers(1, 12),
            st.booleans(),
            _some_ids,
            _some_ids,
            st.sampled_from([None, 0, 1, 2, 50, 699]),  # a filter that lets so many items through
            st.sampled_from(["", "i014", "i013", "nobody"]),
        ),
        min_size=1,
        max_size=6,
    ),
    seed=st.integers(0, 5),
)
def test_questions_answered_together_are_each_answered_by_their_own_settings(
    large: ServedModel, questions: list[tuple], seed: int
):
    rng = np.random.default_rng(seed)
    asked = []
    for history, k, exclude_seen, allow, deny, let_through, fallback in questions:
        candidates = None
        if let_through is not None:
            rows_C = np.sort(rng.choice(700, let_through, replace=False))
            candidates = Candidates(allowed_N=np.isin(np.arange(700), rows_C), rows_C=rows_C)
        asked.append(Question(history, Settings(k, exclude_seen, allow, deny, candidates, fallback)))
    for question, ranked in zip(asked, answer(large, asked), strict=True):
        strategy, scores = _naive(large, question)
        assert ranked.strategy is strategy
        # k come whenever k exist. By rank: which of two equal scores comes first is decided by their last bit.
        expected = sorted(scores.values(), reverse=True)[: question.settings.k]
        assert [scored.score for scored in ranked.items] == pytest.approx(expected, abs=1e-4)
        for scored in ranked.items:
            assert scored.score == pytest.approx(scores[scored.item_id], abs=1e-4)
            if strategy is not Strategy.POPULARITY:
                assert sum(scored.shares.values()) == pytest.approx(scored.score, abs=1e-4)
        assert set(ranked.unknown_item_ids) == {item for item in question.history if item == "nobody"}


def test_a_fallback_answers_only_where_nothing_of_the_history_is_known(model: ServedModel):
    def strategy(history: list[str], fallback: str) -> Strategy:
        return recommend(model, [history], Settings(k=3, fallback_item_id=fallback))[0].strategy

    assert strategy(["a"], "d") is Strategy.MODEL
    assert strategy(["nobody"], "d") is Strategy.SIMILAR
    assert strategy([], "nobody") is Strategy.POPULARITY
    (near,) = recommend(model, [[]], Settings(k=9, exclude_seen=False, fallback_item_id="d"))
    assert "d" not in _ids(near)
    assert len(near.items) == 4
