"""The ids of an item index: which row is whose, and back, without a Python object for every id.

A million ids as texts of Python in a tuple and a dict took 180 MB. Here their bytes stay where Arrow has them, mapped
from a file that all processes share, and what each process adds is a hash and a number for each id: 12 MB a million.

Shapes: N ids, K of them asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
import pyarrow as pa

_CHUNK = 65_536  # ids that are objects at a time while the hashes are made
#: Ids that were asked for are kept as objects, since most are asked for again and again; up to about 10 MB of them.
_KEPT = 65_536
_FEW = 16_384  # ids of which all are kept so from the start: about 3 MB, and no call looks one up by its hash


class ItemIds(Sequence[str]):
    """The ids of the rows 0 to N - 1, each once. Immutable."""

    def __init__(self, ids: pa.LargeStringArray | Sequence[str]):
        """Takes Arrow's array as it lies, without a copy."""
        self.arrow: pa.LargeStringArray = (
            ids if isinstance(ids, pa.LargeStringArray) else pa.array(ids, pa.large_string())
        )
        # Python's own hashes, which are a secret of the process: nobody can choose ids whose hashes are the same.
        hashes_N = np.fromiter(map(hash, self), np.int64, len(self))
        order_N = np.argsort(hashes_N)
        self._hashes_N = hashes_N[order_N]  # ascending
        self._rows_N = order_N.astype(np.int32)  # whose each hash is
        few = list(self) if len(self) <= _FEW else []
        self._row_of: dict[str, int] = dict(zip(few, range(len(few)), strict=True))
        self._id_of: dict[int, str] = dict(enumerate(few))

    def rows(self, item_ids: Sequence[str]) -> np.ndarray:
        """The row of each id, -1 where it is not among them; int64 [K]."""
        known = self._row_of
        rows = list(map(known.get, item_ids))
        if None in rows:
            if len(known) > _KEPT:
                known = self._row_of = {}
            missing = [place for place, row in enumerate(rows) if row is None]
            asked = [item_ids[place] for place in missing]
            for place, item_id, row in zip(missing, asked, self._looked_up(asked).tolist(), strict=True):
                rows[place] = row
                if row >= 0:  # what is not there is not kept: callers may make up any number of ids
                    known[item_id] = row
        return np.array(rows, np.int64)

    def _looked_up(self, item_ids: Sequence[str]) -> np.ndarray:
        """The rows, by hashes and a look at the ids themselves."""
        found_K = np.full(len(item_ids), -1, np.int64)
        if not len(self) or not len(item_ids):
            return found_K
        hashes_K = np.fromiter(map(hash, item_ids), np.int64, len(item_ids))
        places_K = np.searchsorted(self._hashes_N, hashes_K)
        open_ = np.flatnonzero(self._hashes_N[np.minimum(places_K, len(self) - 1)] == hashes_K)
        while len(open_):  # once, unless two ids have one hash of 64 bits
            rows = self._rows_N[places_K[open_]]
            same = [
                known == item_ids[place]
                for known, place in zip(self.arrow.take(pa.array(rows)).to_pylist(), open_.tolist(), strict=True)
            ]
            found_K[open_[same]] = rows[same]
            open_ = open_[~np.array(same)]
            places_K[open_] += 1
            open_ = open_[places_K[open_] < len(self)]
            open_ = open_[self._hashes_N[places_K[open_]] == hashes_K[open_]]
        return found_K

    def __len__(self) -> int:
        """N."""
        return len(self.arrow)

    @overload
    def __getitem__(self, row: int) -> str: ...

    @overload
    def __getitem__(self, row: slice) -> list[str]: ...

    def __getitem__(self, row: int | slice) -> str | list[str]:
        """The id of a row, or those of several."""
        found: str | list[str] = self.arrow[row].to_pylist() if isinstance(row, slice) else self.arrow[row].as_py()
        return found

    def of(self, rows_K: np.ndarray) -> list[str]:
        """The ids of these rows."""
        known = self._id_of
        rows = rows_K.tolist()
        missing = [row for row in rows if row not in known]
        if missing:
            if len(known) > _KEPT:
                known, missing = {}, rows
                self._id_of = known
            known.update(zip(missing, self.arrow.take(pa.array(missing)).to_pylist(), strict=True))
        return [known[row] for row in rows]

    def __iter__(self) -> Iterator[str]:
        """All ids, in order."""
        for start in range(0, len(self), _CHUNK):
            yield from self.arrow.slice(start, _CHUNK).to_pylist()
