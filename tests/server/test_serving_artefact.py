"""What an artefact must be before a server runs it, and that each breach is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pytest
import tiny_artefact
from dmesr_server.errors import ServiceError
from dmesr_server.serving import artefact, towers
from onnx import TensorProto, helper, numpy_helper

ITEMS = {"a": (3, [0, 0, 0, 0, 0.5]), "b": (1, None)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_artefact.write(tmp_path / "artefact", recipe_id="r1", items=ITEMS)


def _checked(folder: Path) -> artefact.Artefact:
    loaded = artefact.load(folder, verify_checksums=True)
    towers.rehearse(loaded)
    return loaded


def test_a_sound_artefact_is_read(folder: Path):
    loaded = _checked(folder)
    assert loaded.manifest.vector_dim == 5
    assert loaded.learned.ids.to_pylist() == ["a", "b"]
    assert loaded.learned.counts_N.tolist() == [3, 1]
    assert loaded.learned.has_part_N.tolist() == [True, False]
    assert loaded.learned.parts_NV.tolist() == [[0, 0, 0, 0, 0.5], [0] * 5]
    assert loaded.learned.ids_with_part().to_pylist() == ["a"]
    assert loaded.learned.parts_of(["x", "b", "a"]).tolist() == [[0] * 5, [0] * 5, [0, 0, 0, 0, 0.5]]


def test_the_digest_follows_the_files_only(folder: Path, tmp_path: Path):
    again = tiny_artefact.write(
        tmp_path / "again", recipe_id="r1", items=ITEMS, manifest_changes={"created": "2027-01-01T00:00:00+00:00"}
    )
    other = tiny_artefact.write(tmp_path / "other", recipe_id="r1", items={"a": (4, None)})
    assert _checked(folder).digest == _checked(again).digest != _checked(other).digest


def test_a_model_without_sources_has_no_item_tower(tmp_path: Path):
    loaded = _checked(tiny_artefact.write(tmp_path / "none", recipe_id="", items=ITEMS, sources=()))
    assert towers.load_item_tower(loaded, threads=1) is None


def _rewrite(folder: Path, graph: onnx.ModelProto, name: str) -> None:
    onnx.save(graph, str(folder / name))
    tiny_artefact.write_manifest(folder, recipe_id="r1")


def _cut_short(folder: Path) -> None:
    content = (folder / "items.arrow").read_bytes()
    (folder / "items.arrow").write_bytes(content[:-20])
    tiny_artefact.write_manifest(folder, recipe_id="r1")


def _changed_byte(folder: Path) -> None:
    content = bytearray((folder / "user_tower.onnx").read_bytes())
    content[50] ^= 1
    (folder / "user_tower.onnx").write_bytes(content)


def _double_output(folder: Path) -> None:
    graph = tiny_artefact.user_tower()
    graph.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    graph.graph.node[-1].output[0] = "single"
    graph.graph.node.append(helper.make_node("Cast", ["single"], ["user"], to=TensorProto.DOUBLE))
    _rewrite(folder, graph, "user_tower.onnx")


def _fixed_batch(folder: Path) -> None:
    graph = tiny_artefact.item_tower()
    for entry in [*graph.graph.input, *graph.graph.output]:
        entry.type.tensor_type.shape.dim[0].dim_value = 7
    _rewrite(folder, graph, "item_tower.onnx")


def _nan_at_no_history(folder: Path) -> None:
    graph = tiny_artefact.user_tower()
    divide = next(node for node in graph.graph.node if node.op_type == "Div")
    divide.input[1] = "count"
    _rewrite(folder, graph, "user_tower.onnx")


def _weights_outside(folder: Path) -> None:
    graph = tiny_artefact.item_tower()
    onnx.save(
        graph,
        str(folder / "item_tower.onnx"),
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    (folder / "weights.bin").unlink()
    tiny_artefact.write_manifest(folder, recipe_id="r1")


def _hidden_weights_outside(folder: Path) -> None:
    """External data in a tensor of a node inside a branch of an If, not among the initializers."""
    hidden = numpy_helper.from_array(np.zeros((1,), np.float32), "hidden")
    hidden.ClearField("raw_data")
    hidden.data_location = TensorProto.EXTERNAL
    hidden.external_data.add(key="location", value="/etc/hostname")
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["inside"], value=hidden)],
        "branch",
        [],
        [helper.make_tensor_value_info("inside", TensorProto.FLOAT, [1])],
    )
    graph = tiny_artefact.item_tower()
    graph.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    graph.graph.node.insert(0, helper.make_node("If", ["yes"], ["extra"], then_branch=branch, else_branch=branch))
    _rewrite(folder, graph, "item_tower.onnx")


def _items_schema(folder: Path) -> None:
    table = pa.table(
        {"item_id": ["a"], "count": pa.array([1], pa.int32()), "part": pa.nulls(1, pa.list_(pa.float32(), 5))}
    )
    _write_items(folder, table)


def _items_twice(folder: Path) -> None:
    parts = pa.nulls(2, pa.list_(pa.float32(), 5))
    _write_items(folder, pa.table({"item_id": ["a", "a"], "count": [1, 2], "part": parts}))


def _items_nan(folder: Path) -> None:
    parts = pa.array([[0.0, 0, 0, 0, float("nan")]], pa.list_(pa.float32(), 5))
    _write_items(folder, pa.table({"item_id": ["a"], "count": [1], "part": parts}))


def _write_items(folder: Path, table: pa.Table) -> None:
    with pa.OSFile(str(folder / "items.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    tiny_artefact.write_manifest(folder, recipe_id="r1")


def _manifest(**changes: object) -> Callable[[Path], None]:
    return lambda folder: tiny_artefact.write_manifest(folder, recipe_id="r1", changes=changes)


BREACHES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing"),
    "manifest is no JSON": (lambda folder: (folder / "manifest.json").write_text("{"), "not JSON"),
    "manifest is a list": (lambda folder: (folder / "manifest.json").write_text("[]"), "manifest.json"),
    "other format version": (_manifest(format_version=2), "format_version"),
    "width is text": (_manifest(vector_dim="5"), "vector_dim"),
    "no recipe": (_manifest(recipe_id=""), "recipe_id"),
    "views overlap": (
        _manifest(views=[{"name": "x", "start": 0, "stop": 3}, {"name": "y", "start": 2, "stop": 5}]),
        "y is [2, 5)",
    ),
    "view too wide": (_manifest(views=[{"name": "x", "start": 0, "stop": 6}]), "5 columns"),
    "source twice": (_manifest(sources=[{"name": "text", "dim": 3}] * 2), "twice"),
    "files not listed": (_manifest(files={}), "files: expected exactly"),
    "file missing": (lambda folder: (folder / "user_tower.onnx").unlink(), "user_tower.onnx is missing"),
    "file changed": (_changed_byte, "user_tower.onnx hashes to"),
    "items cut short": (_cut_short, "items.arrow is not an Arrow IPC file"),
    "items of another schema": (_items_schema, "column count must be int64, got int32"),
    "item twice": (_items_twice, "1 item ids stand twice"),
    "part not finite": (_items_nan, "part of item 'a' holds NaN"),
    "another width": (_manifest(vector_dim=6, views=[]), "items.arrow: column part must be"),
    "source of another width": (
        _manifest(sources=[{"name": "text", "dim": 4}, {"name": "image", "dim": 2}]),
        "input text must be float32[?, 4], ? being dynamic, got float32[?, 3]",
    ),
    "source not in the graph": (
        _manifest(sources=[{"name": "text", "dim": 3}, {"name": "sound", "dim": 2}]),
        "expected the inputs",
    ),
    "not a graph": (lambda folder: _rewrite_bytes(folder, b"hello"), "is not an ONNX graph"),
    "double output": (_double_output, "output user must be float32[?, 5], ? being dynamic, got tensor(double)[?, 5]"),
    "batch is fixed": (_fixed_batch, "must be float32[?, 3], ? being dynamic, got float32[7, 3]"),
    "NaN without history": (_nan_at_no_history, "user_tower.onnx answered with NaN"),
    "weights outside": (_weights_outside, "keeps its data outside the file"),
    "hidden weights outside": (_hidden_weights_outside, "tensor 'hidden' keeps its data outside the file"),
}


def _rewrite_bytes(folder: Path, content: bytes) -> None:
    (folder / "item_tower.onnx").write_bytes(content)
    tiny_artefact.write_manifest(folder, recipe_id="r1")


@pytest.mark.parametrize("breach", BREACHES)
def test_a_breach_of_the_contract_is_named(folder: Path, breach: str):
    damage, said = BREACHES[breach]
    damage(folder)
    with pytest.raises(ServiceError) as caught:
        _checked(folder)
    assert caught.value.reason == "INVALID_ARTEFACT"
    assert said in caught.value.message


def test_the_manifest_keeps_what_the_server_does_not_read(folder: Path):
    tiny_artefact.write_manifest(folder, recipe_id="r1", changes={"metrics": {"ndcg@10": 0.5}, "later": [1]})
    assert json.loads(_checked(folder).manifest_json)["later"] == [1]
