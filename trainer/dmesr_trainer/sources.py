"""The raw vectors of items, read from the server through the SDK and aligned to what a run trains on.

Shapes: N items, D0 an encoder's width (each source has its own).
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from dmesr import Client

# Long enough to read a large table; the vectors are in memory afterwards, so the pin is given back at once.
_PIN_TTL_SECONDS = 3600


@dataclass(frozen=True)
class Sources:
    """Vectors by source, one row an item, with who lacks which.

    Attributes:
        item_ids: The N rows' items.
        vectors: float32 [N, D0] by source; rows of absent vectors are zeros.
        present: bool [N] by source.
        recipe_id: The recipe that they were read from.
        version: The table version that they were read from.
        digest: sha256 over (item id, source hashes) of that version; outlives the version.
    """

    item_ids: tuple[str, ...]
    vectors: Mapping[str, NDArray[np.float32]]
    present: Mapping[str, NDArray[np.bool_]]
    recipe_id: str = ""
    version: int = 0
    digest: str = ""
    _row_of: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, vectors_ND0 in self.vectors.items():
            rows, present_N = len(self.item_ids), self.present[name]
            if vectors_ND0.ndim != 2 or len(vectors_ND0) != rows or present_N.shape != (rows,):
                raise ValueError(
                    f"source {name!r}: expected {rows} rows, one an item; got vectors {vectors_ND0.shape} and presence "
                    f"{present_N.shape}"
                )
            bad = np.flatnonzero(present_N & ~np.isfinite(vectors_ND0).all(axis=1))
            if len(bad):
                raise ValueError(
                    f"source {name!r}: the vector of item {self.item_ids[bad[0]]!r} has NaN or infinite numbers "
                    f"({len(bad)} such items); write it again or delete it"
                )
        object.__setattr__(self, "_row_of", {item_id: row for row, item_id in enumerate(self.item_ids)})

    @property
    def names(self) -> tuple[str, ...]:
        """The sources."""
        return tuple(self.vectors)

    @property
    def dims(self) -> dict[str, int]:
        """D0 by source."""
        return {name: vectors.shape[1] for name, vectors in self.vectors.items()}

    def coverage(self) -> dict[str, int]:
        """Items that have a vector, by source."""
        return {name: int(present.sum()) for name, present in self.present.items()}

    def aligned(self, item_ids: Sequence[str]) -> Sources:
        """The same vectors in another order of items; an item that is not here has none."""
        rows_N = np.array([self._row_of.get(item_id, -1) for item_id in item_ids], np.int64)
        known_N = rows_N >= 0
        vectors, present = {}, {}
        for name in self.names:
            present[name] = known_N & self.present[name][rows_N] if len(self.item_ids) else known_N
            vectors[name] = np.zeros((len(rows_N), self.dims[name]), np.float32)
            vectors[name][present[name]] = self.vectors[name][rows_N[present[name]]]
        return Sources(
            item_ids=tuple(item_ids),
            vectors=vectors,
            present=present,
            recipe_id=self.recipe_id,
            version=self.version,
            digest=self.digest,
        )


def content_groups(vectors_ND0: NDArray[np.float32], present_N: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Numbers items so that those with the same vector, thus the same description, share a number.

    In the alignment loss such items are no negatives of each other.

    Returns:
        int64 [N]; -1 where the vector is absent.
    """
    groups_N = np.full(len(vectors_ND0), -1, np.int64)
    rows = np.ascontiguousarray(vectors_ND0[present_N])
    if len(rows):
        as_bytes = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).ravel()
        groups_N[present_N] = np.unique(as_bytes, return_inverse=True)[1].ravel()
    return groups_N


def fetch(
    client: Client,
    *,
    recipe: str = "default",
    item_ids: Collection[str] = (),
    sources: Sequence[str] | None = None,
) -> Sources:
    """Reads a recipe's vectors of the whole catalogue, at one pinned version.

    Args:
        client: A connected client, bound to the catalog.
        recipe: The recipe's name or id.
        item_ids: The items that will be trained on; at least one must have a vector.
        sources: Which sources; all by default.

    Raises:
        ValueError: None of the items has a vector in the recipe, or a vector is not finite.
        dmesr.DmesrError: The server refused.
    """
    with client.embeddings.pin(
        recipe, ttl_seconds=_PIN_TTL_SECONDS, holder=f"training on {socket.gethostname()}"
    ) as pin:
        read = client.embeddings.read(
            recipe=pin.recipe_id, sources=list(sources) if sources else None, version=pin.version
        )
    found = Sources(
        item_ids=tuple(read.ids),
        vectors={name: np.asarray(read.matrix(name), np.float32) for name in read.sources},
        present={name: np.asarray(read.present(name), bool) for name in read.sources},
        recipe_id=pin.recipe_id,
        version=pin.version,
        digest=pin.digest,
    )
    if item_ids and not any(found.aligned(list(item_ids)).coverage().values()):
        raise ValueError(
            f"none of the {len(item_ids)} items to train on has a vector in recipe {recipe!r}, which holds "
            f"{len(found.item_ids)} items; import and enrich them first, or name the right catalog with --catalog"
        )
    return found
