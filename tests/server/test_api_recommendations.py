"""RecommendationService over a real socket: against NumPy, and through every change below it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pyarrow as pa
import pytest
import tiny_artefact
from dmesr.v1 import embeddings_pb2, items_pb2, models_pb2
from dmesr.v1 import recommendations_pb2 as pb
from published import LEARNED, SOURCES, fill, promote, publish, write_source
from wire import Stubs, eventually, failure_of

VECTORS = {
    item_id: tiny_artefact.item_vector(sources, LEARNED.get(item_id, (0, None))[1])
    for item_id, sources in SOURCES.items()
    if item_id != "bare"
}


@pytest.fixture
def ready(stubs: Stubs, catalog: str, tmp_path: Path) -> str:
    """A catalog whose production model is the tiny one."""
    folder = tiny_artefact.write(tmp_path / "v1", recipe_id=fill(stubs, catalog), items=LEARNED)
    publish(stubs, catalog, folder)
    promote(stubs, catalog, "tiny:1")
    return catalog


def recommend(stubs: Stubs, catalog: str, *history: str, model: str = "", **settings: object) -> pb.RecommendResponse:
    return stubs.recommendations.Recommend(
        pb.RecommendRequest(
            catalog=catalog,
            model=model,
            history=pb.History(item_ids=history),
            settings=pb.RecommendSettings(**settings),
        )
    )


def ids(answer: pb.RecommendResponse) -> list[str]:
    return [found.item_id for found in answer.list.recommendations]


def test_scores_shares_and_order_are_those_of_numpy(stubs: Stubs, ready: str):
    history = ["a", "d", "b", "a"]
    answer = recommend(stubs, ready, *history, k=20, include_seen=True)
    user = tiny_artefact.user_vector([VECTORS[item_id] for item_id in history])
    expected = {item_id: float(user @ vector) for item_id, vector in VECTORS.items()}
    assert ids(answer) == sorted(expected, key=lambda item_id: (-expected[item_id], item_id))
    for found in answer.list.recommendations:
        vector = VECTORS[found.item_id]
        assert found.score == pytest.approx(expected[found.item_id], abs=1e-4)
        assert found.shares["coarse"] == pytest.approx(float(user[:2] @ vector[:2]), abs=1e-4)
        assert found.shares["fine"] == pytest.approx(float(user[2:4] @ vector[2:4]), abs=1e-4)
        assert found.shares["bias"] == pytest.approx(float(vector[4]), abs=1e-4)
        assert found.is_new == (found.item_id == "new")
    assert answer.model == "tiny:1"
    assert answer.list.strategy == pb.STRATEGY_MODEL


def test_settings_are_kept(stubs: Stubs, ready: str):
    answer = recommend(stubs, ready, "a", "nobody", k=2, attributes=["year", "title", "director"])
    assert len(ids(answer)) == 2
    assert list(answer.list.unknown_item_ids) == ["nobody"]
    first = answer.list.recommendations[0]
    assert [(a.name, list(a.values)) for a in first.attributes] == [
        ("year", ["2001"]),
        ("title", [f"Title of {first.item_id}"]),
    ]
    assert "a" not in ids(recommend(stubs, ready, "a"))
    assert ids(recommend(stubs, ready, "a", allow_item_ids=["a", "c", "nobody"])) == ["c"]
    assert set(ids(recommend(stubs, ready, "a", deny_item_ids=["d", "c"]))) == {"b", "new", "known"}


def test_without_a_known_history_popularity_answers(stubs: Stubs, ready: str):
    for history in ([], ["bare"], ["nobody"]):
        answer = recommend(stubs, ready, *history, k=4)
        assert answer.list.strategy == pb.STRATEGY_POPULARITY
        assert [(f.item_id, f.score) for f in answer.list.recommendations] == [
            ("a", 9),
            ("b", 4),
            ("c", 4),
            ("known", 2),
        ]
        assert list(answer.list.unknown_item_ids) == history


def test_a_batch_answers_in_order(stubs: Stubs, ready: str):
    histories = [["a"], [], ["nobody", "b", "c"], ["d", "a", "b", "c", "a"]]
    request = pb.BatchRecommendRequest(
        catalog=ready,
        histories=[pb.History(item_ids=history) for history in histories],
        settings=pb.RecommendSettings(k=3, attributes=["title"]),
    )
    answer = stubs.recommendations.BatchRecommend(request)
    assert answer.model == "tiny:1"
    for history, found in zip(histories, answer.lists, strict=True):
        alone = recommend(stubs, ready, *history, k=3, attributes=["title"]).list
        assert [f.item_id for f in found.recommendations] == [f.item_id for f in alone.recommendations]
        assert found.strategy == alone.strategy


def test_bad_requests_are_named(stubs: Stubs, ready: str):
    def fails(*history: str, model: str = "", **settings: object) -> tuple[str, list[str]]:
        failure = failure_of(lambda: recommend(stubs, ready, *history, model=model, **settings))
        return failure.reason, failure.fields

    assert fails("a", k=51) == ("INVALID_FIELD", ["k"])
    assert fails("a", k=-1) == ("INVALID_FIELD", ["k"])
    assert fails("a", model="nobody") == ("MODEL_NOT_FOUND", [])
    assert fails("a", deny_item_ids=map(str, range(2_001))) == ("REQUEST_TOO_LARGE", [])
    request = pb.BatchRecommendRequest(catalog=ready, histories=[pb.History()] * 21)
    failure = failure_of(lambda: stubs.recommendations.BatchRecommend(request))
    assert failure.metadata["limit"] == "max_histories_per_call"
    assert failure_of(lambda: recommend(stubs, "nowhere", "a")).reason == "CATALOG_NOT_FOUND"
    answer = stubs.recommendations.BatchRecommend(pb.BatchRecommendRequest(catalog=ready))
    assert list(answer.lists) == []


def test_without_a_promoted_model_there_is_no_production(stubs: Stubs, catalog: str):
    failure = failure_of(lambda: recommend(stubs, catalog, "a"))
    assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")


def test_an_item_is_recommended_as_soon_as_it_has_vectors(stubs: Stubs, ready: str):
    assert "bare" not in ids(recommend(stubs, ready, "a", k=20))
    write_source(stubs, ready, "text", {"bare": [9, 9, 9]})
    eventually(lambda: "bare" in ids(recommend(stubs, ready, "a", k=20)))
    found = next(f for f in recommend(stubs, ready, "a", k=20).list.recommendations if f.item_id == "bare")
    user = tiny_artefact.user_vector([VECTORS["a"]])
    assert found.score == pytest.approx(float(user @ tiny_artefact.item_vector({"text": [9, 9, 9]})), abs=1e-4)
    assert found.is_new


def test_a_changed_item_is_scored_anew_and_keeps_its_part(stubs: Stubs, ready: str):
    def score() -> float:
        answer = recommend(stubs, ready, "a", k=20)
        return next(f.score for f in answer.list.recommendations if f.item_id == "b")

    write_source(stubs, ready, "text", {"b": [4, 4, 4]})
    user = tiny_artefact.user_vector([VECTORS["a"]])
    expected = float(user @ tiny_artefact.item_vector({"text": [4, 4, 4]}, LEARNED["b"][1]))
    eventually(lambda: abs(score() - expected) < 1e-4)


def test_a_deleted_item_is_gone_at_once_and_stays_gone(stubs: Stubs, ready: str):
    assert "d" in ids(recommend(stubs, ready, "a", k=20))
    stubs.items.DeleteItems(items_pb2.DeleteItemsRequest(catalog=ready, item_ids=["d", "known"]))
    for _ in range(2):
        found = ids(recommend(stubs, ready, "a", "d", k=20))
        assert not {"d", "known"} & set(found)
        time.sleep(1.2)  # more than one round of the background work
    assert list(recommend(stubs, ready, "a", "d").list.unknown_item_ids) == ["d"]
    model = stubs.models.GetModel(models_pb2.GetModelRequest(catalog=ready, model="tiny")).model
    assert model.items_adapted == 4
    # What comes back, even without a vector, comes back with what was learned of it.
    again = items_pb2.UpsertItemsRequest(catalog=ready, items=[items_pb2.Item(item_id="known")])
    list(stubs.items.UpsertItems(iter([again])))
    eventually(lambda: "known" in ids(recommend(stubs, ready, "a", k=20)))


def test_promotion_and_rollback_change_the_answer_at_once(stubs: Stubs, ready: str, tmp_path: Path):
    recipe_id = stubs.models.GetModel(models_pb2.GetModelRequest(catalog=ready, model="tiny")).model.recipe_id
    reversed_ = {item_id: (count, [0, 0, 0, 0, -10 * count]) for item_id, (count, _) in LEARNED.items()}
    publish(stubs, ready, tiny_artefact.write(tmp_path / "v2", recipe_id=recipe_id, items=reversed_))
    assert recommend(stubs, ready, "a").model == "tiny:1"
    assert recommend(stubs, ready, "a", model="tiny").model == "tiny:2"
    promote(stubs, ready, "tiny:2")
    second = recommend(stubs, ready, "a")
    assert second.model == "tiny:2"
    assert ids(second)[0] == "new"  # the one item that the second model has nothing against
    stubs.models.RollbackModel(models_pb2.RollbackModelRequest(catalog=ready))
    assert recommend(stubs, ready, "a").model == "tiny:1"


def test_adapted_vectors_are_readable_and_have_neighbours(stubs: Stubs, ready: str):
    request = embeddings_pb2.ReadEmbeddingsRequest(catalog=ready, model="production")
    answers = list(stubs.embeddings.ReadEmbeddings(request))
    assert (answers[0].model, answers[0].rows) == ("tiny:1", 6)
    table = pa.ipc.open_stream(b"".join(answer.data for answer in answers)).read_all()
    assert table.schema.names == ["item_id", "found", "vector"]
    for item_id, vector in zip(*(table.column(name).to_pylist() for name in ("item_id", "vector")), strict=True):
        np.testing.assert_allclose(vector, VECTORS[item_id], atol=1e-6)

    near = embeddings_pb2.FindNeighboursRequest(catalog=ready, model="tiny:1", item_id="a", k=3)
    found = stubs.embeddings.FindNeighbours(near).neighbours
    cosines = {
        item_id: float(vector @ VECTORS["a"] / np.linalg.norm(vector) / np.linalg.norm(VECTORS["a"]))
        for item_id, vector in VECTORS.items()
        if item_id != "a"
    }
    best = sorted(cosines, key=lambda item_id: -cosines[item_id])[:3]
    assert [neighbour.item_id for neighbour in found] == best
    assert [neighbour.similarity for neighbour in found] == pytest.approx([cosines[i] for i in best], abs=1e-4)


def test_a_filter_comes_before_the_best_k(stubs: Stubs, ready: str):
    everyone = ids(recommend(stubs, ready, "a", k=20))
    assert ids(recommend(stubs, ready, "a", k=20, filter="year = 2001")) == everyone
    assert ids(recommend(stubs, ready, "a", k=20, filter="year < 2001")) == []
    two = everyone[-2:]
    titles = ", ".join(f'"Title of {item_id}"' for item_id in two)
    assert ids(recommend(stubs, ready, "a", k=1, filter=f"title in [{titles}]")) == [two[0]]
    assert ids(recommend(stubs, ready, "a", k=9, filter=f"title in [{titles}]", deny_item_ids=[two[0]])) == [two[1]]
    assert ids(recommend(stubs, ready, "a", k=9, filter="title exists", allow_item_ids=two)) == two
    popular = recommend(stubs, ready, filter='not title contains "OF A"', k=2).list
    assert (popular.strategy, [f.item_id for f in popular.recommendations]) == (pb.STRATEGY_POPULARITY, ["b", "c"])


def test_a_filter_follows_the_items(stubs: Stubs, ready: str):
    def late() -> list[str]:
        return ids(recommend(stubs, ready, "a", k=20, filter="year >= 2010"))

    assert late() == []
    item = items_pb2.Item(item_id="d", attributes=[items_pb2.Attribute(name="year", values=["2011"])])
    list(stubs.items.UpsertItems(iter([items_pb2.UpsertItemsRequest(catalog=ready, items=[item])])))
    eventually(lambda: late() == ["d"])
    stubs.items.DeleteItems(items_pb2.DeleteItemsRequest(catalog=ready, item_ids=["d"]))
    assert late() == []


def test_a_filter_that_cannot_be_read_says_where(stubs: Stubs, ready: str):
    failure = failure_of(lambda: recommend(stubs, ready, "a", filter="year >> 2000"))
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FILTER")
    assert failure.metadata["position"] == "6"
    request = pb.BatchRecommendRequest(catalog=ready, settings=pb.RecommendSettings(filter="'; drop"))
    assert failure_of(lambda: stubs.recommendations.BatchRecommend(request)).reason == "INVALID_FILTER"


def test_without_a_known_history_neighbours_of_the_item_looked_at_answer(stubs: Stubs, ready: str):
    near = embeddings_pb2.FindNeighboursRequest(catalog=ready, model="tiny:1", item_id="a", k=4)
    neighbours = stubs.embeddings.FindNeighbours(near).neighbours
    answer = recommend(stubs, ready, "nobody", k=4, fallback_item_id="a", include_seen=True)
    assert answer.list.strategy == pb.STRATEGY_SIMILAR
    assert ids(answer) == [neighbour.item_id for neighbour in neighbours]
    for found, neighbour in zip(answer.list.recommendations, neighbours, strict=True):
        assert found.score == pytest.approx(neighbour.similarity, abs=1e-4)
    filtered = recommend(stubs, ready, k=1, fallback_item_id="a", filter=f'title contains "{ids(answer)[-1]}"')
    assert ids(filtered) == [ids(answer)[-1]]
    assert recommend(stubs, ready, "b", fallback_item_id="a").list.strategy == pb.STRATEGY_MODEL
    assert recommend(stubs, ready, fallback_item_id="nobody").list.strategy == pb.STRATEGY_POPULARITY
    batch = pb.BatchRecommendRequest(
        catalog=ready,
        histories=[pb.History(), pb.History(item_ids=["b"])],
        settings=pb.RecommendSettings(k=4, fallback_item_id="a"),
    )
    strategies = [found.strategy for found in stubs.recommendations.BatchRecommend(batch).lists]
    assert strategies == [pb.STRATEGY_SIMILAR, pb.STRATEGY_MODEL]


def test_calls_at_the_same_time_get_what_calls_alone_get(stubs: Stubs, ready: str):
    histories = [[item_id] for item_id in ("a", "b", "c", "d", "new")] * 12 + [[], ["nobody"]]
    settings = [{}, {"filter": "year = 2001"}, {"deny_item_ids": ["c"]}, {"allow_item_ids": ["b", "d"]}]
    asked = [(history, settings[place % len(settings)]) for place, history in enumerate(histories)]
    with ThreadPoolExecutor(16) as threads:
        together = list(threads.map(lambda call: recommend(stubs, ready, *call[0], k=3, **call[1]), asked))
    for (history, how), answer in zip(asked, together, strict=True):
        assert ids(answer) == ids(recommend(stubs, ready, *history, k=3, **how))
