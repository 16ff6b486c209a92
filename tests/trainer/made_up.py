"""Small made-up histories and vectors, the same in every test."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from dmesr_trainer.sequences import Sequences
from dmesr_trainer.sources import Sources

SOURCE_DIMS = {"original": 12, "text": 12, "image": 10, "hybrid": 12}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_sequences(*histories: list[int], n_items: int) -> Sequences:
    """Histories of item indexes, oldest first."""
    return Sequences(
        item_ids=tuple(f"item-{number:03d}" for number in range(n_items)),
        user_ids=tuple(f"user-{number:03d}" for number in range(len(histories))),
        events_E=np.concatenate([np.array(history, np.int64) for history in histories]),
        starts_U1=np.cumsum([0, *map(len, histories)]),
    )


@pytest.fixture
def sequences() -> Sequences:
    """40 users that walk a ring of 60 items in steps of 1 to 3; item 0 is only ever held out."""
    rng = np.random.default_rng(7)
    histories = []
    for _ in range(40):
        steps = rng.integers(1, 4, size=rng.integers(6, 20))
        histories.append(((rng.integers(60) + np.cumsum(steps)) % 59 + 1).tolist())
    histories[3][-1] = 0
    return make_sequences(*histories, n_items=60)


@pytest.fixture
def make_sources(sequences: Sequences) -> Callable[..., Sources]:
    """Vectors for the items of `sequences` and five more; a share of each source is absent."""

    def make(*, absent: float = 0.3, names: tuple[str, ...] = tuple(SOURCE_DIMS)) -> Sources:
        rng = np.random.default_rng(11)
        item_ids = (*sequences.item_ids, *(f"new-{number}" for number in range(5)))
        present = {name: rng.random(len(item_ids)) >= absent for name in names}
        vectors = {}
        for name in names:
            made = rng.normal(size=(len(item_ids), SOURCE_DIMS[name])).astype(np.float32)
            vectors[name] = made * present[name][:, None]
        return Sources(
            item_ids=item_ids,
            vectors=vectors,
            present=present,
            recipe_id="0123456789abcdef",
            version=3,
            digest="ab" * 32,
        )

    return make


@pytest.fixture
def sources(make_sources: Callable[..., Sources]) -> Sources:
    return make_sources()
