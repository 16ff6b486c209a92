"""Writes a trained model as an artefact that the server runs without any trainer code (no pickle anywhere).

Shapes: B users, T history, N items, V vector, D0 an encoder's width.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dmesr_trainer.models.recommender import Recommender
from dmesr_trainer.run_folder import RunFolder
from dmesr_trainer.training import TrainResult, versions

FORMAT = "dmesr-artefact"
FORMAT_VERSION = 1

_OPSET = 20
# How far the exported graph may be from the model that was trained.
_TOLERANCE = 1e-4
_MOST_NEGATIVE = -1e30  # -inf, or the lowest float32: which of them the exporter writes depends on the mask
_MASKED_LOGIT = -64.0
_DYNAMIC = torch.export.Dim.DYNAMIC


class _UserTower(nn.Module):
    """`Recommender.user_vectors` as a module of its own, with the artefact's input names."""

    def __init__(self, model: Recommender) -> None:
        super().__init__()
        self.model = model

    def forward(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        return self.model.user_vectors(vectors, lengths)


def export(result: TrainResult, folder: Path, *, dataset: str = "") -> Path:
    """Writes manifest.json, user_tower.onnx, items.arrow and, for methods that read sources, item_tower.onnx.

    Args:
        result: A finished run.
        folder: Made where it is missing; files of an earlier export are replaced.
        dataset: The dataset's name, for the manifest.

    Returns:
        The folder.

    Raises:
        ValueError: An exported graph does not give the model's own vectors.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for stale in ("manifest.json", "user_tower.onnx", "item_tower.onnx", "items.arrow"):
        (folder / stale).unlink(missing_ok=True)
    model = result.model.eval()
    _export_user_tower(model, folder / "user_tower.onnx")
    _export_item_tower(model, folder / "item_tower.onnx")
    _write_items(result, folder / "items.arrow")
    # The manifest comes last: a folder that has one is whole.
    manifest = _manifest(result, folder=folder, dataset=dataset)
    text = json.dumps(manifest, indent=2, allow_nan=False) + "\n"
    (folder / "manifest.json").write_text(text, encoding="utf-8")
    return folder


def _export_user_tower(model: Recommender, path: Path) -> None:
    width = model.vector_dim
    _export_graph(
        _UserTower(model),
        inputs=(torch.randn(2, model.max_history + 3, width), torch.tensor([1, model.max_history + 2])),
        input_names=("vectors", "lengths"),
        dynamic=({0: "batch", 1: "time"}, {0: "batch"}),
        output_name="user",
        path=path,
    )
    session = _session(path)
    longest = model.max_history + 1
    for lengths in ([0], [longest, 0, 1]):
        vectors_BTV = torch.randn(len(lengths), max(lengths), width)
        lengths_B = torch.tensor(lengths)
        with torch.no_grad():
            expected_BV = model.user_vectors(vectors_BTV, lengths_B).numpy()
        got_BV = session.run(None, {"vectors": vectors_BTV.numpy(), "lengths": lengths_B.numpy()})[0]
        _check_same(got_BV, expected_BV, graph=path.name)


def _export_item_tower(model: Recommender, path: Path) -> None:
    tower = model.item_tower()
    if tower is None:
        return
    generator = np.random.default_rng(0)
    names = [name for source in model.sources for name in (source.name, f"{source.name}_present")]

    def inputs(rows: int) -> list[NDArray[Any]]:
        return [
            values
            for source in model.sources
            for values in (generator.normal(size=(rows, source.dim)).astype(np.float32), generator.random(rows) < 0.5)
        ]

    _export_graph(
        tower,
        inputs=tuple(torch.from_numpy(values) for values in inputs(3)),
        input_names=names,
        # A tower that takes *args has one dynamic shape, a tuple of them.
        dynamic=(tuple({0: "items"} for _ in names),),
        output_name="vector",
        path=path,
    )
    session = _session(path)
    for rows in (1, 5):
        values = inputs(rows)
        with torch.no_grad():
            expected_NV = tower(*map(torch.from_numpy, values)).numpy()
        got_NV = session.run(None, dict(zip(names, values, strict=True)))[0]
        _check_same(got_NV, expected_NV, graph=path.name)


def _export_graph(
    module: nn.Module,
    *,
    inputs: tuple[Tensor, ...],
    input_names: Sequence[str],
    dynamic: tuple[Any, ...],
    output_name: str,
    path: Path,
) -> None:
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            inputs,
            input_names=list(input_names),
            output_names=[output_name],
            dynamic_shapes=_all_dynamic(dynamic),
            opset_version=_OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None  # as it is with dynamo=True
    graph: Any = program.model_proto
    # The exporter notes the source line behind each node, with paths of this machine.
    for node in graph.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*graph.graph.value_info, *graph.graph.input, *graph.graph.output, *graph.graph.initializer):
        del value.metadata_props[:]
    del graph.metadata_props[:], graph.graph.metadata_props[:]
    _soften_masks(graph.graph)
    flat = dynamic[0] if isinstance(dynamic[0], tuple) else dynamic
    for value, names in zip(graph.graph.input, flat, strict=True):
        for axis, name in names.items():
            value.type.tensor_type.shape.dim[axis].dim_param = name
    graph.graph.output[0].type.tensor_type.shape.dim[0].dim_param = flat[0][0]
    del graph.graph.value_info[:]  # named after the old axes
    onnx.checker.check_model(graph, full_check=True)
    onnx.save_model(graph, path)


def _soften_masks(graph: onnx.GraphProto) -> None:
    """Masks attention by a number that leaves nothing of what it masks, instead of by the most negative one.

    The exponential of that is a denormal number, with which a softmax takes nine times as long: a third of the user
    tower's time. The exponential of this one is far below a float32's precision beside 1.
    """
    masks = {name for node in graph.node if node.op_type == "Where" for name in node.input[1:]}
    for constant in graph.initializer:
        if constant.name in masks and not constant.dims and constant.data_type == onnx.TensorProto.FLOAT:
            value = onnx.numpy_helper.to_array(constant)
            if value < _MOST_NEGATIVE:
                softer = np.array(_MASKED_LOGIT, np.float32)
                constant.CopyFrom(onnx.numpy_helper.from_array(softer, constant.name))


def _all_dynamic(shapes: Any) -> Any:
    if isinstance(shapes, tuple):
        return tuple(map(_all_dynamic, shapes))
    return dict.fromkeys(shapes, _DYNAMIC)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's progress lines and its own dependencies' deprecations from the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _check_same(got: NDArray[np.float32], expected: NDArray[np.float32], *, graph: str) -> None:
    if got.shape != expected.shape or not np.allclose(got, expected, rtol=_TOLERANCE, atol=_TOLERANCE):
        raise ValueError(
            f"{graph}: the exported graph gives other vectors than the model (shape {got.shape} for {expected.shape}); "
            "this is a fault of the exporter: please report it with the versions that `dmesr-cli doctor` prints"
        )


def _write_items(result: TrainResult, path: Path) -> None:
    with torch.no_grad():
        part_NV, has_part_N = result.model.parts()
    width = result.model.vector_dim
    flat = pa.array(np.ascontiguousarray(part_NV.numpy(), np.float32).reshape(-1))
    absent = pa.array(~has_part_N.numpy())
    table = pa.table(
        {
            "item_id": pa.array(result.item_ids, pa.utf8()),
            "count": pa.array(result.train_counts_N, pa.int64()),
            "part": pa.FixedSizeListArray.from_arrays(flat, width, mask=absent),
        }
    )
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _manifest(result: TrainResult, *, folder: Path, dataset: str) -> dict[str, Any]:
    model = result.model
    run = RunFolder(result.output).told()
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "method": model.method,
        "backbone": model.backbone_name,
        "recipe_id": result.lineage.recipe_id,
        "embedding_version": result.lineage.version,
        "embedding_digest": result.lineage.digest,
        "sources": [{"name": source.name, "dim": source.dim} for source in model.sources],
        "vector_dim": model.vector_dim,
        "views": [{"name": view.name, "start": view.start, "stop": view.stop} for view in model.views],
        "max_history": model.max_history,
        "files": {
            path.name: _checksum(path) for path in sorted(folder.iterdir()) if path.suffix in (".onnx", ".arrow")
        },
        "metrics": result.metrics,
        "training": {
            "run_id": run.get("run_id"),
            "git": run.get("commit"),
            "config": result.config.to_dict(),
            "seed": result.config.seed,
            "dataset": dataset,
            "best_epoch": result.best_epoch,
            "epochs": len(result.history),
            "pretraining": result.pretraining,
            "notes": list(model.notes),
            "seconds": round(result.seconds, 3),
        },
        "versions": versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _checksum(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}
