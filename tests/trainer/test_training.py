from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from dmesr_trainer.batching import Windows
from dmesr_trainer.config import TrainConfig
from dmesr_trainer.models.build import build
from dmesr_trainer.sequences import Sequences
from dmesr_trainer.sources import Sources
from dmesr_trainer.training import EpochReport, train
from made_up import make_sequences
from safetensors.torch import load_file

# The loss of the first steps on the fixtures' data, CPU, seed 0. A change that should alter no number must leave them.
GOLDEN = {
    ("dmesr", "sasrec"): [4.59783, 4.74335, 4.71417],
    ("dmesr-paper", "sasrec"): [3.03748, 2.78203, 2.87746],
    ("none", "sasrec"): [4.05973, 4.06973, 4.09293],
    ("dmesr", "gru4rec"): [4.61468, 4.64357, 4.66318],
    ("none", "gru4rec"): [4.07846, 4.07655, 4.08819],
    ("dmesr", "bert4rec"): [4.62886, 4.70764, 4.66927],
    ("none", "bert4rec"): [4.07262, 4.07769, 4.07703],
}


def _config(method: str = "dmesr", backbone: str = "sasrec", **changes: object) -> TrainConfig:
    settings = {
        "dim": 8,
        "device": "cpu",
        "backbone__max_history": 6,
        "optimiser__epochs": 3,
        "optimiser__batch_size": 16,
        "evaluation__negatives": 20,
    }
    return TrainConfig.preset(method, backbone=backbone, **{**settings, **changes})


def _first_losses(config: TrainConfig, sequences: Sequences, sources: Sources) -> list[float]:
    torch.manual_seed(config.seed)
    model = build(config, sequences=sequences, sources=sources)
    windows = Windows.of(config, sequences)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for batch, _ in zip(windows.epoch(), range(3), strict=False):
        loss = model(batch).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(round(loss.item(), 5))
    return losses


@pytest.mark.parametrize(("method", "backbone"), GOLDEN)
def test_golden_losses(method: str, backbone: str, sequences: Sequences, sources: Sources):
    # What presets are tuned to is no concern of these numbers.
    config = _config(method, backbone, backbone__dropout=0.2, backbone__hidden_share=0.2)
    losses = _first_losses(config, sequences, sources)
    assert losses == pytest.approx(GOLDEN[method, backbone], rel=1e-4)


def test_the_same_seed_gives_the_same_run(tmp_path: Path, sequences: Sequences, sources: Sources):
    runs = [
        train(config=_config(seed=seed), sequences=sequences, sources=sources, output=tmp_path / name)
        for name, seed in (("a", 4), ("b", 4), ("c", 5))
    ]
    losses = [[report.losses for report in run.history] for run in runs]
    assert losses[0] == losses[1] != losses[2]
    assert runs[0].metrics == runs[1].metrics


def test_what_a_run_leaves_behind(tmp_path: Path, sequences: Sequences, sources: Sources):
    reports: list[EpochReport] = []
    result = train(
        config=_config(), sequences=sequences, sources=sources, output=tmp_path / "run", on_epoch=reports.append
    )
    assert TrainConfig.from_dict(json.loads((tmp_path / "run/config.json").read_text())) == _config()
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3] == [report.epoch for report in reports]
    assert lines[-1]["losses"].keys() == {"recommend", "align"}
    summary = json.loads((tmp_path / "run/result.json").read_text())
    assert summary["metrics"] == result.metrics
    assert summary["lineage"] == {"recipe_id": "0123456789abcdef", "version": 3, "digest": "ab" * 32}
    assert {"torch", "lightning-fabric"} <= summary["versions"].keys()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "best.safetensors",
        "checkpoint.safetensors",
        "config.json",
        "metrics.jsonl",
        "result.json",
        "result.md",
        "run.json",
        "tensorboard",
    ]
    facts = json.loads((tmp_path / "run/run.json").read_text())
    assert facts.keys() == {"run_id", "seed", "commit", "versions", "devices", "threads", "data"}
    assert facts["data"]["interactions"] == sequences.digest
    table = (tmp_path / "run/result.md").read_text()
    assert table.startswith("# dmesr on sasrec, epoch ")
    assert f"| test | {result.metrics['test']['sampled']['hr@10']:.4f} | " in table


