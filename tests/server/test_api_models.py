"""ModelService over a real socket: publish, adapt, promote, roll back, delete, and what is refused."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
import tiny_artefact
from dmesr.v1 import models_pb2 as pb
from published import LEARNED, fill, promote, publish, requests, write_source
from running_server import RunningServer
from wire import Failure, Stubs, failure_of
from wire_vectors import add_items, arrow, floats, write


@pytest.fixture
def recipe_id(stubs: Stubs, catalog: str) -> str:
    return fill(stubs, catalog)


def _artefact(tmp_path: Path, recipe_id: str, name: str = "artefact", **options: object) -> Path:
    return tiny_artefact.write(tmp_path / name, recipe_id=recipe_id, **({"items": LEARNED} | options))


def _get(stubs: Stubs, catalog: str, ref: str) -> pb.Model:
    return stubs.models.GetModel(pb.GetModelRequest(catalog=catalog, model=ref)).model


def test_publish_adapts_and_the_same_again_is_the_same_model(
    stubs: Stubs, catalog: str, recipe_id: str, tmp_path: Path, api_server: RunningServer
):
    folder = _artefact(tmp_path, recipe_id)
    first = stubs.models.PublishModel(requests(folder, catalog, "tiny")).model
    assert (first.name, first.version, first.recipe_id) == ("tiny", 1, recipe_id)
    model = publish(stubs, catalog, folder)
    assert (model.version, model.digest, model.state) == (1, first.digest, pb.MODEL_STATE_READY)
    # a, b, c, d, new have a source; known has a learned part only; bare has nothing; elsewhere is no item.
    assert model.items_adapted == 6
    assert model.manifest == (folder / "manifest.json").read_text()
    kept = api_server.store / "artefacts" / catalog / "tiny" / "1"
    assert {file.name for file in kept.iterdir()} == {file.name for file in folder.iterdir()}
    assert not list((api_server.store / "artefacts" / ".incoming").iterdir())


def test_versions_count_up_and_references_find_them(stubs: Stubs, catalog: str, recipe_id: str, tmp_path: Path):
    for number in (1, 2):
        folder = _artefact(tmp_path, recipe_id, f"v{number}", items={"a": (number, None)})
        assert publish(stubs, catalog, folder).version == number
    other = publish(stubs, catalog, _artefact(tmp_path, recipe_id, "other"), name="other")
    assert other.version == 1
    assert _get(stubs, catalog, "tiny").version == 2
    assert _get(stubs, catalog, "tiny:1").version == 1

    first = stubs.models.ListModels(pb.ListModelsRequest(catalog=catalog, page_size=2))
    assert [(m.name, m.version) for m in first.models] == [("other", 1), ("tiny", 2)]
    request = pb.ListModelsRequest(catalog=catalog, page_size=2, page_token=first.next_page_token)
    second = stubs.models.ListModels(request)
    assert [(m.name, m.version) for m in second.models] == [("tiny", 1)]
    assert second.next_page_token == ""
    bad = pb.ListModelsRequest(catalog=catalog, page_token="x")
    assert failure_of(lambda: stubs.models.ListModels(bad)).reason == "INVALID_PAGE_TOKEN"


def _rollback(stubs: Stubs, catalog: str, alias: str = "") -> pb.Model:
    return stubs.models.RollbackModel(pb.RollbackModelRequest(catalog=catalog, alias=alias)).model


def _delete(stubs: Stubs, catalog: str, ref: str) -> pb.DeleteModelResponse:
    return stubs.models.DeleteModel(pb.DeleteModelRequest(catalog=catalog, model=ref))


def test_promote_roll_back_and_delete(
    stubs: Stubs, catalog: str, recipe_id: str, tmp_path: Path, api_server: RunningServer
):
    for number in (1, 2):
        publish(stubs, catalog, _artefact(tmp_path, recipe_id, f"v{number}", items={"a": (number, None)}))
    assert list(promote(stubs, catalog, "tiny:1").aliases) == ["production"]
    assert list(promote(stubs, catalog, "tiny").aliases) == ["production"]
    assert _get(stubs, catalog, "production").version == 2
    assert list(_get(stubs, catalog, "tiny:1").aliases) == []
    failure = failure_of(lambda: _delete(stubs, catalog, "tiny:2"))
    assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "MODEL_IN_USE")

    assert _rollback(stubs, catalog).version == 1
    assert failure_of(lambda: _rollback(stubs, catalog)).reason == "NO_EARLIER_MODEL"
    failure = failure_of(lambda: _rollback(stubs, catalog, "canary"))
    assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "ALIAS_NOT_FOUND")
    assert list(promote(stubs, catalog, "tiny:1", "canary").aliases) == ["canary", "production"]

    _delete(stubs, catalog, "tiny:2")
    assert failure_of(lambda: _get(stubs, catalog, "tiny:2")).reason == "MODEL_NOT_FOUND"
    assert not (api_server.store / "artefacts" / catalog / "tiny" / "2").exists()
    for ref in ("tiny", "production", "tiny:x", ":1", ""):
        assert failure_of(lambda ref=ref: _delete(stubs, catalog, ref)).fields == ["model"]


def _refused(stubs: Stubs, catalog: str, stream: object) -> Failure:
    failure = failure_of(lambda: stubs.models.PublishModel(stream))
    listed = stubs.models.ListModels(pb.ListModelsRequest(catalog=catalog)).models
    assert list(listed) == []
    return failure


def test_a_broken_artefact_is_refused_and_leaves_nothing(
    stubs: Stubs, catalog: str, recipe_id: str, tmp_path: Path, api_server: RunningServer
):
    folder = _artefact(tmp_path, recipe_id)
    (folder / "items.arrow").write_bytes((folder / "items.arrow").read_bytes()[:-1])
    failure = _refused(stubs, catalog, requests(folder, catalog, "tiny"))
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARTEFACT")
    assert failure.metadata["file"] == "items.arrow"
    assert not (api_server.store / "artefacts" / catalog).exists()
    assert not list((api_server.store / "artefacts" / ".incoming").iterdir())


@pytest.mark.parametrize("name", ["../manifest.json", "/etc/passwd", "model.pkl", "", "a/b", "Manifest.json"])
def test_only_the_files_of_an_artefact_are_taken(stubs: Stubs, catalog: str, name: str):
    failure = _refused(stubs, catalog, iter([pb.PublishModelRequest(catalog=catalog, name="m", file_name=name)]))
    assert (failure.reason, failure.fields) == ("INVALID_FIELD", ["file_name"])


def test_a_file_that_comes_again_is_refused(stubs: Stubs, catalog: str, recipe_id: str, tmp_path: Path):
    chunks = list(requests(_artefact(tmp_path, recipe_id), catalog, "tiny"))
    failure = _refused(stubs, catalog, iter([*chunks, chunks[0]]))
    assert (failure.reason, failure.fields) == ("INVALID_FIELD", ["file_name"])


def test_a_huge_manifest_is_refused_while_it_comes(stubs: Stubs, catalog: str):
    chunk = pb.PublishModelRequest(catalog=catalog, name="m", file_name="manifest.json", data=b" " * 200_000)
    failure = _refused(stubs, catalog, iter([chunk] * 5))
    assert (failure.reason, failure.metadata["expected"]) == ("REQUEST_TOO_LARGE", "262144")


def test_targets_that_are_not_there_are_refused(stubs: Stubs, catalog: str, recipe_id: str, tmp_path: Path):
    folder = _artefact(tmp_path, recipe_id)
    assert _refused(stubs, catalog, requests(folder, "nowhere", "tiny")).reason == "CATALOG_NOT_FOUND"
    assert _refused(stubs, catalog, requests(folder, catalog, "Tiny Model")).fields == ["name"]
    assert _refused(stubs, catalog, iter([])).reason == "INVALID_FIELD"
    unknown = _artefact(tmp_path, "0123456789abcdef", "unknown")
    assert _refused(stubs, catalog, requests(unknown, catalog, "tiny")).reason == "RECIPE_NOT_FOUND"


def test_sources_must_be_those_of_the_recipe(stubs: Stubs, catalog: str, tmp_path: Path):
    add_items(stubs, catalog, ["a"])
    recipe_id = write_source(stubs, catalog, "text", {"a": [1, 2, 3]})
    folder = _artefact(tmp_path, recipe_id)
    failure = _refused(stubs, catalog, requests(folder, catalog, "tiny"))
    assert (failure.reason, failure.metadata["source"]) == ("SOURCE_NOT_FOUND", "image")
    write(stubs, catalog, data=arrow(["a"], [[1, 2, 3, 4]], floats(4)), source="image")
    failure = _refused(stubs, catalog, requests(folder, catalog, "tiny"))
    assert (failure.reason, failure.metadata["expected"], failure.metadata["actual"]) == (
        "DIMENSION_MISMATCH",
        "4",
        "2",
    )


def test_a_model_without_sources_needs_no_recipe(stubs: Stubs, catalog: str, recipe_id: str, tmp_path: Path):
    folder = _artefact(tmp_path, "", sources=())
    assert publish(stubs, catalog, folder).items_adapted == 4  # a, b, d and known have learned parts
