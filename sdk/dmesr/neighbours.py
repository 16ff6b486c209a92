"""What is near to an item, a vector or a text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dmesr.arguments import one_id, positive
from dmesr.errors import InvalidInput
from dmesr.transport import Rpc
from dmesr.v1 import embeddings_pb2
from dmesr.vectors import query_vector

if TYPE_CHECKING:
    import numpy.typing as npt

NEIGHBOURS = Rpc(
    "EmbeddingService/FindNeighbours",
    embeddings_pb2.FindNeighboursRequest,
    embeddings_pb2.FindNeighboursResponse,
    idempotent=True,
)


@dataclass(frozen=True)
class Neighbour:
    """A near item."""

    item_id: str
    similarity: float  # cosine, -1 to 1


class Neighbours(list[Neighbour]):
    """The near items, nearest first.

    Attributes:
        exact: True where every vector was compared; False where an index was searched.
        recipe_id: The recipe whose vectors were searched.
    """

    def __init__(self, found: Iterable[Neighbour] = (), *, exact: bool = True, recipe_id: str = "") -> None:
        super().__init__(found)
        self.exact = exact
        self.recipe_id = recipe_id


def asked(
    *,
    catalog: str,
    item_id: str | None,
    vector: npt.ArrayLike | None,
    text: str | None,
    recipe: str,
    model: str | None,
    source: str | None,
    k: int,
    filter: str | None,
    exact: bool,
) -> embeddings_pb2.FindNeighboursRequest:
    """The request.

    Raises:
        InvalidInput: Not just one of item_id, vector and text is given, or it makes no sense.
    """
    request = embeddings_pb2.FindNeighboursRequest(
        catalog=catalog, source=source or "", k=positive(k, name="k"), filter=filter or "", exact=exact
    )
    if model is None:
        request.recipe = recipe
    else:
        request.model = model
    if sum(given is not None for given in (item_id, vector, text)) != 1:
        raise InvalidInput("give one of item_id, vector and text: what the items are to be near to")
    if item_id is not None:
        request.item_id = one_id(item_id, name="item_id")
    elif vector is not None:
        request.vector = query_vector(vector)
    else:
        request.text = one_id(text or "", name="text")
    return request


def found(answer: embeddings_pb2.FindNeighboursResponse) -> Neighbours:
    """The wire's answer."""
    near = (Neighbour(one.item_id, one.similarity) for one in answer.neighbours)
    return Neighbours(near, exact=answer.exact, recipe_id=answer.recipe_id)
