"""A catalog with vectors of its own and tiny models published over the wire."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import dmesr
import numpy as np
import pyarrow as pa
import tiny_artefact
from dmesr.v1 import embeddings_pb2, items_pb2, models_pb2
from wire import Stubs

SOURCES: dict[str, dict[str, list[float] | None]] = {
    "a": {"text": [1, 0, 0], "image": [0, 1]},
    "b": {"text": [0, 1, 0], "image": None},
    "c": {"text": None, "image": [1, 0]},
    "d": {"text": [1, 1, 2], "image": [1, -1]},
    "new": {"text": [0, 2, 1], "image": [0.5, 0.5]},
    "bare": {"text": None, "image": None},
    "known": {"text": None, "image": None},
}
LEARNED: dict[str, tuple[int, list[float] | None]] = {
    "a": (9, [0, 0, 0, 0, 1]),
    "b": (4, [0.5, 0, 0, 0, -1]),
    "c": (4, None),
    "d": (1, [0, 0, 0, 1, 0]),
    "known": (2, [0.25, 0.25, 0, 0, 3]),
    "elsewhere": (50, [9, 9, 9, 9, 9]),  # learned, but the catalog has no such item
}


def write_source(stubs: Stubs, catalog: str, source: str, vectors: Mapping[str, Sequence[float]]) -> str:
    """Writes vectors into the catalog's own recipe "ours"; returns the recipe's id."""
    kind = pa.list_(pa.float32(), tiny_artefact.DIMS[source])
    table = pa.table({"item_id": list(vectors), "vector": pa.array(list(vectors.values()), kind)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    request = embeddings_pb2.WriteEmbeddingsRequest(
        catalog=catalog, recipe="ours", source=source, data=sink.getvalue().to_pybytes(), create_recipe=True
    )
    (answer,) = stubs.embeddings.WriteEmbeddings(iter([request]))
    return answer.recipe_id


def fill(stubs: Stubs, catalog: str) -> str:
    """Puts the items and their vectors into a catalog; returns the recipe's id."""
    items = [
        items_pb2.Item(
            item_id=item_id,
            attributes=[
                items_pb2.Attribute(name="title", values=[f"Title of {item_id}"]),
                items_pb2.Attribute(name="year", values=["2001"]),
            ],
        )
        for item_id in SOURCES
    ]
    list(stubs.items.UpsertItems(iter([items_pb2.UpsertItemsRequest(catalog=catalog, items=items)])))
    recipe_id = ""
    for source in ("text", "image"):
        vectors = {item_id: values for item_id, all_of in SOURCES.items() if (values := all_of[source]) is not None}
        recipe_id = write_source(stubs, catalog, source, vectors)
    return recipe_id


def requests(folder: Path, catalog: str, name: str, *, chunk: int = 1_000) -> Iterator[models_pb2.PublishModelRequest]:
    """The stream that uploads a folder."""
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        for start in range(0, max(len(content), 1), chunk):
            yield models_pb2.PublishModelRequest(
                catalog=catalog, name=name, file_name=file.name, data=content[start : start + chunk]
            )


def publish(stubs: Stubs, catalog: str, folder: Path, *, name: str = "tiny", wait: bool = True) -> models_pb2.Model:
    """Publishes a folder and waits until it is adapted."""
    model = stubs.models.PublishModel(requests(folder, catalog, name)).model
    deadline = time.monotonic() + 20
    while wait and model.state == models_pb2.MODEL_STATE_ADAPTING:
        assert time.monotonic() < deadline, "the model was not adapted"
        time.sleep(0.02)
        request = models_pb2.GetModelRequest(catalog=catalog, model=f"{model.name}:{model.version}")
        model = stubs.models.GetModel(request).model
    return model


def promote(stubs: Stubs, catalog: str, model: str, alias: str = "") -> models_pb2.Model:
    """Points an alias to a model."""
    request = models_pb2.PromoteModelRequest(catalog=catalog, model=model, alias=alias)
    return stubs.models.PromoteModel(request).model


def serve(client: dmesr.Client, item_ids: Sequence[str], folder: Path) -> None:
    """By the SDK: random vectors of these items into the recipe "ours", and a model over them into production."""
    rng = np.random.default_rng(0)
    matrices = {
        source: rng.normal(size=(len(item_ids), dim)).astype(np.float32) for source, dim in tiny_artefact.DIMS.items()
    }
    client.embeddings.write(recipe="ours", item_ids=item_ids, vectors=matrices, create_recipe=True)
    (recipe,) = (one for one in client.embeddings.recipes() if "ours" in one.names)
    tiny_artefact.write(folder, recipe_id=recipe.recipe_id, items={item_ids[0]: (1, None)})
    client.models.promote(client.models.publish(folder, name="tiny").ref)
