"""Peers of benchmarks.store that are no dependency of the project; run by it with the Python of their environment.

Prints one JSON object: seconds to write and to read all vectors, and versions.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

CHROMA_BATCH = 5_000  # below the most that it takes at a time
MILVUS_BATCH = 5_000
SOURCES = 4


def timed(act: Callable[[], object]) -> float:
    """Seconds of one run."""
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def chroma(folder: Path, ids: list[str], vectors: dict[str, np.ndarray]) -> tuple[float, float]:
    """A collection for each source: it holds one vector a row."""
    import chromadb

    client = chromadb.PersistentClient(str(folder))
    collections = {name: client.create_collection(name) for name in vectors}

    def write() -> None:
        for name, matrix in vectors.items():
            for start in range(0, len(ids), CHROMA_BATCH):
                rows = slice(start, start + CHROMA_BATCH)
                collections[name].upsert(ids=ids[rows], embeddings=matrix[rows])

    def read() -> None:
        for name, matrix in vectors.items():
            got = [
                np.asarray(
                    collections[name].get(include=["embeddings"], limit=CHROMA_BATCH, offset=start)["embeddings"],
                    np.float32,
                )
                for start in range(0, len(ids), CHROMA_BATCH)
            ]
            assert np.concatenate(got).shape == matrix.shape

    return timed(write), timed(read)


def milvus(folder: Path, ids: list[str], vectors: dict[str, np.ndarray]) -> tuple[float, float]:
    """One collection with a vector field for each source; FLAT, since nothing is searched."""
    from pymilvus import DataType, MilvusClient

    client = MilvusClient(str(folder / "milvus.db"))
    schema = client.create_schema(auto_id=False)
    schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=64)
    index = client.prepare_index_params()
    for name, matrix in vectors.items():
        schema.add_field(name, DataType.FLOAT_VECTOR, dim=matrix.shape[1])
        index.add_index(name, index_type="FLAT", metric_type="COSINE")
    client.create_collection("items", schema=schema, index_params=index)

    def write() -> None:
        for start in range(0, len(ids), MILVUS_BATCH):
            rows = range(start, min(start + MILVUS_BATCH, len(ids)))
            client.upsert(
                "items", [{"id": ids[row], **{name: matrix[row] for name, matrix in vectors.items()}} for row in rows]
            )

    def read() -> None:
        rows = client.query_iterator("items", filter="", output_fields=["id", *vectors], batch_size=1_000)
        count = 0
        while batch := rows.next():
            for name in vectors:
                np.array([row[name] for row in batch], np.float32)
            count += len(batch)
        assert count == len(ids)

    written = timed(write)
    client.load_collection("items")
    return written, timed(read)


def main() -> None:
    """Arguments: number of items, width."""
    items, dim = int(sys.argv[1]), int(sys.argv[2])
    generator = np.random.default_rng(0)
    ids = [f"item-{row:07}" for row in range(items)]
    vectors = {f"source_{n}": generator.standard_normal((items, dim), dtype=np.float32) for n in range(SOURCES)}
    told: dict[str, object] = {}
    for name, run, packages in (("Chroma", chroma, ["chromadb"]), ("Milvus Lite", milvus, ["milvus-lite", "pymilvus"])):
        with tempfile.TemporaryDirectory() as folder:
            written, read = run(Path(folder), ids, vectors)
        of = ", ".join(f"{package} {version(package)}" for package in packages)
        told[name] = {"write_seconds": written, "read_seconds": read, "versions": of}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
