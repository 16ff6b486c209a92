"""What each of a model's vectors is made from, and which of them are out of date.

It is asked for whole catalogues, so it works on Arrow's columns: a million items as Python's dicts were a gigabyte and
most of the time that publishing took.

Shapes: N items, B of one batch.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from dmesr_server.chunks import one_array
from dmesr_server.serving.artefact import Artefact
from dmesr_server.store import AdaptedTable, CatalogStore

#: A vector that an index should hold: the item, and the hash of what its vector is made from.
_SCHEMA = pa.schema([pa.field("item_id", pa.large_string()), pa.field("input_hash", pa.large_string())])


@dataclass(frozen=True)
class Changes:
    """What has to be done to a model's vectors.

    Attributes:
        due: Items whose vector is missing or made from something else than it would be now: `item_id`, `input_hash`.
        gone: Items whose vector has to go.
    """

    due: pa.Table
    gone: pa.LargeStringArray


def changes(artefact: Artefact, catalog: CatalogStore, vectors: AdaptedTable) -> Changes:
    """Compares a model's vectors with what they would be made from now.

    Args:
        artefact: The model's.
        catalog: Where its items and their embeddings are.
        vectors: Its adapted vectors.
    """
    wanted, have = _wanted(artefact, catalog), vectors.input_hashes().cast(_SCHEMA)
    wanted_ids, have_ids = one_array(wanted["item_id"]), one_array(have["item_id"])
    before = one_array(have["input_hash"]).take(pc.index_in(wanted_ids, value_set=have_ids))
    same = pc.fill_null(pc.equal(one_array(wanted["input_hash"]), before), False)
    return Changes(
        due=wanted.filter(pc.invert(same)),
        gone=have_ids.filter(pc.invert(pc.is_in(have_ids, value_set=wanted_ids))),
    )


def input_hashes(model_digest: str, hashes: Sequence[pa.Array], *, rows: int) -> list[str]:
    """Hashes what vectors are made from: sha256 (hex) over the JSON list of the model's digest and each source's hash.

    The model is part of it because names come again: a catalog that is dropped and made anew counts from version 1.

    Args:
        model_digest: The artefact's.
        hashes: For each declared source the stored hashes [B] of its vectors, text; null where there is none.
        rows: B; so many that their texts have less than 2 GiB.
    """
    start = json.dumps([model_digest])[:-1]
    if not hashes:
        return [_sha256(f"{start}]".encode())] * rows
    texts = pc.binary_join_element_wise(start, *map(_as_json, hashes), ", ")
    return [_sha256(text) for text in pc.binary_join_element_wise(texts, "]", "").cast(pa.binary()).to_pylist()]


def _sha256(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def _as_json(column: pa.Array) -> pa.Array:
    # Hashes are hex as a rule, which JSON leaves as it is.
    if pc.all(pc.ascii_is_alnum(column)).as_py() is False:
        return pa.array(map(json.dumps, column.to_pylist()), pa.string())
    return pc.fill_null(pc.binary_join_element_wise('"', column, '"', ""), "null")


def _wanted(artefact: Artefact, catalog: CatalogStore) -> pa.Table:
    """Each item that belongs in the index, once."""
    sources = [source.name for source in artefact.manifest.sources]
    parts = [_SCHEMA.empty_table()]
    if sources:
        for batch in catalog.embeddings(artefact.manifest.recipe_id).hash_batches(sources):
            own = [batch.column(source) for source in sources]
            some = functools.reduce(pc.or_, map(pc.is_valid, own))
            parts.append(_rows(batch.column("item_id").filter(some), artefact, [one.filter(some) for one in own]))
    described = pa.concat_tables(parts)
    learned = artefact.learned.ids_with_part()
    alone = learned.filter(pc.invert(pc.is_in(learned, value_set=one_array(described["item_id"]))))
    nothing = [pa.nulls(len(alone), pa.string()) for _ in sources]
    wanted = pa.concat_tables([described, _rows(alone, artefact, nothing)])
    # An item that was deleted, or that this catalog never had, is not recommended, whatever was learned of it.
    existing = catalog.items.ids().cast(pa.large_string())
    return wanted.filter(pc.is_in(wanted["item_id"], value_set=existing))


def _rows(item_ids: pa.Array, artefact: Artefact, hashes: Sequence[pa.Array]) -> pa.Table:
    digests = input_hashes(artefact.digest, hashes, rows=len(item_ids))
    return pa.table([item_ids.cast(pa.large_string()), pa.array(digests, pa.large_string())], schema=_SCHEMA)
