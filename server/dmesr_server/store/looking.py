"""A look at every row of a table: whether it can be read, counts right, stands once and hashes to what it says."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import ServiceError
from . import adapted, descriptions, embeddings, items, pictures
from .copying import held
from .database import literal
from .snapshots import Snapshot
from .tables import Table
from .vector_columns import column_names, source_dims

_ROWS = 2_000  # of a batch
_ATTEMPTS = 3  # where house-keeping takes a version away that could not be held
_PROBES = 5  # keys that are looked up one by one

#: What may be wrong with a row.
WRONG_HASH = "WRONG_HASH"  # its content is not what its hash says
MALFORMED = "MALFORMED"  # it contradicts itself

#: Gives the rows of a batch that are wrong, each with what is wrong with it.
_Judge = Callable[[pa.RecordBatch], Iterable[tuple[int, str]]]


@dataclass(frozen=True, eq=False)
class Look:
    """What was seen of a table.

    Attributes:
        name: The table.
        version: The version that was looked at.
        rows: Rows that could be read.
        counted: Rows that the table says it has.
        duplicates: Keys that stand more than once.
        wrong: Keys of the rows that are wrong, by what is wrong with them.
        lost: Keys that were read, but are not found when they are asked for.
        columns: Of what points elsewhere, each row's value, as far as the table has them: "item_id", "recipe_id",
            "sha256", "picture_sha256".
    """

    name: str
    version: int
    rows: int
    counted: int
    duplicates: list[str]
    wrong: Mapping[str, list[str]]
    lost: list[str]
    columns: Mapping[str, pa.ChunkedArray] = field(repr=False)


_POINTERS = ("item_id", "recipe_id", "sha256", "picture_sha256")


def look(table: Table, *, contents: bool, written: Callable[[str], bool], hold: bool) -> Look:
    """Reads the newest version of a table from end to end, while others write.

    Args:
        table: The table.
        contents: Read vectors and pictures too, and hash what has a hash.
        written: Whether a source's vectors were written by clients: those are hashed by their numbers.
        hold: Keep the version from house-keeping meanwhile. Where nothing may be written, another attempt has to do.

    Raises:
        ServiceError: STORE_UNAVAILABLE when it cannot be read: a file is damaged or missing.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        with contextlib.ExitStack() as holding:
            version = _held(table, holding) if hold else None
            try:
                return _look(table, table.snapshot(version), contents=contents, written=written)
            except ServiceError as error:
                if error.reason != "VERSION_NOT_FOUND" or attempt == _ATTEMPTS:
                    raise
            except ValueError as error:  # of Arrow too: texts that are no texts, lists that are too short
                raise ServiceError(
                    "STORE_UNAVAILABLE",
                    f"rows of {table.name} cannot be made out: {error}; restore the store from a snapshot",
                    table=table.name,
                ) from error
    raise AssertionError("unreachable")


def _held(table: Table, holding: contextlib.ExitStack) -> int | None:
    try:
        return holding.enter_context(held(table))
    except ServiceError:  # the disk is full, or the table ruined: to tell of it is what the look is for
        return None


def _look(table: Table, snapshot: Snapshot, *, contents: bool, written: Callable[[str], bool]) -> Look:
    judge = _judge_of(table.name, snapshot.schema, written) if contents else _nothing
    columns = snapshot.schema.names if contents else [one.name for one in snapshot.schema if _is_light(one)]
    pointers: dict[str, list[pa.Array]] = {name: [] for name in _POINTERS if name in columns}
    keys: list[pa.Array] = []
    wrong: dict[str, list[str]] = {}
    rows = 0
    for batch in snapshot.batches(columns, rows=_ROWS):
        rows += batch.num_rows
        keys.append(batch.column(table.key))
        for name, chunks in pointers.items():
            chunks.append(batch.column(name))
        for place, what in judge(batch):
            wrong.setdefault(what, []).append(keys[-1][place].as_py())
    every = pa.chunked_array(keys, pa.string())
    counts = pc.value_counts(every) if rows else pa.array([], pa.struct({"values": pa.string(), "counts": pa.int64()}))
    twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values").to_pylist()
    return Look(
        name=table.name,
        version=snapshot.version,
        rows=rows,
        counted=snapshot.count(),
        duplicates=twice,
        wrong=wrong,
        lost=_lost(snapshot, table.key, every),
        columns={name: pa.chunked_array(chunks, pa.string()) for name, chunks in pointers.items()},
    )


