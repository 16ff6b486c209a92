"""The paper's settings for its datasets (§4.1.3)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from dmesr_trainer.cli.train import train
from dmesr_trainer.config import TrainConfig
from dmesr_trainer.datasets import paper_settings
from dmesr_trainer.datasets.paper import PAPER
from typer.testing import CliRunner


@pytest.mark.parametrize(("dataset", "batch"), [("movielens", 128), ("yelp", 1024), ("amazon-games", 1024)])
def test_settings(dataset: str, batch: int):
    settings = paper_settings(dataset)
    assert settings.alphas == (0.01, 0.05, 0.1, 0.5, 1.0)
    config = TrainConfig.preset("dmesr").changed(**settings.changes(alpha=0.5))
    assert config.optimiser.batch_size == batch
    assert (config.dim, config.optimiser.patience) == (128, 20)
    assert (config.alignment.temperature, config.alignment.weight) == (2.0, 0.5)
    own = TrainConfig.preset("dmesr")
    assert own.changed(**settings.changes()).alignment.weight == own.alignment.weight


def test_a_dataset_of_ones_own_is_dense_or_sparse_by_its_histories():
    assert paper_settings("files").batch_size == 128
    assert paper_settings("files", mean_length=6.9).batch_size == 1024
    assert paper_settings("files", mean_length=80.0).batch_size == 128
    assert paper_settings("movielens", mean_length=6.9).batch_size == 128


def test_table_1_is_consistent():
    for row in PAPER.values():
        assert row.interactions / row.users == pytest.approx(row.mean_length, abs=0.006)
        assert 1 - row.interactions / (row.users * row.items) == pytest.approx(row.sparsity, abs=6e-5)


@pytest.mark.parametrize(
    ("flags", "batch", "patience"), [((), 64, 20), (("--paper-settings", "--patience", "3"), 1024, 3)]
)
def test_train_takes_them_when_asked(flags: tuple[str, ...], batch: int, patience: int, tmp_path: Path):
    """On files of one's own with other names of columns; what is said on the command line goes before the paper."""
    (tmp_path / "items.csv").write_text("item_id\n" + "".join(f"i{item}\n" for item in range(30)))
    rows = [f"u{user},i{(user * 7 + step * 3) % 30},{step}\n" for user in range(12) for step in range(5)]
    (tmp_path / "interactions.csv").write_text("who,what,position\n" + "".join(rows))
    app = typer.Typer()
    app.command()(train)
    arguments = ["--dataset", "files", "--data", str(tmp_path), "--user-column", "who", "--item-column", "what"]
    small = [
        "--method",
        "none",
        "--epochs",
        "1",
        "--device",
        "cpu",
        "--set",
        "dim=8",
        "--set",
        "evaluation.negatives=9",
    ]
    done = CliRunner().invoke(app, [*arguments, *small, *flags, "--output", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert (config["optimiser"]["batch_size"], config["optimiser"]["patience"]) == (batch, patience)
    assert config["dim"] == 8
