"""Lineage over a real socket: what a model was made from, what has drifted since, who promoted it; and that no answer
of `Recommend` ever mixes two versions.
"""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import tiny_artefact
from dmesr.v1 import embeddings_pb2, items_pb2, models_pb2, recommendations_pb2
from published import LEARNED, SOURCES, fill, promote, publish, write_source
from running_server import RunningServer
from wire import Stubs


def _lineage(stubs: Stubs, catalog: str, ref: str) -> models_pb2.Lineage:
    request = models_pb2.GetModelRequest(catalog=catalog, model=ref, lineage=True)
    return stubs.models.GetModel(request).lineage


def _trained(stubs: Stubs, catalog: str, tmp_path: Path, name: str = "artefact", **training: object) -> Path:
    """An artefact that names the vectors that it was trained on, as the trainer's does."""
    recipe_id = fill(stubs, catalog)
    pin = stubs.embeddings.PinEmbeddings(embeddings_pb2.PinEmbeddingsRequest(catalog=catalog, recipe="ours"))
    stubs.embeddings.ReleasePin(embeddings_pb2.ReleasePinRequest(pin_id=pin.pin_id))
    changes = {"embedding_version": pin.version, "embedding_digest": pin.digest, "training": {"seed": 7, **training}}
    return tiny_artefact.write(tmp_path / name, recipe_id=recipe_id, items=LEARNED, manifest_changes=changes)


def test_the_chain_from_catalogue_to_alias(stubs: Stubs, catalog: str, tmp_path: Path):
    publish(stubs, catalog, _trained(stubs, catalog, tmp_path))
    plain = stubs.models.GetModel(models_pb2.GetModelRequest(catalog=catalog, model="tiny"))
    assert not plain.HasField("lineage")  # it reads every item's hash: only who asks for it waits for it

    found = _lineage(stubs, catalog, "tiny:1")
    assert (found.items, found.items_now, found.published_by) == (len(SOURCES), len(SOURCES), "anonymous")
    assert found.items_version > 0
    assert found.embedding_version > 0
    assert len(found.embedding_digest) == 64
    assert (found.recipe_gone, list(found.recipe_names)) == (False, ["ours"])
    # text: a, b, d, new; image: a, c, d, new.
    assert {one.source: one.vectors for one in found.coverage} == {"text": 4, "image": 4}
    assert list(found.coverage) == list(found.coverage_now)
    assert found.drift_basis == models_pb2.DRIFT_BASIS_TRAINED
    assert found.drift == models_pb2.LineageDrift(items_then=5, items_now=5)
    assert not found.moves


def test_items_that_drifted_are_counted(stubs: Stubs, catalog: str, tmp_path: Path):
    publish(stubs, catalog, _trained(stubs, catalog, tmp_path))
    # a and b get other texts, bare its first vector, c goes. What b has by then is what it had: no change in the end.
    write_source(stubs, catalog, "text", {"a": [9, 9, 9], "b": [3, 3, 3], "bare": [1, 1, 1]})
    write_source(stubs, catalog, "text", {"b": SOURCES["b"]["text"] or []})
    stubs.items.DeleteItems(items_pb2.DeleteItemsRequest(catalog=catalog, item_ids=["c"]))
    found = _lineage(stubs, catalog, "tiny")
    assert found.drift == models_pb2.LineageDrift(items_then=5, items_now=5, added=1, changed=1, removed=1)
    assert (found.items, found.items_now) == (7, 6)
    assert {one.source: one.vectors for one in found.coverage} == {"text": 4, "image": 4}
    assert {one.source: one.vectors for one in found.coverage_now} == {"text": 5, "image": 3}


def test_drift_before_the_publication_counts_too(stubs: Stubs, catalog: str, tmp_path: Path):
    folder = _trained(stubs, catalog, tmp_path)
    write_source(stubs, catalog, "text", {"a": [9, 9, 9]})  # the training's version is still readable
    publish(stubs, catalog, folder)
    found = _lineage(stubs, catalog, "tiny")
    assert (found.drift_basis, found.drift.changed) == (models_pb2.DRIFT_BASIS_TRAINED, 1)


def test_vectors_that_the_manifest_does_not_name_are_those_of_the_publication(
    stubs: Stubs, catalog: str, tmp_path: Path
):
    folder = tiny_artefact.write(tmp_path / "a", recipe_id=fill(stubs, catalog), items=LEARNED)
    publish(stubs, catalog, folder)
    write_source(stubs, catalog, "text", {"a": [9, 9, 9]})
    found = _lineage(stubs, catalog, "tiny")
    assert (found.drift_basis, found.drift.changed) == (models_pb2.DRIFT_BASIS_PUBLISHED, 1)


