"""Eight-bit codes never lose one of the best items, and the answers that they give are those of floats."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_artefact
from dmesr_server.serving import codes, index, recommender, towers
from dmesr_server.serving.artefact import load
from dmesr_server.serving.barred import Barred
from dmesr_server.serving.candidates import Candidates
from dmesr_server.serving.codes import ItemCodes, codes_of
from dmesr_server.serving.recommender import Question, ServedModel, Settings, answer
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.fixture(autouse=True, scope="module", params=codes._QUERY_RANGES, ids=lambda found: f"queries of {found.most}")
def queries(request: pytest.FixtureRequest) -> Iterator[codes._QueryRange]:
    """Each range of queries that this processor multiplies exactly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codes, "_QUERY_RANGES", (request.param,))
        codes._queries_here.cache_clear()
        if codes._queries_here() is None:
            pytest.skip("this processor's products of queries of that range are not exact")
        yield request.param
    codes._queries_here.cache_clear()


def barring(*rows: list[int], items: int = 0) -> Barred:
    """The rows that each question may not have; with a number of items told as a filter."""
    return Barred.by_question(
        [np.array([] if items else some, np.int64) for some in rows],
        [~np.isin(np.arange(items), some) if items else None for some in rows],
    )


def near(item_codes: ItemCodes, queries_BV: np.ndarray, k: int, barred: Barred) -> list[list[int]]:
    return [rows.tolist() for rows in item_codes.near(queries_BV, k, barred)]


def test_what_is_near_by_hand():
    vectors_NV = np.array([[127, 0], [-127, 254], [64, 2]], np.float32)  # units: 1 and 2; 2 / 2 = 1
    queries_BV = np.array([[2, 1], [2, 1], [-1, 0]], np.float32)  # true scores: 254, 0, 130 and -127, 127, -64
    item_codes = ItemCodes(vectors_NV)  # nothing is rounded: no more than k are within reach
    assert near(item_codes, queries_BV, 1, barring([], [], [])) == [[0], [0], [1]]
    assert near(item_codes, queries_BV, 2, barring([], [], [])) == [[0, 2], [0, 2], [1, 2]]
    for items in (0, 3):
        assert near(item_codes, queries_BV, 1, barring([], [0], [2, 1], items=items)) == [[0], [2], [0]]
        assert near(item_codes, queries_BV, 3, barring([0, 1, 2], [0], [1], items=items)) == [[], [1, 2], [0, 2]]


@settings(deadline=None, max_examples=60)
@given(
    items=st.integers(1, 400),
    width=st.integers(1, 40),
    k=st.integers(1, 12),
    spread=st.sampled_from([0.0, 1.0, 3.0]),
    seed=st.integers(0, 9_999),
)
def test_the_best_are_always_within_reach(items: int, width: int, k: int, spread: float, seed: int):
    rng = np.random.default_rng(seed)
    # Columns of very different size, rows too, some of them equal or zero.
    vectors_NV = rng.standard_normal((items, width)) * np.exp(spread * rng.standard_normal(width))
    vectors_NV *= np.exp(spread / 2 * rng.standard_normal((items, 1)))
    vectors_NV[rng.random(items) < 0.1] = vectors_NV[0]
    vectors_NV[rng.random(items) < 0.05] = 0
    vectors_NV = vectors_NV.astype(np.float32)
    queries_BV = (rng.standard_normal((20, width)) * np.exp(spread * rng.standard_normal(width))).astype(np.float32)
    queries_BV[7] = 0
    barred = [np.flatnonzero(rng.random(items) < 0.2).tolist() for _ in queries_BV]
    found = near(ItemCodes(vectors_NV), queries_BV, k, barring(*barred, items=items * int(seed % 2)))
    for query_V, rows, forbidden in zip(queries_BV, found, barred, strict=True):
        true_N = vectors_NV.astype(np.float64) @ query_V.astype(np.float64)
        true_N[forbidden] = -np.inf
        assert set(rows) >= set(np.argsort(-true_N, kind="stable")[:k].tolist()) - set(forbidden)
        assert not set(rows) & set(forbidden)
        assert rows == sorted(set(rows))


