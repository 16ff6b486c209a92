"""Vectors to codes: k-means, nearest entries (VQ), and residual levels (RQ).

Shapes: N vectors, D width, E entries of a codebook, C centres of a level, K nearest entries, L levels.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ITERATIONS = 50


def distances(vectors_ND: Tensor, entries_ED: Tensor) -> Tensor:
    """Squared distances but for each vector's own square, which changes no order: [N, E]."""
    return entries_ED.square().sum(1) - 2.0 * vectors_ND @ entries_ED.T


def nearest(vectors_ND: Tensor, entries_ED: Tensor) -> Tensor:
    """The nearest entry of each vector; int64 [N]. Of equals the first."""
    return distances(vectors_ND, entries_ED).argmin(1)


def vq_codes(vectors_ND: Tensor, entries_ED: Tensor, *, codes: int) -> Tensor:
    """The nearest entries, nearest first; int64 [N, K] (QARM §3.2: TopKCode(V, m, K))."""
    return distances(vectors_ND, entries_ED).topk(codes, dim=1, largest=False).indices


def rq_codes(vectors_ND: Tensor, books_LCD: Tensor) -> Tensor:
    """The nearest centre of each level, of what the levels before left over; int64 [N, L].

    QARM §3.2: r_l = NearestCode(R^l, m^(l-1), 1), m^l = m^(l-1) - R^l[r_l].
    """
    left_ND, codes = vectors_ND, []
    for centres_CD in books_LCD:
        code_N = nearest(left_ND, centres_CD)
        left_ND = left_ND - centres_CD[code_N]
        codes.append(code_N)
    return torch.stack(codes, dim=1)


def fit_residual_books(vectors_ND: Tensor, *, levels: int, centres: int, generator: torch.Generator) -> Tensor:
    """K-means on the vectors, then on what each level leaves over; float32 [L, C, D].

    QARM §3.2: R^1 = Kmeans(M, C), M^1 = M - NearestRep(M, R^1), R^2 = Kmeans(M^1, C), …

    Args:
        vectors_ND: The vectors of the fit.
        levels: L.
        centres: C, at most N.
        generator: Of the first centres; on the CPU.
    """
    left_ND, books = vectors_ND, []
    for _ in range(levels):
        centres_CD = kmeans(left_ND, centres=centres, generator=generator)
        left_ND = left_ND - centres_CD[nearest(left_ND, centres_CD)]
        books.append(centres_CD)
    return torch.stack(books)


def kmeans(vectors_ND: Tensor, *, centres: int, generator: torch.Generator) -> Tensor:
    """Lloyd's k-means from k-means++ starts; a centre that nobody is nearest to moves to the worst served vector.

    Args:
        vectors_ND: N of at least `centres`.
        centres: C.
        generator: On the CPU, whatever the vectors' device, so that a seed means the same everywhere.

    Returns:
        float32 [C, D].
    """
    assert len(vectors_ND) >= centres >= 1
    centres_CD = _starts(vectors_ND, centres=centres, generator=generator)
    before_N = None
    for _ in range(_ITERATIONS):
        code_N = nearest(vectors_ND, centres_CD)
        if before_N is not None and torch.equal(code_N, before_N):
            break
        before_N = code_N
        sizes_C = torch.bincount(code_N, minlength=centres)
        sums_CD = torch.zeros_like(centres_CD).index_add_(0, code_N, vectors_ND)
        moved_CD = sums_CD / sizes_C.clamp(min=1)[:, None]
        empty_C = sizes_C == 0
        if empty_C.any():
            errors_N = (vectors_ND - centres_CD[code_N]).square().sum(1)
            moved_CD[empty_C] = vectors_ND[errors_N.topk(int(empty_C.sum())).indices]
        centres_CD = moved_CD
    return centres_CD


def _starts(vectors_ND: Tensor, *, centres: int, generator: torch.Generator) -> Tensor:
    chosen = [int(torch.randint(len(vectors_ND), (1,), generator=generator))]
    away_N = (vectors_ND - vectors_ND[chosen[0]]).square().sum(1)
    for _ in range(centres - 1):
        weights_N = away_N.double().cpu()
        # Fewer different vectors than centres: any will do.
        weights_N = weights_N if float(weights_N.sum()) > 0.0 else torch.ones_like(weights_N)
        reached_N = weights_N.cumsum(0)
        draw = torch.rand(1, generator=generator, dtype=torch.float64) * reached_N[-1]
        chosen.append(min(int(torch.searchsorted(reached_N, draw, right=True)), len(vectors_ND) - 1))
        away_N = torch.minimum(away_N, (vectors_ND - vectors_ND[chosen[-1]]).square().sum(1))
    return vectors_ND[torch.tensor(chosen, device=vectors_ND.device)].clone()
