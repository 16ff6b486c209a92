"""The artefact against its contract, and against the trainer's own scores through onnxruntime."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pytest
import torch
from dmesr_trainer.config import BACKBONES, TrainConfig
from dmesr_trainer.evaluation import score
from dmesr_trainer.export import export
from dmesr_trainer.models.dmesr import Dmesr
from dmesr_trainer.sequences import Sequences
from dmesr_trainer.sources import Sources
from dmesr_trainer.training import TrainResult, train
from made_up import SOURCE_DIMS, make_sequences

L = 6
TOLERANCE = 1e-4


class _Artefact:
    """A method trained for one epoch and exported, read back as the server would.

    `dmesr-forms` is `dmesr` with the cross-attention's other forms, and with learned numbers that are not near 0.
    """

    def __init__(self, name: str, backbone: str, folder: Path, sequences: Sequences, sources: Sources) -> None:
        self.sources = sources
        method, forms = name.removesuffix("-forms"), name.endswith("-forms")
        config = TrainConfig.preset(
            method,
            backbone=backbone,
            dim=8,
            device="cpu",
            backbone__max_history=L,
            optimiser__epochs=1,
            evaluation__negatives=20,
            fusion__gate=forms,
            fusion__by_distance=forms,
        )
        self.result: TrainResult = train(config=config, sequences=sequences, sources=sources, output=folder / "run")
        if forms:
            assert isinstance(self.result.model, Dmesr)
            assert self.result.model.fusion is not None
            for name, parameter in self.result.model.fusion.named_parameters():
                if name.endswith(("gate_D", "distance_bias_HT")):
                    torch.nn.init.normal_(parameter)
        self.folder = export(self.result, folder / "artefact", dataset="made-up")
        self.manifest = json.loads((self.folder / "manifest.json").read_text())

    def session(self, name: str) -> onnxruntime.InferenceSession:
        return onnxruntime.InferenceSession(str(self.folder / name), providers=["CPUExecutionProvider"])

    def items(self) -> pa.Table:
        with pa.ipc.open_file(self.folder / "items.arrow") as reader:
            return reader.read_all()


@pytest.fixture(
    scope="module",
    params=[
        *(f"{method} {backbone}" for method in ("dmesr", "none") for backbone in BACKBONES),
        *(f"dmesr-forms {backbone}" for backbone in ("sasrec", "bert4rec")),
        "dmesr-paper sasrec",
        "popularity sasrec",
    ],
)
def artefact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Artefact]:
    rng = np.random.default_rng(7)
    histories = [rng.permutation(59)[: rng.integers(6, 20)] + 1 for _ in range(40)]
    histories[3][-1] = 0
    sequences = make_sequences(*(history.tolist() for history in histories), n_items=60)
    present = {name: rng.random(60) < 0.7 for name in SOURCE_DIMS}
    vectors = {
        name: (rng.normal(size=(60, dim)) * present[name][:, None]).astype(np.float32)
        for name, dim in SOURCE_DIMS.items()
    }
    sources = Sources(
        item_ids=sequences.item_ids, vectors=vectors, present=present, recipe_id="ab12", version=3, digest="d"
    )
    return _Artefact(*request.param.split(), tmp_path_factory.mktemp("artefact"), sequences, sources)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("length", [0, 1, L - 1, L, L + 1])
def test_the_user_tower_gives_the_trainer_s_scores(artefact: _Artefact, batch: int, length: int):
    model, session = artefact.result.model, artefact.session("user_tower.onnx")
    with torch.no_grad():
        items_NV = model.item_vectors()
        rng = np.random.default_rng(length)
        # The first of the batch has this length, the others any other one.
        lengths = [length, *rng.integers(0, L + 4, batch - 1).tolist()]
        histories = [rng.integers(0, 60, one) for one in lengths]
        expected_BN = score(model, items_NV, histories).numpy()
    vectors_BTV = np.zeros((batch, max(lengths), model.vector_dim), np.float32)
    for row, history in enumerate(histories):
        vectors_BTV[row, : len(history)] = items_NV.numpy()[history]
    (user_BV,) = session.run(None, {"vectors": vectors_BTV, "lengths": np.array(lengths, np.int64)})
    assert user_BV.dtype == np.float32
    assert np.isfinite(user_BV).all()
    np.testing.assert_allclose(user_BV @ items_NV.numpy().T, expected_BN, atol=TOLERANCE, rtol=TOLERANCE)


def test_item_tower_plus_part_is_the_trainer_s_item_vector(artefact: _Artefact):
    model = artefact.result.model
    table = artefact.items()
    part_NV = np.stack([np.zeros(model.vector_dim) if row is None else row for row in table["part"].to_pylist()])
    semantic_NV = np.zeros_like(part_NV)
    if artefact.manifest["sources"]:
        feed = {}
        for source in model.sources:
            feed[source.name] = artefact.sources.vectors[source.name]
            feed[f"{source.name}_present"] = artefact.sources.present[source.name]
        (semantic_NV,) = artefact.session("item_tower.onnx").run(None, feed)
    with torch.no_grad():
        expected_NV = model.item_vectors().numpy()
    np.testing.assert_allclose(semantic_NV + part_NV, expected_NV, atol=TOLERANCE, rtol=TOLERANCE)


def test_rows_of_absent_sources_may_hold_anything(artefact: _Artefact):
    if not artefact.manifest["sources"]:
        pytest.skip("the method reads no sources")
    session = artefact.session("item_tower.onnx")
    clean, dirty = {}, {}
    rng = np.random.default_rng(0)
    for source in artefact.result.model.sources:
        present = rng.random(9) < 0.5
        vectors = rng.normal(size=(9, source.dim)).astype(np.float32)
        clean |= {source.name: np.where(present[:, None], vectors, 0), f"{source.name}_present": present}
        dirty |= {source.name: np.where(present[:, None], vectors, np.nan), f"{source.name}_present": present}
    (expected_NV,) = session.run(None, {name: np.asarray(value) for name, value in clean.items()})
    (got_NV,) = session.run(None, {name: np.asarray(value).astype(clean[name].dtype) for name, value in dirty.items()})
    assert np.isfinite(got_NV).all()
    np.testing.assert_array_equal(got_NV, expected_NV)


def test_the_graphs_have_the_contract_s_inputs_and_outputs(artefact: _Artefact):
    width = artefact.manifest["vector_dim"]
    user = artefact.session("user_tower.onnx")
    assert [(one.name, one.shape, one.type) for one in user.get_inputs()] == [
        ("vectors", ["batch", "time", width], "tensor(float)"),
        ("lengths", ["batch"], "tensor(int64)"),
    ]
    assert [(one.name, one.shape, one.type) for one in user.get_outputs()] == [
        ("user", ["batch", width], "tensor(float)")
    ]
    if not artefact.manifest["sources"]:
        assert not (artefact.folder / "item_tower.onnx").exists()
        return
    item = artefact.session("item_tower.onnx")
    expected = []
    for source in artefact.manifest["sources"]:
        expected.append((source["name"], ["items", source["dim"]], "tensor(float)"))
        expected.append((f"{source['name']}_present", ["items"], "tensor(bool)"))
    assert [(one.name, one.shape, one.type) for one in item.get_inputs()] == expected
    assert [(one.name, one.shape, one.type) for one in item.get_outputs()] == [
        ("vector", ["items", width], "tensor(float)")
    ]


def test_graphs_are_whole_recent_and_say_nothing_of_this_machine(artefact: _Artefact):
    for path in artefact.folder.glob("*.onnx"):
        graph = onnx.load(path, load_external_data=False)
        assert {one.domain: one.version for one in graph.opset_import}[""] >= 18
        assert all(one.data_location != onnx.TensorProto.EXTERNAL for one in graph.graph.initializer)
        assert str(Path(__file__).parents[2]).encode() not in path.read_bytes()


def test_the_manifest_follows_the_contract(artefact: _Artefact):
    manifest = artefact.manifest
    assert (manifest["format"], manifest["format_version"]) == ("dmesr-artefact", 1)
    assert manifest["max_history"] == L
    views = manifest["views"]
    assert [view["start"] for view in views] == [0, *(view["stop"] for view in views[:-1])]
    assert views[-1]["stop"] == manifest["vector_dim"]
    names = {"dmesr": ["coarse", "fine", "bias"], "none": ["id", "bias"], "popularity": ["bias"]}
    assert [view["name"] for view in views] == names[manifest["method"].removesuffix("-paper")]
    reads_sources = manifest["method"].startswith("dmesr")
    assert [source["name"] for source in manifest["sources"]] == (
        ["text", "hybrid", "image", "original"] if reads_sources else []
    )
    assert (manifest["recipe_id"], manifest["embedding_version"], manifest["embedding_digest"]) == ("ab12", 3, "d")
    assert set(manifest["files"]) == {path.name for path in artefact.folder.iterdir()} - {"manifest.json"}
    for name, said in manifest["files"].items():
        data = (artefact.folder / name).read_bytes()
        assert said == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    assert manifest["metrics"] == artefact.result.metrics
    run = json.loads((artefact.result.output / "run.json").read_text())
    assert (manifest["training"]["run_id"], manifest["training"]["git"]) == (run["run_id"], run["commit"])
    assert manifest["training"]["dataset"] == "made-up"
    assert manifest["training"]["config"]["method"] == manifest["method"]


def test_items_have_their_counts_and_only_trained_ones_a_part(artefact: _Artefact):
    table, result = artefact.items(), artefact.result
    assert table.schema == pa.schema(
        [
            ("item_id", pa.utf8()),
            ("count", pa.int64()),
            ("part", pa.list_(pa.float32(), artefact.manifest["vector_dim"])),
        ]
    )
    assert table["item_id"].to_pylist() == list(result.item_ids)
    counts = table["count"].to_pylist()
    assert counts == result.train_counts_N.tolist()
    assert counts[0] == 0  # only ever held out
    has_part = table["part"].is_valid().to_pylist()
    match result.config.method:
        case "dmesr-paper":
            assert not any(has_part)
        case "popularity":
            assert all(has_part)
        case _:
            assert has_part == [count > 0 for count in counts]


@pytest.mark.parametrize("artefact", ["popularity sasrec"], indirect=True)  # which has no item tower
def test_a_new_export_leaves_nothing_of_the_old_one(artefact: _Artefact, tmp_path: Path):
    for name in ("item_tower.onnx", "manifest.json"):
        (tmp_path / name).write_bytes(b"old")
    export(artefact.result, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in artefact.folder.iterdir()}
