"""Baselines and floors are served by the same contract: the server's scores are the trainer's, and new items appear."""

from __future__ import annotations

from pathlib import Path

import dmesr
import numpy as np
import pytest
from dmesr_trainer.config import METHODS_BY_ID, TrainConfig
from dmesr_trainer.datasets import load
from dmesr_trainer.evaluation import score
from dmesr_trainer.export import export
from dmesr_trainer.sequences import Sequences
from dmesr_trainer.sources import fetch
from dmesr_trainer.training import train

K = 40
HISTORIES = 12
SOURCES = ("text", "image", "hybrid", "reflect")


def test_the_server_gives_every_baseline_s_scores(client: dmesr.Client, tmp_path: Path):
    dataset = load("sample")
    items = [item for item in dataset.items() if isinstance(item, dmesr.Item)]
    client.items.upsert(items)
    rng = np.random.default_rng(5)
    for source in SOURCES:
        ids = [item.item_id for item in items if source == "text" or item.picture is not None]
        vectors = rng.normal(size=(len(ids), 24)).astype(np.float32)
        client.embeddings.write(recipe="made-up", source=source, item_ids=ids, vectors=vectors, create_recipe=True)
    sequences = Sequences.from_interactions(dataset.interactions())
    sources = fetch(client, recipe="made-up", item_ids=sequences.item_ids)
    users = np.flatnonzero(sequences.lengths_U >= 3)[:HISTORIES]
    histories = [sequences.input(user, "test") for user in users]
    row_of = {item_id: row for row, item_id in enumerate(sequences.item_ids)}
    for method in ("xreflect", "cpmm", "qarm", "none-flag", "ease"):
        config = TrainConfig.preset(
            method,
            device="cpu",
            dim=16,
            backbone__max_history=10,
            optimiser__epochs=1,
            cpmm__pretrain_epochs=1,
            qarm__pretrain_epochs=1,
            # Whole, so that what is served is what was evaluated.
            ease__rank=sequences.n_items,
        )
        result = train(config=config, sequences=sequences, sources=sources, output=tmp_path / method)
        model = client.models.publish(export(result, tmp_path / method / "artefact"), name=method)
        scores_BN = score(result.model, result.model.item_vectors(), histories).numpy()
        served = client.recommend_batch(
            histories=[[sequences.item_ids[item] for item in history] for history in histories], k=K, model=model.ref
        )
        for history, scores_N, answer in zip(histories, scores_BN, served, strict=True):
            known = [found for found in answer if found.item_id in row_of]
            rows = [row_of[found.item_id] for found in known]
            expected = pytest.approx(scores_N[rows], abs=1e-4, rel=1e-4)
            assert [found.score for found in known] == expected, method
            assert not set(rows) & set(history.tolist()), method
        # What has vectors can be recommended without ever having been met; what is known by id alone cannot.
        everything = client.recommend(history=[sequences.item_ids[0]], k=len(items), model=model.ref)
        met = {found.item_id for found in everything}
        never_met = {item.item_id for item in items} - row_of.keys()
        assert never_met, "the sample has items that nobody has met"
        if method in METHODS_BY_ID:
            assert not met & never_met, method
        elif method != "none-flag":
            assert never_met <= met, method
