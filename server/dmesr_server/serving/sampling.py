"""What a sample of a source's vectors looks like: lengths, and whether they differ from each other at all.

Shapes: N vectors of the sample, D width of the source.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from dmesr_server.serving.adaptation import dense
from dmesr_server.store import EmbeddingTable

_SAMPLE_ROWS = 10_000


@dataclass(frozen=True)
class SampleStats:
    """Figures of one source; 0 where it has no vector in the sample."""

    mean_norm: float
    mean_pair_cosine: float


def sample(table: EmbeddingTable, sources: Sequence[str]) -> dict[str, SampleStats]:
    """Figures of at most 10,000 rows, spread evenly over the table's ids; the same rows for the same version."""
    version = table.version()
    chunks = [batch.column("item_id") for batch in table.scan([], version)]
    ids = pa.chunked_array(chunks, type=pa.string())
    places = np.unique(np.linspace(0, max(len(ids) - 1, 0), min(len(ids), _SAMPLE_ROWS)).astype(np.int64))
    chosen = ids.take(pa.array(places)).to_pylist()
    dims = table.sources(version)
    # One source at a time: the sample of all of them together could be large.
    return {name: _figures(*dense(table.take(chosen, [name], version).column(name), dims[name])) for name in sources}


def _figures(vectors_ND: np.ndarray, present_N: np.ndarray) -> SampleStats:
    found_ND = vectors_ND[present_N].astype(np.float64)
    norms_N = np.linalg.norm(found_ND, axis=1)
    units_ND = found_ND[norms_N > 0] / norms_N[norms_N > 0, None]
    count = len(units_ND)
    # |Σ u|² = Σ_i Σ_j u_i·u_j: the mean over all pairs of different rows, without drawing any.
    total = float(np.square(units_ND.sum(0)).sum())
    return SampleStats(
        mean_norm=float(norms_N.mean()) if len(norms_N) else 0.0,
        mean_pair_cosine=(total - count) / (count * (count - 1)) if count > 1 else 0.0,
    )
