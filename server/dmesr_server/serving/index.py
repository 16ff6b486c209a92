"""The item index of one model: every item's vector in memory.

Shapes: N items of the index, V width of the model's vectors.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from dmesr_server.mapped_file import MappedFile
from dmesr_server.serving.codes import ItemCodes, codes_of
from dmesr_server.serving.item_ids import ItemIds


@dataclass(frozen=True, eq=False)
class ItemIndex:
    """An immutable index. A new version of it takes the place of the old one by one assignment.

    Attributes:
        ids: The items, ascending: an equal score is decided by the smaller row, hence by the smaller id.
        vectors_NV: Their vectors, float32, C-contiguous.
        counts_N: Their interactions in training, int64; 0 for an item that is new.
        file: What the vectors are mapped by; None where they are in memory.
        codes: The vectors in eight bits; None where they would not pay, or were not made (:meth:`coded`).
    """

    ids: ItemIds
    vectors_NV: np.ndarray
    counts_N: np.ndarray
    file: MappedFile | None = None
    codes: ItemCodes | None = None

    def __len__(self) -> int:
        """How many items it holds."""
        return len(self.ids)

    @property
    def folder(self) -> Path | None:
        """Where the file is that the vectors are mapped by; None where they are in memory."""
        return None if self.file is None else self.file.path.parent

    @property
    def arrow_ids(self) -> pa.LargeStringArray:
        """The ids for Arrow's functions."""
        return self.ids.arrow

    @cached_property
    def inverse_norms_N(self) -> np.ndarray:
        """1 over the length of each vector, float32; 0 for a vector of zeros, which is near to nothing."""
        lengths_N = np.sqrt(np.einsum("nv,nv->n", self.vectors_NV, self.vectors_NV))
        inverse_N: np.ndarray = np.divide(1, lengths_N, out=np.zeros_like(lengths_N), where=lengths_N > 0)
        return inverse_N

    def rows_of(self, item_ids: Iterable[str]) -> np.ndarray:
        """The rows of those items that the index holds, in the order given; int64."""
        wanted = list(item_ids)
        if not wanted:
            return np.zeros(0, np.int64)
        rows_K = self.ids.rows(wanted)
        return rows_K[rows_K >= 0]

    def coded(self, vectors_NV: np.ndarray | None = None) -> ItemIndex:
        """The same with codes where they pay: for an index that many questions will be asked of.

        Args:
            vectors_NV: The vectors once more, to make the codes from: what was read of a mapping stays in this
                process's memory for as long as that is there, and later only a few items are looked at.
        """
        return replace(self, codes=codes_of(self.vectors_NV if vectors_NV is None else vectors_NV))

    def hand_back(self) -> None:
        """Lets go of vectors that were looked at, where few are looked at by one question; they stay mapped."""
        if self.file is not None and self.codes is not None:
            self.file.hand_back()

    def without(self, item_ids: Collection[str]) -> ItemIndex:
        """The index with these items left out and without codes, which take long to make; itself if it holds none."""
        gone = self.rows_of(item_ids)
        if not len(gone):
            return self
        keep_N = np.ones(len(self.ids), bool)
        keep_N[gone] = False
        kept = np.flatnonzero(keep_N)
        return indexed(self.arrow_ids.take(pa.array(kept)), self.vectors_NV[kept], self.counts_N[kept])


def indexed(
    ids: pa.LargeStringArray | Sequence[str],
    vectors_NV: np.ndarray,
    counts_N: np.ndarray,
    *,
    file: MappedFile | None = None,
) -> ItemIndex:
    """Makes an index of items that are in order, each once; Arrow's ids and the arrays are taken as they are."""
    vectors_NV.flags.writeable = False
    counts_N.flags.writeable = False
    return ItemIndex(
        ids=ItemIds(ids),
        vectors_NV=vectors_NV,
        counts_N=counts_N,
        file=file,
    )
