from __future__ import annotations

import numpy as np
import pytest
import torch
from dmesr_trainer.models import quantisation


def _vectors(rows: int, width: int = 5, *, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32))


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_vq_codes_are_the_nearest_entries_nearest_first():
    vectors, entries = _vectors(20), _vectors(9, seed=1)
    found = quantisation.vq_codes(vectors, entries, codes=4)
    for row, vector in enumerate(vectors.tolist()):
        away = [sum((a - b) ** 2 for a, b in zip(vector, entry, strict=True)) for entry in entries.tolist()]
        assert found[row].tolist() == sorted(range(9), key=away.__getitem__)[:4]


def test_rq_codes_quantise_what_is_left_over():
    vectors = _vectors(20)
    books = torch.stack([_vectors(6, seed=level) / (1 + level) for level in (1, 2, 3)])
    found = quantisation.rq_codes(vectors, books)
    for row, vector in enumerate(vectors.tolist()):
        left = vector
        for level, book in enumerate(books.tolist()):
            away = [sum((a - b) ** 2 for a, b in zip(left, centre, strict=True)) for centre in book]
            code = away.index(min(away))
            assert found[row, level] == code
            left = [a - b for a, b in zip(left, book[code], strict=True)]


def test_kmeans_finds_planted_clusters():
    planted = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    vectors = torch.cat([centre + 0.01 * _vectors(30, 2, seed=place) for place, centre in enumerate(planted)])
    centres = quantisation.kmeans(vectors, centres=3, generator=_generator())
    expected = torch.stack([vectors[:30].mean(0), vectors[30:60].mean(0), vectors[60:].mean(0)])
    order = quantisation.nearest(expected, centres)
    assert sorted(order.tolist()) == [0, 1, 2]
    torch.testing.assert_close(centres[order], expected)


def test_kmeans_ends_where_every_centre_is_the_mean_of_its_own():
    vectors = _vectors(200)
    centres = quantisation.kmeans(vectors, centres=7, generator=_generator())
    codes = quantisation.nearest(vectors, centres)
    for code in range(7):
        torch.testing.assert_close(centres[code], vectors[codes == code].mean(0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rows", [4, 40])
def test_fewer_different_vectors_than_centres_are_no_trouble(rows: int):
    vectors = _vectors(2).repeat(rows // 2, 1)
    centres = quantisation.kmeans(vectors, centres=4, generator=_generator())
    assert torch.isfinite(centres).all()
    torch.testing.assert_close(centres[quantisation.nearest(vectors, centres)], vectors)


def test_each_level_leaves_less_over_and_a_seed_means_the_same():
    vectors = _vectors(300)
    books = quantisation.fit_residual_books(vectors, levels=4, centres=8, generator=_generator(3))
    assert books.shape == (4, 8, 5)
    assert torch.equal(books, quantisation.fit_residual_books(vectors, levels=4, centres=8, generator=_generator(3)))
    codes, left, before = quantisation.rq_codes(vectors, books), vectors, vectors.square().sum()
    for level in range(4):
        left = left - books[level][codes[:, level]]
        assert left.square().sum() < before
        before = left.square().sum()
    # The first book is k-means on the vectors themselves, the second on what it leaves over.
    torch.testing.assert_close(books[0], quantisation.kmeans(vectors, centres=8, generator=_generator(3)))
