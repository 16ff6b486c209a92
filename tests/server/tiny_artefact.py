"""A small real artefact whose every number can be worked out by hand: a linear item tower, a mean-pool user tower.

Item tower: vector = text·W_text + image·W_image, over the sources that are present. User tower: the mean of the last
`max_history` vectors, with 1 at the bias position. V = 5: coarse 0–2, fine 2–4, bias 4–5.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
from onnx import TensorProto, helper, numpy_helper

V = 5
MAX_HISTORY = 3
DIMS = {"text": 3, "image": 2}
WEIGHTS = {
    "text": np.array([[1, 0, 0, 2, 0], [0, 1, 1, 0, 0], [0.5, 0, 0, 1, 0]], np.float32),
    "image": np.array([[0, 2, 0, 1, 0], [1, 0, -1, 0, 0]], np.float32),
}
VIEWS = [
    {"name": "coarse", "start": 0, "stop": 2},
    {"name": "fine", "start": 2, "stop": 4},
    {"name": "bias", "start": 4, "stop": 5},
]


def item_vector(sources: Mapping[str, Sequence[float] | None], part: Sequence[float] | None = None) -> np.ndarray:
    """The contract, written out: item_tower(sources) + part."""
    vector = np.zeros(V, np.float32)
    for name, values in sources.items():
        if values is not None:
            vector += np.asarray(values, np.float32) @ WEIGHTS[name]
    return vector if part is None else vector + np.asarray(part, np.float32)


def user_vector(history: Sequence[np.ndarray]) -> np.ndarray:
    """The contract, written out: the mean of the last MAX_HISTORY vectors, 1 at the bias."""
    kept = list(history)[-MAX_HISTORY:]
    user = np.mean(kept, axis=0).astype(np.float32) if kept else np.zeros(V, np.float32)
    user[4] = 1.0
    return user


def item_tower(sources: Sequence[str] = ("text", "image")) -> onnx.ModelProto:
    nodes, inputs, terms = [], [], []
    weights = []
    for name in sources:
        inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", DIMS[name]]))
        inputs.append(helper.make_tensor_value_info(f"{name}_present", TensorProto.BOOL, ["n"]))
        weights.append(numpy_helper.from_array(WEIGHTS[name], f"{name}_weight"))
        nodes += [
            helper.make_node("Cast", [f"{name}_present"], [f"{name}_mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", [f"{name}_mask", "one"], [f"{name}_column"]),
            helper.make_node("Mul", [name, f"{name}_column"], [f"{name}_kept"]),
            helper.make_node("MatMul", [f"{name}_kept", f"{name}_weight"], [f"{name}_term"]),
        ]
        terms.append(f"{name}_term")
    nodes.append(helper.make_node("Sum", terms, ["vector"]))
    weights.append(numpy_helper.from_array(np.array([1], np.int64), "one"))
    output = helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["n", V])
    return _model(helper.make_graph(nodes, "item", inputs, [output], weights))


def logarithmic_item_tower() -> onnx.ModelProto:
    """An item tower that is sound on small numbers and answers NaN when a number of `text` is below -1."""
    model = item_tower()
    nodes = model.graph.node
    first = next(node for node in nodes if node.op_type == "Mul")
    first.input[0] = "logarithm"
    nodes.insert(0, helper.make_node("Add", ["text", "one_float"], ["shifted"]))
    nodes.insert(1, helper.make_node("Log", ["shifted"], ["logarithm"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array(1, np.float32), "one_float"))
    onnx.checker.check_model(model)
    return model


def user_tower() -> onnx.ModelProto:
    def constant(name: str, values: Any, kind: Any) -> onnx.TensorProto:
        return numpy_helper.from_array(np.array(values, kind), name)

    nodes = [
        helper.make_node("Shape", ["vectors"], ["shape"]),
        helper.make_node("Gather", ["shape", "one_index"], ["positions"]),
        helper.make_node("Range", ["zero", "positions", "one"], ["place"]),  # [T]
        helper.make_node("Unsqueeze", ["lengths", "axis"], ["end"]),  # [B, 1]
        helper.make_node("Sub", ["end", "limit"], ["start"]),
        helper.make_node("Less", ["place", "end"], ["before_end"]),
        helper.make_node("GreaterOrEqual", ["place", "start"], ["after_start"]),
        helper.make_node("And", ["before_end", "after_start"], ["counted"]),  # [B, T]
        helper.make_node("Cast", ["counted"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["mask3"]),
        helper.make_node("Mul", ["vectors", "mask3"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "axis"], ["total"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "axis"], ["count"], keepdims=1),
        helper.make_node("Max", ["count", "one_float"], ["divisor"]),
        helper.make_node("Div", ["total", "divisor"], ["mean"]),
        helper.make_node("Mul", ["mean", "not_bias"], ["tastes"]),
        helper.make_node("Add", ["tastes", "bias"], ["user"]),
    ]
    constants = [
        constant("one_index", 1, np.int64),
        constant("zero", 0, np.int64),
        constant("one", 1, np.int64),
        constant("axis", [1], np.int64),
        constant("last", [2], np.int64),
        constant("limit", MAX_HISTORY, np.int64),
        constant("one_float", 1, np.float32),
        constant("not_bias", [1, 1, 1, 1, 0], np.float32),
        constant("bias", [0, 0, 0, 0, 1], np.float32),
    ]
    inputs = [
        helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["b", "t", V]),
        helper.make_tensor_value_info("lengths", TensorProto.INT64, ["b"]),
    ]
    output = helper.make_tensor_value_info("user", TensorProto.FLOAT, ["b", V])
    return _model(helper.make_graph(nodes, "user", inputs, [output], constants))


def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def write(
    folder: Path,
    *,
    recipe_id: str,
    items: Mapping[str, tuple[int, Sequence[float] | None]],
    sources: Sequence[str] = ("text", "image"),
    manifest_changes: Mapping[str, Any] | None = None,
) -> Path:
    """Writes an artefact.

    Args:
        folder: Where to; made here.
        recipe_id: The recipe that it reads.
        items: item id → (interactions in training, learned part or None).
        sources: What the item tower reads; none means that there is no item tower.
        manifest_changes: Keys to overwrite in the manifest.
    """
    folder.mkdir(parents=True)
    onnx.save(user_tower(), str(folder / "user_tower.onnx"))
    if sources:
        onnx.save(item_tower(sources), str(folder / "item_tower.onnx"))
    table = pa.table(
        {
            "item_id": pa.array(list(items), pa.string()),
            "count": pa.array([count for count, _ in items.values()], pa.int64()),
            "part": pa.array([part for _, part in items.values()], pa.list_(pa.float32(), V)),
        }
    )
    with pa.OSFile(str(folder / "items.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    write_manifest(folder, recipe_id=recipe_id, sources=sources, changes=manifest_changes)
    return folder


def write_manifest(
    folder: Path,
    *,
    recipe_id: str,
    sources: Sequence[str] = ("text", "image"),
    changes: Mapping[str, Any] | None = None,
) -> None:
    """Writes the manifest of the files that are in the folder now."""
    files = {
        file.name: {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "bytes": file.stat().st_size}
        for file in sorted(folder.iterdir())
        if file.name != "manifest.json"
    }
    manifest = {
        "format": "dmesr-artefact",
        "format_version": 1,
        "method": "tiny",
        "backbone": "mean",
        "recipe_id": recipe_id,
        "embedding_version": 1,
        "embedding_digest": "0" * 64,
        "sources": [{"name": name, "dim": DIMS[name]} for name in sources],
        "vector_dim": V,
        "views": VIEWS,
        "max_history": MAX_HISTORY,
        "files": files,
        "metrics": {},
        "training": {"seed": 0},
        "versions": {},
        "created": "2026-01-01T00:00:00+00:00",
        **(changes or {}),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
