"""Two aliases side by side: who answers whom, that a unit stays where it is, and that every process follows."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import grpc
import pytest
import tiny_artefact
from dmesr.v1 import models_pb2
from dmesr.v1 import recommendations_pb2 as pb
from published import LEARNED, fill, promote, publish
from running_server import RunningServer
from wire import Stubs, failure_of

UNITS = [f"user-{number}" for number in range(200)]


@pytest.fixture
def two_models(stubs: Stubs, catalog: str, tmp_path: Path) -> str:
    """A catalog with tiny:1 behind production and tiny:2 behind candidate."""
    recipe_id = fill(stubs, catalog)
    for alias, items in (("production", LEARNED), ("candidate", {"a": (1, None)})):
        model = publish(stubs, catalog, tiny_artefact.write(tmp_path / alias, recipe_id=recipe_id, items=items))
        promote(stubs, catalog, f"tiny:{model.version}", alias)
    return catalog


def split(stubs: Stubs, catalog: str, share: float, other: str = "candidate", alias: str = "") -> models_pb2.Alias:
    request = models_pb2.SplitTrafficRequest(catalog=catalog, alias=alias, other_alias=other, share=share)
    return stubs.models.SplitTraffic(request).alias


def answered_by(stubs: Stubs, catalog: str, unit: str, model: str = "") -> tuple[str, str]:
    request = pb.RecommendRequest(catalog=catalog, model=model, history=pb.History(item_ids=["a"]), unit_id=unit)
    answer = stubs.recommendations.Recommend(request)
    return answer.alias, answer.model


def sides(stubs: Stubs, catalog: str) -> dict[str, str]:
    return {unit: answered_by(stubs, catalog, unit)[0] for unit in UNITS}


def test_a_share_of_the_units_is_answered_by_the_other_alias_and_stays_there(stubs: Stubs, two_models: str):
    assert set(sides(stubs, two_models).values()) == {"production"}
    now = split(stubs, two_models, 0.3)
    assert (now.name, now.model, now.split.other_alias, now.split.share) == (
        "production",
        "tiny:1",
        "candidate",
        0.3,
    )
    dealt = sides(stubs, two_models)
    assert 30 < Counter(dealt.values())["candidate"] < 90  # 60 of 200 by a hash
    assert sides(stubs, two_models) == dealt
    for unit in UNITS[:20]:
        expected = {"production": "tiny:1", "candidate": "tiny:2"}[dealt[unit]]
        assert answered_by(stubs, two_models, unit) == (dealt[unit], expected)
        assert answered_by(stubs, two_models, unit, "candidate") == ("candidate", "tiny:2"), "the split is production's"
        assert answered_by(stubs, two_models, unit, "tiny:1") == ("", "tiny:1")

    split(stubs, two_models, 0.6)
    more = sides(stubs, two_models)
    assert all(more[unit] == "candidate" for unit in UNITS if dealt[unit] == "candidate")
    batch = pb.BatchRecommendRequest(catalog=two_models, histories=[pb.History(item_ids=["a"])] * 3, unit_id=UNITS[0])
    assert stubs.recommendations.BatchRecommend(batch).alias == more[UNITS[0]]

    split(stubs, two_models, 1)
    assert set(sides(stubs, two_models).values()) == {"candidate"}
    ended = split(stubs, two_models, 0, other="")
    assert not ended.HasField("split")
    assert set(sides(stubs, two_models).values()) == {"production"}


def test_calls_without_a_unit_are_dealt_out_by_chance(stubs: Stubs, two_models: str):
    split(stubs, two_models, 0.5)
    seen = Counter(answered_by(stubs, two_models, "")[0] for _ in range(100))
    assert set(seen) == {"production", "candidate"}  # but for a chance of 2 in 2^100


def test_aliases_are_listed_with_model_and_split(stubs: Stubs, two_models: str):
    split(stubs, two_models, 0.25)
    listed = stubs.models.ListAliases(models_pb2.ListAliasesRequest(catalog=two_models)).aliases
    assert [(alias.name, alias.model) for alias in listed] == [("candidate", "tiny:2"), ("production", "tiny:1")]
    assert [alias.HasField("split") for alias in listed] == [False, True]
    assert (listed[1].split.other_alias, listed[1].split.share) == ("candidate", 0.25)
    assert listed[1].split.HasField("update_time")


def test_splits_that_make_no_sense_are_refused(stubs: Stubs, two_models: str):
    for share in (-0.1, 1.1, float("nan")):
        assert failure_of(lambda share=share: split(stubs, two_models, share)).fields == ["share"]
    assert failure_of(lambda: split(stubs, two_models, 0.5, other="")).fields == ["other_alias"]
    assert failure_of(lambda: split(stubs, two_models, 0.5, other="production")).fields == ["other_alias"]
    for refused in (
        failure_of(lambda: split(stubs, two_models, 0.5, other="nobody")),
        failure_of(lambda: split(stubs, two_models, 0.5, alias="nobody")),
    ):
        assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "ALIAS_NOT_FOUND")


def test_another_process_follows_a_split(stubs: Stubs, two_models: str, api_server: RunningServer, tmp_path: Path):
    second = RunningServer(tmp_path / "second", enricher=False)
    second.store.symlink_to(api_server.store)
    second.start()
    try:
        with grpc.insecure_channel(second.address) as channel:
            other = Stubs.of(channel)
            assert answered_by(other, two_models, "u") == ("production", "tiny:1")
            for share, expected in ((1, ("candidate", "tiny:2")), (0, ("production", "tiny:1"))):
                split(stubs, two_models, share)
                deadline = time.monotonic() + 5  # the poll is far shorter; a loaded machine is not
                while answered_by(other, two_models, "u") != expected:
                    assert time.monotonic() < deadline, "it did not follow"
                    time.sleep(0.05)
    finally:
        second.stop()
