"""The filter language over the attributes of items (docs/filters.md): text → tree → mask, and never SQL.

`parse` makes the tree and refuses what is no filter. `CatalogAttributes.table` gives one immutable view of a catalog's
items; of it one asks for the ids that meet the tree (`matching_ids`) or which of some ids do (`mask_of`).
"""

from .catalogs import CatalogAttributes
from .columns import AttributeTable
from .parsing import MAX_CHARACTERS, MAX_DEPTH, parse
from .tree import AllOf, AnyOf, Compare, Contains, Exists, Filter, Not, OneOf, to_text

__all__ = [
    "MAX_CHARACTERS",
    "MAX_DEPTH",
    "AllOf",
    "AnyOf",
    "AttributeTable",
    "CatalogAttributes",
    "Compare",
    "Contains",
    "Exists",
    "Filter",
    "Not",
    "OneOf",
    "parse",
    "to_text",
]
