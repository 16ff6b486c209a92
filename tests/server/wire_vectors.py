"""Vectors to and from a server over raw stubs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from dmesr.v1 import embeddings_pb2 as pb
from dmesr.v1 import items_pb2
from wire import Stubs


def add_items(stubs: Stubs, catalog: str, ids: Sequence[str]) -> None:
    for start in range(0, len(ids), 500):
        batch = [items_pb2.Item(item_id=item_id) for item_id in ids[start : start + 500]]
        list(stubs.items.UpsertItems(iter([items_pb2.UpsertItemsRequest(catalog=catalog, items=batch)])))


def arrow(ids: Sequence[str | None], vectors: Sequence[Sequence[float] | None], kind: pa.DataType) -> bytes:
    table = pa.table({"item_id": pa.array(ids, pa.string()), "vector": pa.array(vectors, kind)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def floats(dim: int, value: pa.DataType | None = None) -> pa.DataType:
    return pa.list_(value or pa.float32(), dim)


def write(
    stubs: Stubs, catalog: str, *, data: bytes, source: str = "clip", recipe: str = "ours", create: bool = True
) -> list[items_pb2.RowResult]:
    request = pb.WriteEmbeddingsRequest(catalog=catalog, recipe=recipe, source=source, data=data, create_recipe=create)
    (answer,) = stubs.embeddings.WriteEmbeddings(iter([request]))
    return list(answer.results)


def write_all(stubs: Stubs, catalog: str, vectors_ND: np.ndarray, ids: Sequence[str], source: str = "clip") -> None:
    step = max(1, 2_000_000 // (4 * vectors_ND.shape[1]))
    for start in range(0, len(ids), step):
        rows = vectors_ND[start : start + step].tolist()
        write(stubs, catalog, data=arrow(ids[start : start + step], rows, floats(vectors_ND.shape[1])), source=source)


def read(stubs: Stubs, **request: object) -> tuple[list[pb.ReadEmbeddingsResponse], pa.Table]:
    answers = list(stubs.embeddings.ReadEmbeddings(pb.ReadEmbeddingsRequest(**request)))
    return answers, pa.ipc.open_stream(b"".join(answer.data for answer in answers)).read_all()


def matrix(table: pa.Table, source: str) -> np.ndarray:
    column = table.column(source).combine_chunks()
    return column.flatten().to_numpy().reshape(-1, column.type.list_size)