def test_a_matrix_of_several_slices_is_one(monkeypatch: pytest.MonkeyPatch):
    vectors_NV = np.random.default_rng(0).standard_normal((1_000, 16)).astype(np.float32)
    queries_BV = np.random.default_rng(1).standard_normal((37, 16)).astype(np.float32)  # two groups and a rest
    barred = barring(*([number, 3 * number, 999] for number in range(37)))
    true_BN = queries_BV @ vectors_NV.T
    monkeypatch.setattr(codes, "_SLICE_ITEMS", 96)
    found = near(ItemCodes(vectors_NV), queries_BV, 10, barred)
    for number, (true_N, rows) in enumerate(zip(true_BN, found, strict=True)):
        true_N[[number, 3 * number, 999]] = -np.inf
        assert set(rows) >= set(np.argsort(-true_N)[:10].tolist())
        assert len(rows) < 40  # neighbours of a slice's best are not among them


def test_a_small_matrix_has_no_codes():
    assert codes_of(np.ones((10, 4), np.float32)) is None


def test_a_processor_whose_products_overflow_has_no_codes(monkeypatch: pytest.MonkeyPatch):
    vectors_NV = np.ones((40_000, 128), np.float32)
    assert codes_of(vectors_NV) is not None
    monkeypatch.setattr(codes, "_queries_here", lambda: None)
    assert codes_of(vectors_NV) is None
    with pytest.raises(RuntimeError, match="use floats"):
        ItemCodes(vectors_NV)


def test_every_processor_has_exact_products_of_one_range():
    """Two products of 8 and of 7 bits fit into 16 bits, so that none is left with floats."""
    coarsest = codes._QueryRange(most=64, zero=64)
    assert 2 * (coarsest.zero + coarsest.most) * 127 <= np.iinfo(np.int16).max
    assert codes_of(np.ones((40_000, 128), np.float32)) is not None


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[ServedModel, ServedModel]:
    """One model over 20,000 items: by floats and by codes."""
    folder: Path = tmp_path_factory.mktemp("model") / "artefact"
    artefact = load(tiny_artefact.write(folder, recipe_id="r", items={}), verify_checksums=True)
    vectors_NV = np.random.default_rng(0).standard_normal((20_000, tiny_artefact.V)).astype(np.float32)
    ids = [f"i{row:05d}" for row in range(len(vectors_NV))]
    by_floats = ServedModel(
        catalog="default",
        name="tiny",
        version=1,
        artefact=artefact,
        user_tower=towers.load_user_tower(artefact, threads=1),
        index=index.indexed(ids, vectors_NV, np.zeros(len(ids), np.int64)),
        table_version=1,
    )
    return by_floats, replace(by_floats, index=replace(by_floats.index, codes=ItemCodes(vectors_NV)))


@pytest.mark.parametrize("rows_at_once", [1, recommender._NEAR_ROWS])
def test_codes_and_floats_give_the_same_lists(
    models: tuple[ServedModel, ServedModel], rows_at_once: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(recommender, "_NEAR_ROWS", rows_at_once)
    rng = np.random.default_rng(5)
    size = len(models[0].index)

    def candidates(share: float) -> Candidates:
        allowed_N = rng.random(size) < share
        return Candidates(allowed_N=allowed_N, rows_C=np.flatnonzero(allowed_N))

    questions = []
    for number in range(40):
        history = [f"i{row:05d}" for row in rng.integers(0, size, 6)]
        how = Settings(
            k=int(rng.integers(1, 30)),
            exclude_seen=bool(number % 2),
            deny=[f"i{row:05d}" for row in rng.integers(0, size, 5)],
            allow=history[:3] if number % 7 == 3 else (),
            candidates=(None, candidates(0.5), candidates(0.001), candidates(0))[number % 4],
            fallback_item_id="i00007",
        )
        questions.append(Question(history if number % 9 else [], how))
    for by_floats, by_codes in zip(answer(models[0], questions), answer(models[1], questions), strict=True):
        assert [scored.item_id for scored in by_codes.items] == [scored.item_id for scored in by_floats.items]
        assert [scored.score for scored in by_codes.items] == pytest.approx(
            [scored.score for scored in by_floats.items], rel=1e-5, abs=1e-5
        )
        assert by_codes.strategy is by_floats.strategy


def test_without_some_items_floats_answer_until_codes_are_made(models: tuple[ServedModel, ServedModel]):
    history = ["i00001", "i00002"]
    (first,) = answer(models[1], [Question(history, Settings(k=3))])
    less = replace(models[1], index=models[1].index.without([first.items[0].item_id]))
    assert less.index.codes is None
    (second,) = answer(less, [Question(history, Settings(k=2))])
    assert [scored.item_id for scored in second.items] == [scored.item_id for scored in first.items[1:]]
