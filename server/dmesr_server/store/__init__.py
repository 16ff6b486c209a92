"""The store: items, pictures, descriptions and vectors in LanceDB. Nothing outside this package imports lancedb.

Everything here blocks and is safe for any thread; asyncio callers use threads. Several processes may share a store.
"""

from .adapted import VECTOR, AdaptedSnapshot, AdaptedTable
from .catalogs import SCHEMA_VERSION, CatalogStore, DeleteOutcome, Store, TableStats
from .copying import TableContent, content_of, copy_version, held
from .database import encoded
from .descriptions import DescriptionRow, DescriptionTable
from .embeddings import EmbeddingTable
from .index_records import IndexRecord
from .items import Attributes, ItemTable, ItemWrite, RowOutcome, StoredItem, attributes_hash, canonical_attributes
from .pictures import Picture, PictureTable
from .source_matrix import SourceMatrix, matrix_of
from .tables import Table
from .tidiness import Tidiness
from .trained import ItemDrift, TrainedTable, short_hashes
from .vector_columns import SourceColumn, vector_rows
from .vector_index import Effort, IndexKind, IndexState, VectorIndex
from .vectors import VectorTable

__all__ = [
    "SCHEMA_VERSION",
    "VECTOR",
    "AdaptedSnapshot",
    "AdaptedTable",
    "Attributes",
    "CatalogStore",
    "DeleteOutcome",
    "DescriptionRow",
    "DescriptionTable",
    "Effort",
    "EmbeddingTable",
    "IndexKind",
    "IndexRecord",
    "IndexState",
    "ItemDrift",
    "ItemTable",
    "ItemWrite",
    "Picture",
    "PictureTable",
    "RowOutcome",
    "SourceColumn",
    "SourceMatrix",
    "Store",
    "StoredItem",
    "Table",
    "TableContent",
    "TableStats",
    "Tidiness",
    "TrainedTable",
    "VectorIndex",
    "VectorTable",
    "attributes_hash",
    "canonical_attributes",
    "content_of",
    "copy_version",
    "encoded",
    "held",
    "matrix_of",
    "short_hashes",
    "vector_rows",
]
