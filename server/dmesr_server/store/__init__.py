"""The store: items, pictures, descriptions and vectors in LanceDB. Nothing outside this package imports lancedb.

Everything here blocks and is safe for any thread; asyncio callers use threads. Several processes may share a store.
"""

from .adapted import PREFIX as ADAPTED
from .adapted import VECTOR, AdaptedSnapshot, AdaptedTable
from .catalogs import CatalogStore, DeleteOutcome, Store, TableStats
from .copying import TableContent, content_of, copy_version, held
from .database import decoded, encoded
from .descriptions import NAME as DESCRIPTIONS
from .descriptions import DescriptionRow, DescriptionTable
from .embeddings import PREFIX as EMBEDDINGS
from .embeddings import EmbeddingTable
from .index_records import IndexRecord
from .items import Attributes, ItemTable, ItemWrite, RowOutcome, StoredItem, attributes_hash, canonical_attributes
from .looking import Look, look
from .near_rows import NearRows
from .pictures import Picture, PictureTable
from .schemas import TableState
from .source_matrix import SourceMatrix, matrix_of
from .tables import Table
from .tidiness import Tidiness
from .trained import PREFIX as TRAINED
from .trained import ItemDrift, TrainedTable, short_hashes
from .vector_columns import SourceColumn, vector_rows
from .vector_index import Effort, IndexKind, IndexState, VectorIndex
from .vector_writing import Looked
from .vectors import VectorTable
from .versions import SCHEMA_VERSION, Step, mark_version

__all__ = [
    "ADAPTED",
    "DESCRIPTIONS",
    "EMBEDDINGS",
    "SCHEMA_VERSION",
    "TRAINED",
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
    "Look",
    "Looked",
    "NearRows",
    "Picture",
    "PictureTable",
    "RowOutcome",
    "SourceColumn",
    "SourceMatrix",
    "Step",
    "Store",
    "StoredItem",
    "Table",
    "TableContent",
    "TableState",
    "TableStats",
    "Tidiness",
    "TrainedTable",
    "VectorIndex",
    "VectorTable",
    "attributes_hash",
    "canonical_attributes",
    "content_of",
    "copy_version",
    "decoded",
    "encoded",
    "held",
    "look",
    "mark_version",
    "matrix_of",
    "short_hashes",
    "vector_rows",
]
