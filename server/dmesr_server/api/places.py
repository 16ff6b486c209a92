"""Where the vectors are that a request names: those of a recipe, or those of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dmesr.v1 import embeddings_pb2 as pb

from dmesr_server.api import validation
from dmesr_server.api.parts import Parts
from dmesr_server.errors import ServiceError
from dmesr_server.serving.artefact import parse_manifest
from dmesr_server.serving.live import ModelKey, not_ready
from dmesr_server.store import AdaptedTable, CatalogStore, EmbeddingTable


@dataclass(frozen=True)
class Place:
    """The table of a recipe or of a model.

    Attributes:
        catalog_name: Its catalog.
        catalog: The tables of that.
        table: The vectors; there may be none yet.
        recipe_id: What made them, or what the model adapts.
        model: name:version, or empty.
    """

    catalog_name: str
    catalog: CatalogStore
    table: EmbeddingTable | AdaptedTable
    recipe_id: str
    model: str


def place_of(parts: Parts, request: pb.ReadEmbeddingsRequest | pb.FindNeighboursRequest) -> Place:
    """The place that a request names.

    Raises:
        ServiceError: CATALOG_NOT_FOUND, RECIPE_NOT_FOUND, MODEL_NOT_FOUND or MODEL_NOT_READY.
    """
    # Whoever knows recipes or models also knows whether there is such a catalog: a query less for each search.
    name = validation.catalog_name(request.catalog)
    if request.WhichOneof("from") == "model":
        validation.required(model=request.model)
        model = parts.control.models.resolve(name, request.model)
        key = ModelKey.of(model)
        if model.state != "READY":
            raise not_ready(model)
        catalog = parts.store.catalog(name)
        adapted = catalog.adapted(key.ref, parse_manifest(model.manifest_json).vector_dim)
        return Place(name, catalog, adapted, model.recipe_id, key.ref)
    recipe_id = parts.control.recipes.resolve(name, validation.recipe_ref(request.recipe)).recipe_id
    catalog = parts.store.catalog(name)
    return Place(name, catalog, catalog.embeddings(recipe_id), recipe_id, "")


def refuse_unknown(source: str, dims: Mapping[str, int]) -> None:
    """Sees that a table has a source.

    Raises:
        ServiceError: SOURCE_NOT_FOUND.
    """
    if source not in dims:
        raise ServiceError(
            "SOURCE_NOT_FOUND",
            f"there is no source {source!r}; there are: {', '.join(dims) or 'none yet'}",
            source=source,
            sources=", ".join(dims),
        )