def _lost(snapshot: Snapshot, key: str, keys: pa.ChunkedArray) -> list[str]:
    """Those of some keys that a look-up, which goes by the key's index, does not find."""
    places = sorted({round(place) for place in np.linspace(0, len(keys) - 1, _PROBES)}) if len(keys) else []
    probes = [keys[place].as_py() for place in places]
    return [probe for probe in probes if not snapshot.select([key], where=f"{key} = {literal(probe)}").num_rows]


def _is_light(column: pa.Field) -> bool:
    kind = column.type
    return not (pa.types.is_fixed_size_list(kind) or pa.types.is_large_binary(kind))


def _judge_of(name: str, schema: pa.Schema, written: Callable[[str], bool]) -> _Judge:
    if name == items.NAME:
        return _judge_items
    if name == pictures.NAME:
        return _judge_pictures
    if name == descriptions.NAME:
        return _judge_descriptions
    if name.startswith((embeddings.PREFIX, adapted.PREFIX)):
        hashed = written if name.startswith(embeddings.PREFIX) else _never
        sources = source_dims(schema)
        return lambda batch: _judge_vectors(batch, sources, hashed)
    return _nothing


def _never(source: str) -> bool:
    return False


def _nothing(batch: pa.RecordBatch) -> Iterator[tuple[int, str]]:
    return iter(())


def _judge_items(batch: pa.RecordBatch) -> Iterator[tuple[int, str]]:
    texts, hashes = batch.column("attributes").to_pylist(), batch.column("attributes_hash").to_pylist()
    for place, (text, told) in enumerate(zip(texts, hashes, strict=True)):
        if hashlib.sha256(text.encode()).hexdigest() != told:
            yield place, WRONG_HASH


def _judge_pictures(batch: pa.RecordBatch) -> Iterator[tuple[int, str]]:
    for place, (data, told) in enumerate(zip(batch.column("data"), batch.column("sha256").to_pylist(), strict=True)):
        if hashlib.sha256(data.as_buffer()).hexdigest() != told:
            yield place, WRONG_HASH


def _judge_descriptions(batch: pa.RecordBatch) -> Iterator[tuple[int, str]]:
    names = ("key", "item_id", "route", "recipe_id", "text", "failure_reason")
    for place, row in enumerate(zip(*(batch.column(name).to_pylist() for name in names), strict=True)):
        key, item_id, route, recipe_id, text, failure = row
        if json.loads(key) != [item_id, route, recipe_id] or (text is None) != (failure is not None):
            yield place, MALFORMED


def _judge_vectors(
    batch: pa.RecordBatch, sources: Mapping[str, int], written: Callable[[str], bool]
) -> Iterator[tuple[int, str]]:
    for source, width in sources.items():
        vector_name, hash_name = column_names(source)
        vectors, hashes = batch.column(vector_name), batch.column(hash_name)
        there = vectors.is_valid()
        uneven = pc.not_equal(there, hashes.is_valid())
        yield from ((place, MALFORMED) for place in np.flatnonzero(uneven.to_numpy(zero_copy_only=False)).tolist())
        present_N = there.to_numpy(zero_copy_only=False)
        numbers_ND = vectors.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
        places = np.flatnonzero(present_N)
        finite_N = np.isfinite(numbers_ND).all(axis=1)
        yield from ((place, MALFORMED) for place in places[~finite_N].tolist())
        if written(source):
            told = hashes.to_pylist()
            for place, vector_D in zip(places.tolist(), np.ascontiguousarray(numbers_ND, "<f4"), strict=True):
                if told[place] is not None and hashlib.sha256(vector_D.data).hexdigest() != told[place]:
                    yield place, WRONG_HASH
