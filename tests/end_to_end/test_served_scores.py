"""What the server recommends is what the trainer would: the same scores from the same vectors, over the wire."""

from __future__ import annotations

from pathlib import Path

import dmesr
import numpy as np
import pytest
from dmesr_trainer.config import TrainConfig
from dmesr_trainer.datasets import load
from dmesr_trainer.evaluation import score
from dmesr_trainer.export import export
from dmesr_trainer.sequences import Sequences
from dmesr_trainer.sources import fetch
from dmesr_trainer.training import train

K = 40
HISTORIES = 25


def test_the_server_gives_the_trainer_s_scores(client: dmesr.Client, tmp_path: Path):
    dataset = load("sample")
    items = [item for item in dataset.items() if isinstance(item, dmesr.Item)]
    client.items.upsert(items)
    rng = np.random.default_rng(5)
    for source in ("original", "text", "image", "hybrid"):
        ids = [item.item_id for item in items if source in ("original", "text") or item.picture is not None]
        vectors = rng.normal(size=(len(ids), 24)).astype(np.float32)
        client.embeddings.write(recipe="made-up", source=source, item_ids=ids, vectors=vectors, create_recipe=True)
    sequences = Sequences.from_interactions(dataset.interactions())
    config = TrainConfig.preset(
        "dmesr", seed=3, device="cpu", dim=16, backbone__max_history=10, optimiser__epochs=1, optimiser__patience=1
    )
    sources = fetch(client, recipe="made-up", item_ids=sequences.item_ids)
    result = train(config=config, sequences=sequences, sources=sources, output=tmp_path / "run")
    model = client.models.publish(export(result, tmp_path / "artefact"), name="novels")

    users = np.flatnonzero(sequences.lengths_U >= 3)[:HISTORIES]
    histories = [sequences.input(user, "test") for user in users]
    scores_BN = score(result.model, result.model.item_vectors(), histories).numpy()
    row_of = {item_id: row for row, item_id in enumerate(sequences.item_ids)}
    served = client.recommend_batch(
        histories=[[sequences.item_ids[item] for item in history] for history in histories], k=K, model=model.ref
    )
    for history, scores_N, answer in zip(histories, scores_BN, served, strict=True):
        # Items that nobody has interacted with are recommended too; the trainer's tables do not hold them.
        known = [found for found in answer if found.item_id in row_of]
        rows = [row_of[found.item_id] for found in known]
        assert [found.score for found in known] == pytest.approx(scores_N[rows], abs=1e-4, rel=1e-4)
        assert all(sum(found.shares.values()) == pytest.approx(found.score, abs=1e-4) for found in answer)
        unseen_N = np.delete(scores_N, history)
        best = np.sort(unseen_N)[::-1][: len(known)]
        assert [found.score for found in known] == pytest.approx(best, abs=1e-4, rel=1e-4)
