"""Which items of an index may be recommended: what a filter lets through, kept for the next call that asks the same.

Shapes: N items of the index, C candidates.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from dmesr_server.filters import AttributeTable, CatalogAttributes, Filter, to_text
from dmesr_server.serving.index import ItemIndex

MAX_MASKS = 256  # of one index
MAX_BYTES = 64 * 1024 * 1024  # of the masks of one index


@dataclass(frozen=True, eq=False)
class Candidates:
    """The items that a filter lets through.

    Attributes:
        allowed_N: Bool for each item of the index.
        rows_C: The same as rows, ascending, int64.
    """

    allowed_N: np.ndarray
    rows_C: np.ndarray

    @property
    def bytes(self) -> int:
        """What it takes of memory."""
        return int(self.allowed_N.nbytes + self.rows_C.nbytes)


@dataclass(frozen=True)
class _Kept:
    candidates: Candidates
    table: AttributeTable  # that the filter was asked of: another one may answer otherwise


class FilterMasks:
    """Candidates by index and filter. Thread-safe; all calls block.

    An index that nobody holds any more takes its masks with it; a mask whose attributes have changed is made anew.
    """

    def __init__(self, *, attributes: CatalogAttributes):
        self._attributes = attributes
        self._lock = threading.Lock()
        self._kept: weakref.WeakKeyDictionary[ItemIndex, OrderedDict[str, _Kept]] = weakref.WeakKeyDictionary()

    def get(self, *, catalog: str, index: ItemIndex, filter_: Filter) -> Candidates:
        """The items of an index that meet a filter.

        Args:
            catalog: The catalog that the index is of.
            index: The index.
            filter_: The filter.

        Raises:
            ServiceError: INVALID_FILTER, or what the store raises.
        """
        table = self._attributes.table(catalog, filter_)
        text = to_text(filter_)  # the same for filters that differ in spaces only
        with self._lock:
            masks = self._kept.setdefault(index, OrderedDict())
            kept = masks.get(text)
            if kept is not None and kept.table is table:
                masks.move_to_end(text)
                return kept.candidates
        allowed_N = table.mask_of(filter_, index.arrow_ids)
        allowed_N.flags.writeable = False
        candidates = Candidates(allowed_N=allowed_N, rows_C=np.flatnonzero(allowed_N))
        with self._lock:
            masks[text] = _Kept(candidates=candidates, table=table)
            masks.move_to_end(text)
            held = sum(kept.candidates.bytes for kept in masks.values())
            while len(masks) > 1 and (len(masks) > MAX_MASKS or held > MAX_BYTES):
                _, dropped = masks.popitem(last=False)
                held -= dropped.candidates.bytes
        return candidates
