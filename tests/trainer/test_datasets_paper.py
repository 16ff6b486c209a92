"""The paper's settings for its datasets (§4.1.3)."""

from __future__ import annotations

import pytest
from dmesr_trainer.config import TrainConfig
from dmesr_trainer.datasets import paper_settings
from dmesr_trainer.datasets.paper import PAPER


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
