"""What new items can be ranked by without any training: nearness to the history's sentence vectors.

Shapes: C measured users, N items, D0 an encoder's width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from dmesr_trainer.config import AdapterConfig, BackboneConfig, TrainConfig
from dmesr_trainer.experiments import vectors as vector_files
from dmesr_trainer.experiments.arms import Arm, Setup
from dmesr_trainer.experiments.cold import ranks_of_scores, rivals
from dmesr_trainer.experiments.data import Data
from dmesr_trainer.experiments.measured import Measured
from dmesr_trainer.models.whitening import Whitening
from dmesr_trainer.sources import Sources

_RECENT = 10  # events of the history; the table's notes say so


def measure(setup: Setup, parts: Sequence[Data], *, like: Sequence[Arm], group: str) -> list[Measured]:
    """Ranks every fold's new items by nearness.

    Args:
        setup: With vectors.
        parts: The folds.
        like: Rows of the same table, whose measuring is done alike.
        group: The part of the table.
    """
    assert setup.vectors is not None
    sources = vector_files.load(setup.vectors.path)
    evaluation = like[0].config.evaluation
    name = "original" if "original" in sources.names else sources.names[0]
    found = []
    for method, whiten, recent in (
        ("nearest-last", False, 1),
        ("nearest-last-white", True, 1),
        ("nearest-recent-white", True, _RECENT),
    ):
        unit_ND0, present_N = _unit_vectors(sources, name, item_ids=setup.data.sequences.item_ids, whiten=whiten)
        ranks: list[dict[str, NDArray[np.int64]]] = []
        for part in parts:
            scores_CN = _scores(part, unit_ND0, present_N, recent=recent)
            ranks.append(ranks_of_scores(scores_CN, part, rivals(part, evaluation)))
        users = [np.array(part.sequences.user_ids, object)[_cold(part)[0]] for part in parts]
        items = [np.array(part.sequences.item_ids, object)[_cold(part)[1]] for part in parts]
        config = TrainConfig(method=method, backbone=BackboneConfig(name=""), evaluation=evaluation)
        found.append(
            Measured(
                arm=Arm(method=method, backbone="", config=config, vectors=setup.vectors, role="floor", seeds=(0,)),
                seeds=(0,),
                cells=(),
                user_ids=np.concatenate(users),
                item_ids=np.concatenate(items),
                ranks={kind: np.concatenate([one[kind] for one in ranks])[None] for kind in ("sampled", "full")},
                k=evaluation.k,
                group=group,
            )
        )
    return found


def _cold(part: Data) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    assert part.cold is not None
    return part.cold.users_C, part.cold.targets_C


def _unit_vectors(
    sources: Sources, name: str, *, item_ids: Sequence[str], whiten: bool
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Vectors of length 1, zeros where the source is absent."""
    vectors_ND0 = sources.aligned(item_ids).vectors[name]
    present_N = sources.aligned(item_ids).present[name]
    if whiten:
        there = torch.from_numpy(sources.vectors[name][sources.present[name]])
        settings = AdapterConfig()
        fitted = Whitening.fit(there, max_width=settings.whitened_dims, items_per_dim=settings.items_per_dim)
        with torch.no_grad():
            vectors_ND0 = fitted(torch.from_numpy(vectors_ND0)).numpy()
    vectors_ND0 = np.where(present_N[:, None], vectors_ND0, 0.0)
    lengths_N1 = np.linalg.norm(vectors_ND0, axis=1, keepdims=True)
    return (vectors_ND0 / np.maximum(lengths_N1, 1e-12)).astype(np.float32), present_N


def _scores(
    part: Data, unit_ND0: NDArray[np.float32], present_N: NDArray[np.bool_], *, recent: int
) -> NDArray[np.float32]:
    users = _cold(part)[0].tolist()
    asked_CD0 = np.stack([unit_ND0[part.sequences.events(user)[-recent:]].mean(axis=0) for user in users])
    scores_CN = asked_CD0 @ unit_ND0.T
    scores_CN[:, ~present_N] = -np.inf
    return np.asarray(scores_CN, np.float32)
