"""Models through faults and across processes: a tower that fails, two API processes on one store, a killed one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import onnx
import pytest
import tiny_artefact
from dmesr.v1 import items_pb2, models_pb2
from dmesr.v1 import recommendations_pb2 as pb
from published import LEARNED, fill, promote, publish, requests, write_source
from running_server import RunningServer
from wire import Stubs, failure_of, reason


@pytest.fixture
def connect() -> Iterator[Callable[[RunningServer], Stubs]]:
    channels: list[grpc.Channel] = []

    def connected(server: RunningServer) -> Stubs:
        channels.append(grpc.insecure_channel(server.address))
        return Stubs.of(channels[-1])

    yield connected
    for channel in channels:
        channel.close()


def recommended(stubs: Stubs, catalog: str = "", *, model: str = "") -> list[str]:
    request = pb.RecommendRequest(catalog=catalog, model=model, history=pb.History(item_ids=["a"]))
    answer = stubs.recommendations.Recommend(request)
    return [answer.model, *(found.item_id for found in answer.list.recommendations)]


def within(seconds: float, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not come about in {seconds} s"
        time.sleep(0.02)


def test_a_model_whose_tower_fails_is_failed_and_disturbs_no_other(stubs: Stubs, catalog: str, tmp_path: Path):
    recipe_id = fill(stubs, catalog)
    sound = tiny_artefact.write(tmp_path / "sound", recipe_id=recipe_id, items=LEARNED)
    publish(stubs, catalog, sound)
    promote(stubs, catalog, "tiny")
    write_source(stubs, catalog, "text", {"b": [-5, 0, 0]})

    broken = tiny_artefact.write(tmp_path / "broken", recipe_id=recipe_id, items=LEARNED)
    onnx.save(tiny_artefact.logarithmic_item_tower(), str(broken / "item_tower.onnx"))
    tiny_artefact.write_manifest(broken, recipe_id=recipe_id)
    model = publish(stubs, catalog, broken, name="broken")
    assert model.state == models_pb2.MODEL_STATE_FAILED
    assert reason(model.problem) == "INVALID_ARTEFACT"
    assert "item_tower.onnx answered with NaN" in model.problem.message
    assert model.problem.metadata["item_id"] == "b"
    for call in (lambda: promote(stubs, catalog, "broken"), lambda: recommended(stubs, catalog, model="broken")):
        failure = failure_of(call)
        assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "MODEL_NOT_READY")
    assert recommended(stubs, catalog)[0] == "tiny:1"

    # Once the cause is gone, publishing it again is another attempt at the same model.
    write_source(stubs, catalog, "text", {"b": [0.5, 0, 0]})
    again = publish(stubs, catalog, broken, name="broken")
    assert (again.version, again.state) == (model.version, models_pb2.MODEL_STATE_READY)
    assert not again.HasField("problem")


def test_an_odd_item_stays_as_it_was_and_stops_no_other(stubs: Stubs, catalog: str, tmp_path: Path):
    recipe_id = fill(stubs, catalog)
    folder = tiny_artefact.write(tmp_path / "model", recipe_id=recipe_id, items=LEARNED)
    onnx.save(tiny_artefact.logarithmic_item_tower(), str(folder / "item_tower.onnx"))
    tiny_artefact.write_manifest(folder, recipe_id=recipe_id)
    publish(stubs, catalog, folder)
    promote(stubs, catalog, "tiny")
    before = recommended(stubs, catalog)
    assert before[:2] == ["tiny:1", "d"]
    assert "bare" not in before
    write_source(stubs, catalog, "text", {"d": [-7, 0, 0], "bare": [0, 0, 0]})
    within(5, lambda: "bare" in recommended(stubs, catalog))
    assert recommended(stubs, catalog)[1] == "d"
    write_source(stubs, catalog, "text", {"d": [-0.9, -0.9, -0.9]})
    within(5, lambda: recommended(stubs, catalog)[1] != "d")


def test_two_api_processes_on_one_store_follow_each_other(
    start_server: Callable[..., RunningServer], connect: Callable[[RunningServer], Stubs], tmp_path: Path
):
    one = start_server(enricher=False)
    two = RunningServer(tmp_path / "second", enricher=False)
    two.store.symlink_to(one.store)
    two.start()
    try:
        first, second = connect(one), connect(two)
        recipe_id = fill(first, "")
        publish(first, "", tiny_artefact.write(tmp_path / "v1", recipe_id=recipe_id, items=LEARNED))
        promote(first, "", "tiny:1")
        assert recommended(second)[0] == "tiny:1"

        items = {"a": (1, [0.0, 0, 0, 0, 0])}
        publish(second, "", tiny_artefact.write(tmp_path / "v2", recipe_id=recipe_id, items=items))
        assert recommended(first)[0] == "tiny:1"
        promote(second, "", "tiny:2")
        within(1.5, lambda: recommended(first)[0] == "tiny:2")

        write_source(first, "", "text", {"bare": [9, 9, 9]})
        within(5, lambda: "bare" in recommended(first))
        within(1.5, lambda: "bare" in recommended(second))
        second.items.DeleteItems(items_pb2.DeleteItemsRequest(item_ids=["bare"]))
        assert "bare" not in recommended(second)
        within(1.5, lambda: "bare" not in recommended(first))
    finally:
        two.stop()


def test_a_killed_process_leaves_a_model_that_the_next_one_makes_ready(
    start_server: Callable[..., RunningServer], connect: Callable[[RunningServer], Stubs], tmp_path: Path
):
    server = start_server(enricher=False)
    stubs = connect(server)
    folder = tiny_artefact.write(tmp_path / "v1", recipe_id=fill(stubs, ""), items=LEARNED)
    stubs.models.PublishModel(requests(folder, "", "tiny"))
    server.kill()
    server.restart()
    stubs = connect(server)

    def ready() -> bool:
        model = stubs.models.GetModel(models_pb2.GetModelRequest(model="tiny:1")).model
        return model.state == models_pb2.MODEL_STATE_READY and model.items_adapted == 6

    within(20, ready)
    promote(stubs, "", "tiny")
    server.restart()
    assert recommended(connect(server))[0] == "tiny:1"
