"""Attributes as columns, and what a filter makes of them.

Shapes: N items, P pairs of an item and a value, D distinct values.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dmesr_server.filters.tree import (
    OPERATORS,
    AllOf,
    AnyOf,
    Compare,
    Condition,
    Contains,
    Exists,
    Filter,
    Not,
    OneOf,
    Operator,
    Value,
)

_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_TEXT_COMPARISONS = {"=": pc.equal, "<": pc.less, "<=": pc.less_equal, ">": pc.greater, ">=": pc.greater_equal}


def number(text: str) -> float | None:
    """The number that a value is; None for any other text, infinity among them."""
    text = text.strip()
    if not _NUMBER.fullmatch(text):
        return None
    found = float(text)
    return found if np.isfinite(found) else None


@dataclass(frozen=True, eq=False)
class Column:
    """The values of one attribute. A condition is decided once for each distinct value, then looked up.

    Attributes:
        rows_P: The item of each pair, int64.
        codes_P: Its value as a place in `values_D`, int64.
        values_D: The distinct values, large_string.
    """

    rows_P: np.ndarray
    codes_P: np.ndarray
    values_D: pa.LargeStringArray

    @cached_property
    def numbers_D(self) -> np.ndarray:
        """The values as float64; NaN where one is no number."""
        found = (number(text) for text in self.values_D.to_pylist())
        return np.array([np.nan if value is None else value for value in found], np.float64)

    @cached_property
    def folded_D(self) -> pa.LargeStringArray:
        """The values with upper and lower case made the same, by Python's rules (Arrow's are others)."""
        return pa.array([text.casefold() for text in self.values_D.to_pylist()], pa.large_string())

    def holds_D(self, condition: Condition) -> np.ndarray:
        """For each distinct value whether it meets the condition."""
        match condition:
            case Compare(_, operator, value):
                return self._compare(operator, value)
            case OneOf(_, values):
                return self._one_of(values)
            case Contains(_, text):
                return _mask(pc.match_substring(self.folded_D, text.casefold()))
            case Exists(_):
                return np.ones(len(self.values_D), bool)

    def _compare(self, operator: Operator, value: Value) -> np.ndarray:
        if isinstance(value, str):
            return _mask(_TEXT_COMPARISONS[operator](self.values_D, pa.scalar(value, pa.large_string())))
        compared: np.ndarray = OPERATORS[operator](self.numbers_D, value)  # NaN compares false with everything
        return compared

    def _one_of(self, values: Sequence[Value]) -> np.ndarray:
        texts = [value for value in values if isinstance(value, str)]
        numbers = [value for value in values if not isinstance(value, str)]
        holds_D = np.zeros(len(self.values_D), bool)
        if texts:
            holds_D |= _mask(pc.is_in(self.values_D, value_set=pa.array(texts, pa.large_string())))
        if numbers:
            holds_D |= np.isin(self.numbers_D, numbers)
        return holds_D

    def moved(self, new_row_of: np.ndarray) -> Column:
        """The column after items got other places.

        Args:
            new_row_of: For each old place the new one, int64; -1 drops the item's values.
        """
        rows_P = new_row_of[self.rows_P]
        kept_P = rows_P >= 0
        return replace(self, rows_P=rows_P[kept_P], codes_P=self.codes_P[kept_P])

    def joined(self, other: Column) -> Column:
        """Both columns' pairs. Values that no item has any more fall away."""
        values = pa.chunked_array([self.values_D, other.values_D], pa.large_string())
        codes_P = np.concatenate([self.codes_P, other.codes_P + len(self.values_D)])
        # Of the values in use only: a catalogue whose texts change daily would otherwise grow for ever.
        encoded = values.take(pa.array(codes_P)).combine_chunks().dictionary_encode()
        if isinstance(encoded, pa.ChunkedArray):
            encoded = encoded.combine_chunks()
        return Column(
            rows_P=np.concatenate([self.rows_P, other.rows_P]),
            codes_P=encoded.indices.to_numpy().astype(np.int64),
            values_D=encoded.dictionary.cast(pa.large_string()),
        )


class ColumnBuilder:
    """Takes in items and makes columns of some of their attributes."""

    def __init__(self, names: Iterable[str]):
        self._rows: dict[str, list[int]] = {name: [] for name in names}
        self._codes: dict[str, list[int]] = {name: [] for name in self._rows}
        self._values: dict[str, dict[str, int]] = {name: {} for name in self._rows}

    def add(self, row: int, attributes: str) -> None:
        """Takes in one item.

        Args:
            row: Its place.
            attributes: Its attributes as the store keeps them: JSON, a list of [name, [values]].
        """
        for name, values in json.loads(attributes):
            rows = self._rows.get(name)
            if rows is None:
                continue
            codes, known = self._codes[name], self._values[name]
            for value in values:
                rows.append(row)
                codes.append(known.setdefault(value, len(known)))

    def columns(self) -> dict[str, Column]:
        """One for each name, also for those that no item has."""
        return {
            name: Column(
                rows_P=np.array(rows, np.int64),
                codes_P=np.array(self._codes[name], np.int64),
                values_D=pa.array(list(self._values[name]), pa.large_string()),
            )
            for name, rows in self._rows.items()
        }


@dataclass(frozen=True, eq=False)
class AttributeTable:
    """Some attributes of all items of a catalog, at one moment. Immutable.

    Attributes:
        item_ids: The items in no particular order; large_string.
        columns: The attributes that filters have asked about.
    """

    item_ids: pa.LargeStringArray
    columns: dict[str, Column]

    def mask(self, filter_: Filter) -> np.ndarray:
        """Which items meet the filter, bool [N], in the order of `item_ids`.

        Args:
            filter_: Its attributes must be among the columns.
        """
        match filter_:
            case Not(part):
                return ~self.mask(part)
            case AllOf(parts):
                every_N: np.ndarray = np.logical_and.reduce([self.mask(part) for part in parts])
                return every_N
            case AnyOf(parts):
                some_N: np.ndarray = np.logical_or.reduce([self.mask(part) for part in parts])
                return some_N
            case _:
                column = self.columns[filter_.name]
                mask_N = np.zeros(len(self.item_ids), bool)
                mask_N[column.rows_P[column.holds_D(filter_)[column.codes_P]]] = True
                return mask_N

    def matching_ids(self, filter_: Filter) -> pa.LargeStringArray:
        """The ids of the items that meet the filter."""
        return self.item_ids.filter(pa.array(self.mask(filter_)))

    def mask_of(self, filter_: Filter, item_ids: pa.Array) -> np.ndarray:
        """Which of these items meet the filter, bool [len(item_ids)]; an id that is no item meets none."""
        matching = self.matching_ids(filter_)
        return _mask(pc.is_in(item_ids.cast(pa.large_string()), value_set=matching))


def _mask(array: pa.Array) -> np.ndarray:
    mask: np.ndarray = array.to_numpy(zero_copy_only=False)
    return mask.astype(bool, copy=False)
