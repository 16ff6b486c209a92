"""The store: items, pictures, descriptions and vectors in LanceDB. Nothing outside this package imports lancedb.

Everything here blocks and is safe for any thread; asyncio callers use threads. Several processes may share a store.
"""

from .adapted import AdaptedTable
from .catalogs import SCHEMA_VERSION, CatalogStore, DeleteOutcome, Store, TableStats
from .descriptions import DescriptionRow, DescriptionTable
from .embeddings import EmbeddingTable
from .items import Attributes, ItemTable, ItemWrite, RowOutcome, StoredItem, attributes_hash, canonical_attributes
from .pictures import Picture, PictureTable
from .vector_columns import SourceColumn

__all__ = [
    "SCHEMA_VERSION",
    "AdaptedTable",
    "Attributes",
    "CatalogStore",
    "DeleteOutcome",
    "DescriptionRow",
    "DescriptionTable",
    "EmbeddingTable",
    "ItemTable",
    "ItemWrite",
    "Picture",
    "PictureTable",
    "RowOutcome",
    "SourceColumn",
    "Store",
    "StoredItem",
    "TableStats",
    "attributes_hash",
    "canonical_attributes",
]
