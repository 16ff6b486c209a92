"""How far vectors have moved between two recipes, or between two versions of one.

Shapes: N items that both hold, D width of a source, Q items of the sample whose neighbours are compared, B items of a
block, K neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dmesr.arguments import positive
from dmesr.errors import InvalidInput

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from dmesr.arrow import Matrix
    from dmesr.vectors import Embeddings

_QUANTILES = (0.5, 0.9, 0.99)
_BLOCK = 256  # items whose similarities with all others are in memory at a time
_SEED = 0  # two reports on the same vectors look at the same sample


@dataclass(frozen=True)
class Moved:
    """An item whose vector moved far.

    Attributes:
        item_id: Which.
        shift: 1 less the cosine of before and after: 0 has stayed, 1 is at right angles; None where the two cannot be
            compared by cosine.
        overlap: The share of its K nearest neighbours that it kept; None where it is not of the sample.
    """

    item_id: str
    shift: float | None
    overlap: float | None


@dataclass(frozen=True)
class SourceDrift:
    """What happened to one source.

    Attributes:
        source: Its name.
        dims: Width before and after.
        items: Items with a vector before and after.
        both: Items that have one in both; all that follows but the counts is about these.
        gained: Items that have one only after.
        lost: Items that had one only before.
        unchanged: Items whose vector is the same number by number.
        comparable: Whether cosines between before and after mean anything: the same width, and not two encoders.
        mean_shift: 1 less the cosine, the mean; None where that means nothing or no item is in both.
        shift_quantiles: The same at the shares 0.5, 0.9 and 0.99 of the items.
        mean_norms: Length of the vectors before and after.
        overlap: Mean share of the K nearest neighbours (by cosine, among the items of both) that stayed; None with
            fewer than two items.
        sample: Items whose neighbours were compared.
        moved: Those that moved most, farthest first.
    """

    source: str
    dims: tuple[int, int]
    items: tuple[int, int]
    both: int
    gained: int
    lost: int
    unchanged: int
    comparable: bool
    mean_shift: float | None
    shift_quantiles: dict[float, float]
    mean_norms: tuple[float, float] | None
    overlap: float | None
    sample: int
    moved: tuple[Moved, ...]


@dataclass(frozen=True)
class Drift:
    """A report.

    Attributes:
        before: Recipe id and version that were read.
        after: The same of what it was compared with.
        k: Neighbours that were compared.
        sources: What both hold.
        only_before: Sources that are gone.
        only_after: Sources that are new.
    """

    before: tuple[str, int]
    after: tuple[str, int]
    k: int
    sources: tuple[SourceDrift, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]


def drift(
    before: Embeddings, after: Embeddings, *, same_encoder: bool, k: int = 10, sample: int = 1_000, top: int = 10
) -> Drift:
    """Compares two reads of embeddings, source by source. Makes a matrix product of `sample` by all items.

        old, new = client.embeddings.read(recipe="2026-10"), client.embeddings.read(recipe="2026-11")
        report = dmesr.drift(old, new, same_encoder=True)

    Args:
        before: What was read first.
        after: What it is compared with.
        same_encoder: Whether one encoder made both: only then is a cosine between before and after of use. Neighbours
            are compared in any case.
        k: Neighbours.
        sample: At most so many items, drawn at random but always alike, have their neighbours compared.
        top: How many of the farthest are named.

    Raises:
        InvalidInput: The two have no source in common, or a number is below 1.
    """
    positive(k, name="k"), positive(sample, name="sample"), positive(top, name="top")
    shared = [name for name in before.sources if name in after.sources]
    if not shared:
        raise InvalidInput(
            f"no source is in both: before holds {', '.join(before.sources) or 'none'}, after "
            f"{', '.join(after.sources) or 'none'}"
        )
    found = [_source(name, before, after, same_encoder=same_encoder, k=k, sample=sample, top=top) for name in shared]
    return Drift(
        before=(before.recipe_id, before.version),
        after=(after.recipe_id, after.version),
        k=k,
        sources=tuple(found),
        only_before=tuple(name for name in before.sources if name not in shared),
        only_after=tuple(name for name in after.sources if name not in shared),
    )


def _source(
    name: str, before: Embeddings, after: Embeddings, *, same_encoder: bool, k: int, sample: int, top: int
) -> SourceDrift:
    import numpy as np

    rows = [{one.ids[row]: int(row) for row in np.flatnonzero(one.present(name))} for one in (before, after)]
    ids = [item_id for item_id in rows[0] if item_id in rows[1]]
    matrices = [
        one.matrix(name)[[place[item_id] for item_id in ids]].astype(np.float32)
        for one, place in zip((before, after), rows, strict=True)
    ]
    dims = (before.matrix(name).shape[1], after.matrix(name).shape[1])
    comparable = same_encoder and dims[0] == dims[1]
    norms = [np.linalg.norm(matrix_ND, axis=1) for matrix_ND in matrices]
    units = [
        matrix_ND / np.where(norms_N > 0, norms_N, 1.0)[:, None]
        for matrix_ND, norms_N in zip(matrices, norms, strict=True)
    ]
    same_N = (matrices[0] == matrices[1]).all(axis=1) if dims[0] == dims[1] else np.zeros(len(ids), bool)
    shifts_N = np.where(same_N, 0.0, 1.0 - np.sum(units[0] * units[1], axis=1)) if comparable else None
    chosen_Q = np.sort(np.random.default_rng(_SEED).permutation(len(ids))[:sample])
    overlaps_Q = _overlaps(units[0], units[1], chosen_Q, k=min(k, len(ids) - 1)) if len(ids) > 1 else None
    return SourceDrift(
        source=name,
        dims=dims,
        items=(len(rows[0]), len(rows[1])),
        both=len(ids),
        gained=len(rows[1]) - len(ids),
        lost=len(rows[0]) - len(ids),
        unchanged=int(same_N.sum()),
        comparable=comparable,
        mean_shift=None if shifts_N is None or not ids else float(shifts_N.mean()),
        shift_quantiles={}
        if shifts_N is None or not ids
        else {share: float(np.quantile(shifts_N, share)) for share in _QUANTILES},
        mean_norms=(float(norms[0].mean()), float(norms[1].mean())) if ids else None,
        overlap=None if overlaps_Q is None else float(overlaps_Q.mean()),
        sample=0 if overlaps_Q is None else len(chosen_Q),
        moved=_moved(ids, shifts_N, chosen_Q, overlaps_Q, top=top),
    )


def _overlaps(
    before_ND: Matrix, after_ND: Matrix, chosen_Q: npt.NDArray[np.int64], *, k: int
) -> npt.NDArray[np.float64]:
    """Which share of its k nearest each chosen item has kept."""
    import numpy as np

    shares_Q = np.empty(len(chosen_Q))
    for start in range(0, len(chosen_Q), _BLOCK):
        rows_B = chosen_Q[start : start + _BLOCK]
        near = [_nearest(units_ND, rows_B, k=k) for units_ND in (before_ND, after_ND)]
        kept = [len(np.intersect1d(one_K, other_K)) for one_K, other_K in zip(*near, strict=True)]
        shares_Q[start : start + _BLOCK] = np.array(kept) / k
    return shares_Q


def _nearest(units_ND: Matrix, rows_B: npt.NDArray[np.int64], *, k: int) -> npt.NDArray[np.int64]:
    import numpy as np

    similarities_BN = units_ND[rows_B] @ units_ND.T
    similarities_BN[np.arange(len(rows_B)), rows_B] = -np.inf
    nearest_BK: npt.NDArray[np.int64] = np.argpartition(-similarities_BN, k - 1, axis=1)[:, :k]
    return nearest_BK


def _moved(
    ids: Sequence[str],
    shifts_N: npt.NDArray[np.float64] | None,
    chosen_Q: npt.NDArray[np.int64],
    overlaps_Q: npt.NDArray[np.float64] | None,
    *,
    top: int,
) -> tuple[Moved, ...]:
    """By cosine where that means something, otherwise by the neighbours lost; what has stayed is not named."""
    import numpy as np

    overlaps = {} if overlaps_Q is None else dict(zip(chosen_Q.tolist(), overlaps_Q.tolist(), strict=True))
    if shifts_N is not None:
        order_N = np.argsort(-shifts_N, kind="stable")[:top].tolist()
        farthest = [row for row in order_N if shifts_N[row] > 0]
    else:
        order = sorted(overlaps, key=lambda row: overlaps[row])[:top]
        farthest = [row for row in order if overlaps[row] < 1]
    return tuple(
        Moved(ids[row], None if shifts_N is None else float(shifts_N[row]), overlaps.get(row)) for row in farthest
    )
