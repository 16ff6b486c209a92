"""Descriptions: the texts that enrichment made of items, and those that were made elsewhere."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from dmesr.arguments import cut, id_list, one_id, positive, utf8_bytes
from dmesr.bridge import in_chunks
from dmesr.errors import InvalidInput
from dmesr.rows import Problem, RejectedRow, RowCounter, UpsertSummary, to_problem, to_time
from dmesr.transport import Rpc, Transport
from dmesr.v1 import enrichment_pb2

GET_DESCRIPTIONS = Rpc(
    "EnrichmentService/GetDescriptions",
    enrichment_pb2.GetDescriptionsRequest,
    enrichment_pb2.GetDescriptionsResponse,
    idempotent=True,
)
LIST = Rpc(
    "EnrichmentService/ListDescriptions",
    enrichment_pb2.ListDescriptionsRequest,
    enrichment_pb2.ListDescriptionsResponse,
    idempotent=True,
)
# A withdrawal whose answer was lost would find nothing to withdraw the second time.
EDIT = Rpc(
    "EnrichmentService/EditDescription", enrichment_pb2.EditDescriptionRequest, enrichment_pb2.EditDescriptionResponse
)
IMPORT = Rpc(
    "EnrichmentService/ImportDescriptions",
    enrichment_pb2.ImportDescriptionsRequest,
    enrichment_pb2.ImportDescriptionsResponse,
)


#: The describer of a correction.
PERSON = "person"

_ITEMS_PER_CALL = 500  # the wire takes 1,000; the answer holds several texts for each
_IMPORT_BATCH = 500


@dataclass(frozen=True)
class Provenance:
    """How a description came to be."""

    description_recipe_id: str  # what makes two descriptions comparable
    describer: str  # "person" for a correction
    is_mllm: bool  # False where no multimodal LLM was involved
    model: str
    engine: str
    prompt_revision: str
    content_hash: str  # of all that the description was made from
    picture_sha256: str  # empty where no picture was used
    rounds: int  # of refinement (hybrid)
    stop_reason: str
    tokens_in: int
    tokens_out: int
    tokens_cached: int
    milliseconds: float
    create_time: datetime | None
    sampling: str  # canonical JSON
    author: str  # who wrote it, where a person did


@dataclass(frozen=True)
class Description:
    """The description of one item by one route."""

    item_id: str
    route: str
    text: str  # empty when it failed
    problem: Problem | None  # why there is no text
    provenance: Provenance | None
    stale: bool  # the item has changed since: the next job makes it anew, unless a person wrote it
    replaced: Description | None = None  # what the describer made, where a person's correction stands in its place

    @property
    def is_corrected(self) -> bool:
        """Whether a person's correction stands here."""
        return self.provenance is not None and self.provenance.describer == PERSON


@dataclass(frozen=True)
class Descriptions:
    """The answer to a read of descriptions."""

    descriptions: tuple[Description, ...]  # item by item in the order asked
    original_texts: dict[str, str]  # as encoded for the fine view, by item id
    missing: tuple[str, ...]  # the ids that no item has


@dataclass(frozen=True)
class ImportedDescription:
    """A description made elsewhere."""

    item_id: str
    route: str
    text: str
    author: str = ""  # who wrote it, where a person did; kept in the provenance


def _description(one: enrichment_pb2.Description) -> Description:
    made = one.provenance
    return Description(
        item_id=one.item_id,
        route=one.route,
        text=one.text,
        problem=to_problem(one.problem) if one.HasField("problem") else None,
        provenance=Provenance(
            description_recipe_id=made.description_recipe_id,
            describer=made.describer,
            is_mllm=made.is_mllm,
            model=made.model,
            engine=made.engine,
            prompt_revision=made.prompt_revision,
            content_hash=made.content_hash,
            picture_sha256=made.picture_sha256,
            rounds=made.rounds,
            stop_reason=made.stop_reason,
            tokens_in=made.tokens_in,
            tokens_out=made.tokens_out,
            tokens_cached=made.tokens_cached,
            milliseconds=made.milliseconds,
            create_time=to_time(made.create_time),
            sampling=made.sampling,
            author=made.author,
        )
        if one.HasField("provenance")
        else None,
        stale=one.stale,
        replaced=_description(one.replaced) if one.HasField("replaced") else None,
    )


