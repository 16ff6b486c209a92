"""The baselines' artefacts against the trainer's own vectors and scores, through onnxruntime."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow as pa
import pytest
import torch
from dmesr_trainer.config import BACKBONES, FLOORS, TrainConfig
from dmesr_trainer.evaluation import score
from dmesr_trainer.export import export
from dmesr_trainer.sources import Sources
from dmesr_trainer.training import TrainResult, train
from made_up import SOURCE_DIMS, make_sequences

L = 6
TOLERANCE = 1e-4
READ = {
    "none-flag": ["image"],
    "xreflect": ["reflect", "text", "image", "hybrid"],
    "cpmm": ["text", "image"],
    "qarm": ["hybrid", "text", "image"],
    "ease": [],
}
# A graph takes seconds to export, so each method is exported on one backbone, and each backbone by one of them.
PAIRS = [(method, BACKBONES[place % len(BACKBONES)]) for place, method in enumerate(READ)]


class _Artefact:
    def __init__(self, method: str, backbone: str, folder: Path) -> None:
        rng = np.random.default_rng(7)
        histories = [rng.permutation(59)[: rng.integers(6, 20)] + 1 for _ in range(40)]
        histories[3][-1] = 0
        self.sequences = make_sequences(*(history.tolist() for history in histories), n_items=60)
        dims = {**SOURCE_DIMS, "reflect": 12}
        present = {name: rng.random(60) < 0.6 for name in dims}
        for name in dims:
            present[name][[0, 5]] = False
        self.sources = Sources(
            item_ids=self.sequences.item_ids,
            vectors={name: rng.normal(size=(60, dim)).astype(np.float32) for name, dim in dims.items()},
            present=present,
            recipe_id="ab12",
            version=3,
            digest="d",
        )
        config = TrainConfig.preset(
            method,
            backbone=backbone,
            dim=8,
            device="cpu",
            backbone__max_history=L,
            optimiser__epochs=1,
            evaluation__negatives=20,
            ease__history=L,
            ease__rank=8,
            cpmm__pretrain_epochs=1,
            qarm__pretrain_epochs=1,
        )
        self.result: TrainResult = train(
            config=config, sequences=self.sequences, sources=self.sources, output=folder / "run"
        )
        self.folder = export(self.result, folder / "artefact", dataset="made-up")
        self.manifest = json.loads((self.folder / "manifest.json").read_text())

    def session(self, name: str) -> onnxruntime.InferenceSession:
        return onnxruntime.InferenceSession(str(self.folder / name), providers=["CPUExecutionProvider"])

    def parts(self) -> tuple[np.ndarray, np.ndarray]:
        with pa.ipc.open_file(self.folder / "items.arrow") as reader:
            column = reader.read_all()["part"]
        has_part = column.is_valid().to_numpy()
        width = self.manifest["vector_dim"]
        return np.stack([np.zeros(width) if row is None else row for row in column.to_pylist()]), has_part


@pytest.fixture(scope="module", params=PAIRS, ids=["-on-".join(pair) for pair in PAIRS])
def artefact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> _Artefact:
    return _Artefact(*request.param, tmp_path_factory.mktemp("artefact"))


def test_the_manifest_says_what_the_method_reads(artefact: _Artefact):
    manifest, model = artefact.manifest, artefact.result.model
    method = manifest["method"]
    assert [source["name"] for source in manifest["sources"]] == READ[method]
    assert manifest["backbone"] == ("" if method in FLOORS else artefact.result.config.backbone.name)
    assert manifest["max_history"] == L
    names = ["in", "out", "key"] if method == "ease" else ["item", "bias"]
    assert [view["name"] for view in manifest["views"]] == names
    assert (artefact.folder / "item_tower.onnx").exists() == bool(READ[method])
    assert manifest["training"]["pretraining"] == artefact.result.pretraining
    assert manifest["training"]["notes"] == list(model.notes)
    assert bool(model.notes) == (method == "ease")


def test_the_towers_and_parts_are_the_trainer_s_item_vectors(artefact: _Artefact):
    model, (part_NV, has_part_N) = artefact.result.model, artefact.parts()
    assert has_part_N.tolist() == (artefact.sequences.train_counts_N > 0).tolist()
    semantic_NV = np.zeros_like(part_NV)
    if model.sources:
        feed: dict[str, np.ndarray] = {}
        for source in model.sources:
            present = artefact.sources.present[source.name]
            # What stands in the rows of absent vectors must not matter.
            feed[source.name] = np.where(present[:, None], artefact.sources.vectors[source.name], np.nan)
            feed[f"{source.name}_present"] = present
        (semantic_NV,) = artefact.session("item_tower.onnx").run(None, feed)
        assert not semantic_NV[[0, 5]].any()  # nothing is known of these
    with torch.no_grad():
        expected_NV = model.item_vectors().numpy()
    np.testing.assert_allclose(semantic_NV + part_NV, expected_NV, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("lengths", [[0], [1], [L - 1, 0, 2], [L, 3], [L + 1, L + 4]])
def test_the_user_tower_gives_the_model_s_scores(artefact: _Artefact, lengths: list[int]):
    model = artefact.result.model
    rng = np.random.default_rng(sum(lengths))
    histories = [rng.integers(1, 60, length) for length in lengths]
    with torch.no_grad():
        items_NV = model.item_vectors().numpy()
        vectors_BTV = np.zeros((len(lengths), max(lengths), model.vector_dim), np.float32)
        for row, history in enumerate(histories):
            vectors_BTV[row, : len(history)] = items_NV[history]
        lengths_B = np.array(lengths, np.int64)
        expected_BV = model.user_vectors(torch.from_numpy(vectors_BTV), torch.from_numpy(lengths_B)).numpy()
        expected_BN = score(model, torch.from_numpy(items_NV), histories).numpy()
    (user_BV,) = artefact.session("user_tower.onnx").run(None, {"vectors": vectors_BTV, "lengths": lengths_B})
    assert np.isfinite(user_BV).all()
    np.testing.assert_allclose(user_BV, expected_BV, atol=TOLERANCE, rtol=TOLERANCE)
    if artefact.manifest["method"] != "ease":  # whose artefact is an approximation of its figures
        np.testing.assert_allclose(user_BV @ items_NV.T, expected_BN, atol=TOLERANCE, rtol=TOLERANCE)