def test_promotions_and_rollbacks_stay_on_record(stubs: Stubs, catalog: str, tmp_path: Path):
    publish(stubs, catalog, _trained(stubs, catalog, tmp_path))
    publish(stubs, catalog, _trained(stubs, catalog, tmp_path, "again", note="another"), name="other")
    promote(stubs, catalog, "tiny:1")
    promote(stubs, catalog, "tiny:1")  # where it points already: nothing happened
    promote(stubs, catalog, "other:1")
    stubs.models.RollbackModel(models_pb2.RollbackModelRequest(catalog=catalog))
    promote(stubs, catalog, "other:1", alias="candidate")

    def moves(ref: str) -> list[tuple[str, str, str, str, str]]:
        return [
            (
                one.alias,
                models_pb2.AliasAction.Name(one.action).removeprefix("ALIAS_ACTION_"),
                one.model,
                one.before,
                one.actor,
            )
            for one in _lineage(stubs, catalog, ref).moves
        ]

    there, back = "tiny:1", "other:1"
    assert moves("tiny:1") == [
        ("production", "PROMOTED", there, "", "anonymous"),
        ("production", "PROMOTED", back, there, "anonymous"),
        ("production", "ROLLED_BACK", there, back, "anonymous"),
    ]
    assert moves("other:1") == [*moves("tiny:1")[1:], ("candidate", "PROMOTED", back, "", "anonymous")]
    times = [one.move_time.ToNanoseconds() for one in _lineage(stubs, catalog, "tiny:1").moves]
    assert times == sorted(times)


def test_a_recipe_that_is_gone_is_told(stubs: Stubs, catalog: str, tmp_path: Path, api_server: RunningServer):
    publish(stubs, catalog, _trained(stubs, catalog, tmp_path))
    with sqlite3.connect(api_server.store / "control.sqlite") as database:
        database.execute("DELETE FROM embedding_recipes WHERE catalog = ?", (catalog,))
    database.close()
    found = _lineage(stubs, catalog, "tiny")
    assert found.recipe_gone
    assert not found.recipe_names


def test_a_deleted_model_leaves_no_origin_and_the_next_one_has_its_own(stubs: Stubs, catalog: str, tmp_path: Path):
    folder = _trained(stubs, catalog, tmp_path)
    publish(stubs, catalog, folder)
    stubs.models.DeleteModel(models_pb2.DeleteModelRequest(catalog=catalog, model="tiny:1"))
    write_source(stubs, catalog, "text", {"bare": [1, 1, 1]})
    assert publish(stubs, catalog, folder).version == 2
    found = _lineage(stubs, catalog, "tiny:2")
    assert found.drift.items_now - found.drift.items_then == found.drift.added == 1


def test_no_answer_mixes_two_versions(stubs: Stubs, catalog: str, tmp_path: Path):
    """Two models on one catalog, promoted in turn, while vectors are written and `Recommend` is called without a pause.

    The first knows the items of group x alone and the second those of group y, so the items of an answer tell which
    model gave them. Each write gives one number to the whole of a group: an answer's scores tell whether its index is
    of one moment.
    """
    groups = {"x": [f"x{number}" for number in range(6)], "y": [f"y{number}" for number in range(6)]}
    items = [items_pb2.Item(item_id=item_id) for group in groups.values() for item_id in group]
    list(stubs.items.UpsertItems(iter([items_pb2.UpsertItemsRequest(catalog=catalog, items=items)])))
    sources = {"x": "text", "y": "image"}
    ones = {"x": [1.0, 0.0, 0.0], "y": [0.0, 1.0]}

    def write(group: str, factor: float) -> str:
        vectors = {item_id: [factor * one for one in ones[group]] for item_id in groups[group]}
        return write_source(stubs, catalog, sources[group], vectors)

    write("x", 1.0)
    recipe_id = write("y", 1.0)
    for group, source in sources.items():
        folder = tiny_artefact.write(tmp_path / group, recipe_id=recipe_id, items={}, sources=(source,))
        publish(stubs, catalog, folder, name=group)
    promote(stubs, catalog, "x")

    done = threading.Event()
    faults: list[str] = []
    seen: set[str] = set()

    def ask() -> None:
        settings = recommendations_pb2.RecommendSettings(k=20, include_seen=True)
        history = recommendations_pb2.History(item_ids=["x0", "x1", "y0", "y1"])
        while not done.is_set():
            request = recommendations_pb2.RecommendRequest(catalog=catalog, history=history, settings=settings)
            answer = stubs.recommendations.Recommend(request)
            group = answer.model.partition(":")[0]
            seen.add(group)
            shown = {one.item_id for one in answer.list.recommendations}
            if shown != set(groups[group]):
                faults.append(f"{answer.model} answered with {sorted(shown)}")
            if len({one.score for one in answer.list.recommendations}) != 1:
                faults.append(f"{answer.model}: {[one.score for one in answer.list.recommendations]}")

    askers = [threading.Thread(target=ask) for _ in range(3)]
    for asker in askers:
        asker.start()
    try:
        for turn in range(2, 14):
            write("x", float(turn))
            write("y", float(turn))
            promote(stubs, catalog, "y" if turn % 2 == 0 else "x")
            stubs.models.GetModel(models_pb2.GetModelRequest(catalog=catalog, model="production"))
    finally:
        done.set()
        for asker in askers:
            asker.join()
    assert not faults, faults[:3]
    assert seen == {"x", "y"}