async def read_descriptions(
    transport: Transport, catalog: str, item_ids: Iterable[str], *, recipe: str
) -> Descriptions:
    """Reads the descriptions of items, in as many calls as it takes."""
    descriptions: list[Description] = []
    originals: dict[str, str] = {}
    missing: list[str] = []
    ids = id_list(item_ids, name="item_ids")
    max_bytes = await transport.message_bytes()
    for piece in cut(ids, bytes_of=utf8_bytes, max_count=_ITEMS_PER_CALL, max_bytes=max_bytes):
        request = enrichment_pb2.GetDescriptionsRequest(catalog=catalog, item_ids=piece, recipe=recipe)
        answer = await transport.unary(GET_DESCRIPTIONS, request)
        descriptions.extend(_description(one) for one in answer.descriptions)
        originals.update(answer.original_texts)
        missing.extend(answer.missing_item_ids)
    return Descriptions(tuple(descriptions), originals, tuple(missing))


async def list_all(
    transport: Transport, catalog: str, *, recipe: str, include_failures: bool, page_size: int
) -> AsyncGenerator[Description, None]:
    """Iterates the descriptions of a recipe, page by page; each page is tried again by itself."""
    request = enrichment_pb2.ListDescriptionsRequest(
        catalog=catalog,
        recipe=recipe,
        include_failures=include_failures,
        page_size=positive(page_size, name="page_size"),
    )
    while True:
        answer = await transport.unary(LIST, request)
        for one in answer.descriptions:
            yield _description(one)
        if not answer.next_page_token:
            return
        request.page_token = answer.next_page_token
        request.recipe = answer.recipe_id  # the name may be bound to another recipe meanwhile


async def write_edit(
    transport: Transport, catalog: str, item_id: str, *, route: str, recipe: str, text: str, author: str
) -> Description:
    """Puts a text in the place of a description."""
    request = enrichment_pb2.EditDescriptionRequest(
        catalog=catalog,
        item_id=one_id(item_id, name="item_id"),
        route=one_id(route, name="route"),
        recipe=recipe,
        text=one_id(text, name="text"),
        author=one_id(author, name="author"),
    )
    return _description((await transport.unary(EDIT, request)).description)


async def write_withdrawal(
    transport: Transport, catalog: str, item_id: str, *, route: str, recipe: str
) -> Description | None:
    """Takes a correction back."""
    request = enrichment_pb2.EditDescriptionRequest(
        catalog=catalog,
        item_id=one_id(item_id, name="item_id"),
        route=one_id(route, name="route"),
        recipe=recipe,
        withdraw=True,
    )
    answer = await transport.unary(EDIT, request)
    return _description(answer.description) if answer.HasField("description") else None


async def write_descriptions(
    transport: Transport,
    catalog: str,
    descriptions: Iterable[ImportedDescription] | AsyncIterable[ImportedDescription],
    *,
    model: str,
    is_mllm: bool,
    recipe: str,
) -> UpsertSummary:
    """Streams descriptions to the server, batch by batch."""
    one_id(model, name="model")
    counter = RowCounter()
    size = min(_IMPORT_BATCH, (await transport.limits()).max_items_per_batch)
    max_bytes = await transport.message_bytes()

    async def messages() -> AsyncGenerator[tuple[enrichment_pb2.ImportDescriptionsRequest, Literal[True] | None], None]:
        async with aclosing(in_chunks(descriptions, size)) as chunks:
            async for chunk in chunks:
                rows = []
                for one in chunk:
                    row = _import_row(one, max_bytes)
                    if isinstance(row, RejectedRow):
                        counter.reject(row)
                    else:
                        rows.append(row)
                for batch in cut(
                    rows, bytes_of=enrichment_pb2.ImportedDescription.ByteSize, max_count=size, max_bytes=max_bytes
                ):
                    request = enrichment_pb2.ImportDescriptionsRequest(
                        catalog=catalog, model=model, is_mllm=is_mllm, recipe=recipe, descriptions=batch
                    )
                    yield request, True

    async with aclosing(transport.exchange(IMPORT, messages())) as answers:
        async for _, answer in answers:
            counter.count(answer.results)
    return counter.summary()


def _import_row(one: ImportedDescription, max_bytes: int) -> enrichment_pb2.ImportedDescription | RejectedRow:
    if not isinstance(one, ImportedDescription):
        raise InvalidInput(f"expected descriptions of type dmesr.ImportedDescription, got {type(one).__name__}")
    try:
        row = enrichment_pb2.ImportedDescription(item_id=one.item_id, route=one.route, text=one.text, author=one.author)
    except (TypeError, UnicodeEncodeError) as error:
        return RejectedRow(
            ascii(one.item_id).strip("'"),
            "INVALID_FIELD",
            f"the description of item {one.item_id!a} cannot be sent ({error}); id, route, text and author are text",
            {"item_id": ascii(one.item_id), "error": str(error)},
        )
    if (size := row.ByteSize()) > max_bytes:
        return RejectedRow(
            one.item_id[:1_000],
            "REQUEST_TOO_LARGE",
            f"the description has {size} bytes; one message takes {max_bytes}: shorten it",
            {"size_bytes": str(size), "max_bytes": str(max_bytes)},
        )
    return row