def test_the_model_that_is_kept_is_the_one_of_the_best_epoch(tmp_path: Path, sequences: Sequences, sources: Sources):
    config = _config(optimiser__epochs=30, optimiser__patience=4, optimiser__learning_rate=0.02)
    result = train(config=config, sequences=sequences, sources=sources, output=tmp_path)
    values = [report.valid["sampled"]["ndcg@10"] for report in result.history]
    assert result.best_epoch == int(np.argmax(values)) + 1
    assert len(values) == min(30, result.best_epoch + 4)
    assert result.metrics["valid"]["sampled"]["ndcg@10"] == pytest.approx(max(values))
    kept = load_file(tmp_path / "best.safetensors")
    assert all(torch.equal(kept[name], value) for name, value in result.model.state_dict().items())


@pytest.mark.parametrize(("method", "backbone"), GOLDEN)
def test_a_ring_is_learned(method: str, backbone: str, tmp_path: Path, sources: Sources):
    """Users walk round a ring of items; each method finds the next one far above the floor."""
    histories = [[(start + step) % 60 for step in range(12)] for start in range(60)]
    ring = make_sequences(*histories, n_items=60)
    config = _config(
        method,
        backbone,
        dim=16,
        optimiser__epochs=60,
        optimiser__learning_rate=0.005 if backbone == "bert4rec" else 0.01,
        backbone__dropout=0.0,
    )
    result = train(config=config, sequences=ring, sources=sources, output=tmp_path)
    assert result.metrics["test"]["sampled"]["hr@10"] > 0.9


def test_popularity_needs_no_epochs(tmp_path: Path, sequences: Sequences):
    result = train(config=_config("popularity"), sequences=sequences, sources=None, output=tmp_path)
    assert result.best_epoch == 0
    assert result.history == ()
    assert set(result.metrics) == {"valid", "test"}


def test_methods_meet_the_same_users(tmp_path: Path, sequences: Sequences, sources: Sources):
    ranks = {
        method: train(
            config=_config(method, optimiser__epochs=1), sequences=sequences, sources=sources, output=tmp_path / method
        ).test_ranks
        for method in ("dmesr", "none", "popularity")
    }
    for kinds in ranks.values():
        assert {kind: len(values) for kind, values in kinds.items()} == {"sampled": 40, "full": 40}


def test_ctrl_c_keeps_the_best_so_far(tmp_path: Path, sequences: Sequences, sources: Sources):
    def interrupt(report: EpochReport) -> None:
        if report.epoch == 2:
            signal.raise_signal(signal.SIGINT)

    config = _config(optimiser__epochs=1000)
    result = train(config=config, sequences=sequences, sources=sources, output=tmp_path, on_epoch=interrupt)
    assert result.interrupted
    assert len(result.history) == 2
    assert result.best_epoch in (1, 2)
    assert json.loads((tmp_path / "result.json").read_text())["interrupted"]


def test_ctrl_c_before_anything_is_worth_keeping_is_raised(tmp_path: Path, sequences: Sequences, sources: Sources):
    (tmp_path / "best.safetensors").write_bytes(b"of an earlier run")

    def interrupt(step: int, steps: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config=_config(), sequences=sequences, sources=sources, output=tmp_path, on_step=interrupt)


def test_settings_that_cannot_work_are_refused_before_training(tmp_path: Path, sequences: Sequences, sources: Sources):
    cases = (
        (_config(device="tpu"), "unknown device 'tpu'"),
        (_config(optimiser__epochs=0), "at least one epoch"),
        (_config(evaluation__negatives=59), "unseen negatives cannot be drawn"),
        (_config(backbone__heads=3), "does not divide"),
        (_config(fusion__heads=3), "does not divide"),
        (_config(backbone__dropout=1.5), "dropout is 1.5"),
    )
    for config, message in cases:
        with pytest.raises(ValueError, match=message):
            train(config=config, sequences=sequences, sources=sources, output=tmp_path)
    short = make_sequences([0, 1], [1, 2], n_items=3)
    with pytest.raises(ValueError, match="nothing can be held out"):
        train(config=_config("none"), sequences=short, sources=None, output=tmp_path)
