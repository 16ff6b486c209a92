"""How far vectors have moved: by hand, and by the definition written naively."""

from __future__ import annotations

import dmesr
import numpy as np
import pytest
from dmesr.vectors import Embeddings

Rows = dict[str, list[float]]


def read(vectors: dict[str, Rows], *, recipe: str = "r", version: int = 1) -> Embeddings:
    """What a read of these gives; an item without a vector of a source is absent there."""
    ids = sorted({item_id for rows in vectors.values() for item_id in rows})
    matrices, present = {}, {}
    for source, rows in vectors.items():
        dim = len(next(iter(rows.values())))
        matrices[source] = np.array([rows.get(item_id, [0.0] * dim) for item_id in ids], np.float32)
        present[source] = np.array([item_id in rows for item_id in ids])
    return Embeddings(ids, np.ones(len(ids), bool), recipe, None, version, matrices, present)


def test_by_hand():
    before = read({"text": {"a": [1, 0], "b": [3, 4], "c": [0, 2], "gone": [1, 1]}, "image": {"a": [1, 0]}})
    after = read({"text": {"a": [1, 0], "b": [-3, -4], "c": [1, 0], "new": [1, 1]}}, version=2)
    report = dmesr.drift(before, after, same_encoder=True, k=1)
    assert (report.before, report.after, report.only_before, report.only_after) == (("r", 1), ("r", 2), ("image",), ())
    (text,) = report.sources
    assert (text.items, text.both, text.gained, text.lost, text.unchanged) == ((4, 4), 3, 1, 1, 1)
    assert text.mean_shift == pytest.approx((0 + 2 + 1) / 3)  # a stayed, b was turned round, c is at right angles
    assert text.shift_quantiles[0.5] == pytest.approx(1.0)
    assert text.mean_norms == pytest.approx(((1 + 5 + 2) / 3, (1 + 5 + 1) / 3))
    # Nearest before: a → b, b → c, c → b; after: a → c, b → a or c at cosine -0.6, c → a.
    assert text.overlap in (0.0, pytest.approx(1 / 3))
    assert [one.item_id for one in text.moved] == ["b", "c"]


def test_neighbours_as_the_definition_says():
    rng = np.random.default_rng(1)
    ids = [f"i{number:03}" for number in range(400)]
    old = rng.standard_normal((400, 8)).astype(np.float32)
    new = old + 0.4 * rng.standard_normal((400, 8)).astype(np.float32)
    before, after = (read({"text": dict(zip(ids, m.tolist(), strict=True))}) for m in (old, new))
    (text,) = dmesr.drift(before, after, same_encoder=True, k=5, sample=400).sources

    def nearest(matrix: np.ndarray, row: int) -> set[int]:
        cosines = [
            -2.0 if other == row else float(matrix[row] @ one / np.linalg.norm(matrix[row]) / np.linalg.norm(one))
            for other, one in enumerate(matrix)
        ]
        return set(np.argsort(cosines)[-5:].tolist())

    shares = [len(nearest(old, row) & nearest(new, row)) / 5 for row in range(400)]
    assert text.overlap == pytest.approx(np.mean(shares))
    assert text.sample == 400
    (fewer,) = dmesr.drift(before, after, same_encoder=True, k=5, sample=100).sources
    assert fewer == dmesr.drift(before, after, same_encoder=True, k=5, sample=100).sources[0]
    assert (fewer.sample, fewer.mean_shift) == (100, text.mean_shift)


def test_nothing_has_moved():
    same = read({"text": {"a": [1, 0], "b": [0, 1], "c": [1, 1]}})
    (text,) = dmesr.drift(same, same, same_encoder=True).sources
    assert (text.mean_shift, text.overlap, text.unchanged, text.moved) == (0.0, 1.0, 3, ())


def test_two_encoders_are_compared_by_neighbours_alone():
    before, after = read({"text": {"a": [1, 0], "b": [0, 1]}}), read({"text": {"a": [1, 0, 0], "b": [0, 0, 1]}})
    (text,) = dmesr.drift(before, after, same_encoder=False).sources
    assert (text.comparable, text.mean_shift, text.shift_quantiles, text.overlap) == (False, None, {}, 1.0)


def test_one_item_or_none():
    one, none = read({"text": {"a": [1, 0]}}), read({"text": {"b": [1, 0]}})
    (text,) = dmesr.drift(one, one, same_encoder=True).sources
    assert (text.both, text.overlap) == (1, None)
    (text,) = dmesr.drift(one, none, same_encoder=True).sources
    assert (text.both, text.mean_shift, text.mean_norms, text.moved) == (0, None, None, ())


def test_mistakes():
    one, other = read({"text": {"a": [1.0]}}), read({"image": {"a": [1.0]}})
    with pytest.raises(dmesr.InvalidInput, match="no source is in both: before holds text, after image"):
        dmesr.drift(one, other, same_encoder=True)
    with pytest.raises(dmesr.InvalidInput, match="k"):
        dmesr.drift(one, one, same_encoder=True, k=0)
