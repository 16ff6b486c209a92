"""FindNeighbours: the nearest items to an item, to a vector or to a text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from dmesr.v1 import embeddings_pb2 as pb

from dmesr_server import filters
from dmesr_server.api import recipes, validation, vectors
from dmesr_server.api.parts import Parts
from dmesr_server.api.places import Place, place_of, refuse_unknown
from dmesr_server.api.working import in_thread
from dmesr_server.errors import ServiceError, invalid_field
from dmesr_server.store import TableState


@dataclass(frozen=True, eq=False)
class _Search:
    """What is asked."""

    place: Place
    state: TableState
    source: str
    dim: int
    k: int
    vector_D: np.ndarray
    encoder: Mapping[str, Any]  # of a text
    exclude: tuple[str, ...]
    filter_: filters.Filter | None
    exact: bool


class NeighbourSearches:
    """Answers FindNeighbours."""

    def __init__(self, parts: Parts):
        self._parts = parts
        self._limits = parts.config.limits

    async def find(self, request: pb.FindNeighboursRequest) -> pb.FindNeighboursResponse:
        """Finds the nearest items."""
        if request.WhichOneof("query") != "text":
            return await in_thread(lambda: self._nearest(self._search(request)))
        search = await in_thread(self._search, request)
        # Here and not in the thread: texts of many calls go to the enricher in one question.
        vector_D = await self._parts.query_encoder.encode(search.encoder, request.text)
        search = replace(search, vector_D=vectors.checked_query(vector_D, dim=search.dim))
        return await in_thread(self._nearest, search)

    def _search(self, request: pb.FindNeighboursRequest) -> _Search:
        """What is asked; the vector of a text is still to come."""
        k = validation.k(request.k, self._limits)
        place = place_of(self._parts, request)
        source = request.source or ("vector" if place.model else "text")
        state, dims = place.table.seen()
        refuse_unknown(source, dims)
        query = request.WhichOneof("query")
        if query is None:
            raise invalid_field("query", "give an item_id, a vector or a text to be near to")
        vector_D = np.zeros(dims[source], np.float32)
        encoder: Mapping[str, Any] = {}
        if query == "vector":
            vector_D = vectors.query_vector(request.vector, dim=dims[source])
        elif query == "item_id":
            vector_D = self._vector(place, request.item_id, source, state)
        else:
            encoder = self._encoder(place, source, request.text)
        return _Search(
            place=place,
            state=state,
            source=source,
            dim=dims[source],
            k=k,
            vector_D=vector_D,
            encoder=encoder,
            exclude=(request.item_id,) if query == "item_id" else (),
            filter_=filters.parse(request.filter) if request.filter else None,
            exact=request.exact,
        )

    def _vector(self, place: Place, item_id: str, source: str, state: TableState) -> np.ndarray:
        validation.required(item_id=item_id)
        vector_D = self._parts.neighbours.vector(place.table, source, item_id, state)
        if vector_D is not None:
            return vector_D
        if not place.catalog.items.existing([item_id]):
            raise ServiceError("ITEM_NOT_FOUND", f"the catalog has no item {item_id!r}; check the id", item_id=item_id)
        raise ServiceError(
            "VECTOR_MISSING",
            f"item {item_id!r} has no vector of the source {source!r}; enrich it, or search in another source",
            item_id=item_id,
            source=source,
        )

    def _encoder(self, place: Place, source: str, text: str) -> Mapping[str, Any]:
        """The encoder that made the vectors of a source."""
        validation.required(text=text.strip())
        if len(text.encode()) > self._limits.max_attribute_bytes:
            raise invalid_field("text", f"must have at most {self._limits.max_attribute_bytes} bytes")
        recipe = self._parts.control.recipes.resolve(place.catalog_name, place.recipe_id)
        if place.model or recipes.source_is_external(recipe, source):
            made = "adapted by a model" if place.model else "written by clients"
            raise ServiceError(
                "ENCODER_UNAVAILABLE",
                f"the vectors of {source!r} were {made}, so no encoder makes one like them of a text; search in a "
                "source that enrichment made, or by item_id or vector",
                source=source,
            )
        return recipes.encoder(recipe)

    def _nearest(self, search: _Search) -> pb.FindNeighboursResponse:
        allowed = None
        if search.filter_ is not None:
            attributes = self._parts.live.attributes.table(search.place.catalog_name, search.filter_)
            allowed = partial(attributes.mask_of, search.filter_)
        found = self._parts.neighbours.find(
            search.place.catalog,
            search.place.table,
            search.source,
            search.vector_D,
            search.k,
            state=search.state,
            exclude=search.exclude,
            allowed=allowed,
            exact=search.exact,
        )
        return pb.FindNeighboursResponse(
            neighbours=[pb.Neighbour(item_id=item_id, similarity=cosine) for item_id, cosine in found.neighbours],
            exact=found.exact,
            recipe_id=search.place.recipe_id,
        )
