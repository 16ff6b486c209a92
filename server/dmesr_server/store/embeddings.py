"""The `embeddings_<recipe>` tables: raw vectors by source."""

from __future__ import annotations

from .database import Database, encoded
from .vectors import VectorTable

PREFIX = "embeddings_"


class EmbeddingTable(VectorTable):
    """The vectors of one embedding recipe: nothing of two recipes ever mixes."""

    def __init__(self, *, database: Database, recipe_id: str):
        super().__init__(database=database, name=PREFIX + encoded(recipe_id), dims={})
        self.recipe_id = recipe_id
