"""`python -m benchmarks.store`: bulk reads, bulk writes and neighbours beside what a user would take instead.

Every figure and its peer are taken in one run, in turns, through a real server on loopback. Peers that are no part of
the project are run with the Python of an environment of their own (benchmarks/requirements.txt); without one their rows
are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dmesr
import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.flight as flight
from dmesr_server import topk

from benchmarks import rows as figures
from benchmarks import sentence_vectors
from benchmarks.rows import Row, machine

ROOT = Path(__file__).parents[1]
PARTS = ("read", "write", "neighbours")
SOURCES = ("s0", "s1", "s2", "s3")
LANCE_BATCH = 5_000  # rows of one merge_insert
K = 10
WARM_QUERIES = 20
FIRST_QUERIES = 40  # less than are asked before the server has made what speeds up searches by an index


@contextmanager
def server(folder: Path, **settings: object) -> Iterator[str]:
    """A server as a user starts it, without an enricher; its address."""
    ready = folder / "ready"
    config = folder / "dmesr.toml"
    lines = [f"{name.partition('.')[2]} = {json.dumps(value)}" for name, value in settings.items()]
    config.write_text("\n".join(["[store]", *lines]))
    command = [sys.executable, "-m", "dmesr_server", "serve", "--config", str(config), "--store", str(folder / "store")]
    with (folder / "server.log").open("wb") as log:
        started = subprocess.Popen(
            [*command, "--port", "0", "--no-enricher", "--ready-file", str(ready)],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
    try:
        while not ready.exists():
            if started.poll() is not None:
                raise SystemExit((folder / "server.log").read_text())
            time.sleep(0.05)
        yield ready.read_text()
    finally:
        started.terminate()
        started.wait(60)


def best_of(repeats: int, *acts: Callable[[], object]) -> list[float]:
    """The shortest of some runs of each, taken in turns after one that does not count; seconds."""
    seconds: list[list[float]] = [[] for _ in acts]
    for run in range(repeats + 1):
        for place, act in enumerate(acts):
            started = time.perf_counter()
            act()
            if run:
                seconds[place].append(time.perf_counter() - started)
    return [min(times) for times in seconds]


def made_up(items: int, dim: int) -> tuple[list[str], dict[str, np.ndarray]]:
    """Ids and a matrix for each source. Reading and writing take as long whatever the numbers are."""
    generator = np.random.default_rng(0)
    ids = [f"item-{row:07}" for row in range(items)]
    return ids, {name: generator.standard_normal((items, dim), dtype=np.float32) for name in SOURCES}


def put(client: dmesr.Client, ids: Sequence[str], vectors: dict[str, np.ndarray]) -> None:
    """Writes all sources at once."""
    client.embeddings.write(item_ids=ids, vectors=vectors, recipe="bench", create_recipe=True)


def read(given: argparse.Namespace, peers: dict[str, Any]) -> list[Row]:
    """Bulk reads, client to NumPy."""
    ids, vectors = made_up(given.items, given.dim)
    megabytes = given.items * len(SOURCES) * given.dim * 4 / 1e6
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with server(folder) as address, dmesr.connect(address) as client:
            client.items.upsert(dmesr.Item(item_id, {"title": item_id}) for item_id in ids)
            put(client, ids, vectors)
            recipe = client.embeddings.recipes()[0].recipe_id
            (table,) = (folder / "store" / "catalogs" / "default").glob(f"embeddings_{recipe}.lance")
            peer = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.flight_peer", str(table.parent), table.stem],
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
            )
            try:
                assert peer.stdout is not None
                flights = flight.connect(f"grpc://127.0.0.1:{int(peer.stdout.readline())}")
                columns = ",".join(["item_id", *(f"vector_{name}" for name in SOURCES)])

                def by_flight() -> None:
                    got = flights.do_get(flight.Ticket(columns.encode())).read_all()
                    got["item_id"].to_pylist()
                    for name in SOURCES:
                        got[f"vector_{name}"].combine_chunks().values.to_numpy().reshape(-1, given.dim)

                ours, theirs, half, kept = best_of(
                    given.repeats,
                    lambda: client.embeddings.read(recipe="bench"),
                    by_flight,
                    lambda: client.embeddings.read(recipe="bench", dtype="float16"),
                    lambda: client.embeddings.read(recipe="bench", cache=folder / "cache"),
                )
            finally:
                peer.kill()
                peer.wait()
    how = f"{given.items} items × {len(SOURCES)} × {given.dim} float32, best of {given.repeats}"
    found = [
        Row("read/flight", megabytes / ours, "MB/s", f"{how}; peer: pyarrow Flight {pa.__version__} on the same Lance "
            "table, read_all and one array a source", megabytes / theirs, 0.8),
        Row("read/float16", megabytes / half, "MB/s of float32", f"{how}, as float16"),
        Row("read/cached", kept * 1e3, "ms", f"{how}, from the client's cache", better="lower"),
    ]  # fmt: skip
    for peer_name, told in peers.items():
        speed = megabytes / told["read_seconds"]
        found.append(
            Row(f"read/{_slug(peer_name)}", megabytes / ours, "MB/s", f"{how}; peer: {told['versions']}", speed, 20.0)
        )
    return found


def write(given: argparse.Namespace, peers: dict[str, Any]) -> list[Row]:
    """Bulk writes as upserts, acknowledged means durable; first into nothing, then over what is there."""
    ids, vectors = made_up(given.items, given.dim)
    megabytes = given.items * len(SOURCES) * given.dim * 4 / 1e6
    ours: list[list[float]] = [[], []]  # of the first write, and of the second over it; by round
    lance: list[list[float]] = [[], []]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with server(folder) as address, dmesr.connect(address) as root:
            for number in range(given.rounds):
                root.admin.create_catalog(f"c{number}")
                client = root.catalog(f"c{number}")
                client.items.upsert(dmesr.Item(item_id, {"title": item_id}) for item_id in ids)
                for place, factor in enumerate((1, 2)):
                    changed = {name: factor * matrix for name, matrix in vectors.items()}
                    ours[place].append(_timed(lambda client=client, changed=changed: put(client, ids, changed)))
                    made = folder / f"lance{number}"
                    lance[place].append(_timed(lambda made=made, changed=changed: _merge(made, ids, changed)))
            root.admin.create_catalog("by-source")
            client = root.catalog("by-source")
            client.items.upsert(dmesr.Item(item_id, {"title": item_id}) for item_id in ids)
            started = time.perf_counter()
            for source, matrix in vectors.items():
                client.embeddings.write(source=source, item_ids=ids, vectors=matrix, recipe="bench", create_recipe=True)
            one_by_one = time.perf_counter() - started
    how = f"{given.items} items × {len(SOURCES)} × {given.dim} float32, client to answer"
    found = [
        Row(f"write/{what}", megabytes / min(ours[place]), "MB/s",
            f"{how}, best of {given.rounds}; peer: lancedb {lancedb.__version__} merge_insert in process, "
            f"{LANCE_BATCH} rows at a time", megabytes / min(lance[place]), 0.8)
        for place, what in enumerate(("insert", "update"))
    ]  # fmt: skip
    found.append(Row("write/by-source", megabytes / one_by_one, "MB/s", f"{how}, one source after the other, one run"))
    for peer_name, told in peers.items():
        speed = megabytes / told["write_seconds"]
        text = f"{how}; peer: {told['versions']}"
        found.append(Row(f"write/{_slug(peer_name)}", megabytes / min(ours[0]), "MB/s", text, speed, 10.0))
    return found


def _merge(folder: Path, ids: Sequence[str], vectors: dict[str, np.ndarray]) -> None:
    """LanceDB by itself: whole rows, keyed by id."""
    connection = lancedb.connect(str(folder))

    def rows(start: int, stop: int) -> pa.Table:
        lists = {
            name: pa.FixedSizeListArray.from_arrays(pa.array(matrix[start:stop].reshape(-1)), matrix.shape[1])
            for name, matrix in vectors.items()
        }
        return pa.table({"item_id": list(ids[start:stop]), **lists})

    table = connection.create_table("items", schema=rows(0, 1).schema, exist_ok=True)
    for start in range(0, len(ids), LANCE_BATCH):
        merge = table.merge_insert("item_id").when_matched_update_all().when_not_matched_insert_all()
        merge.execute(rows(start, min(start + LANCE_BATCH, len(ids))))


def neighbours(given: argparse.Namespace, peers: dict[str, Any]) -> list[Row]:
    """Searches by the index and exact ones through the server, beside a product in memory."""
    vectors, made = sentence_vectors.make(given.neighbours, given.width, texts=given.texts)
    ids = [f"item-{row:07}" for row in range(len(vectors))]
    took: dict[bool, list[float]] = {True: [], False: []}
    bare: list[float] = []
    written = built = None
    with contextlib.ExitStack() as stack:
        folder = given.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        there = (folder / "store").exists()
        settings = {"store.index_threshold_rows": len(ids), "store.index_poll_seconds": 1.0}
        client = stack.enter_context(dmesr.connect(stack.enter_context(server(folder, **settings))))

        def ask(row: int, exact: bool) -> dmesr.Neighbours:
            return client.embeddings.neighbours(item_id=ids[row], recipe="bench", source="text", k=K, exact=exact)

        if not there:
            client.items.upsert(dmesr.Item(item_id, {"title": item_id}) for item_id in ids)
            started = time.perf_counter()
            client.embeddings.write(source="text", item_ids=ids, vectors=vectors, recipe="bench", create_recipe=True)
            written = time.perf_counter() - started
            started = time.perf_counter()
            while ask(0, exact=False).exact:
                time.sleep(given.poll)
            built = time.perf_counter() - started
        asked = np.random.default_rng(1).choice(len(ids), given.queries + WARM_QUERIES, replace=False)
        first = np.random.default_rng(2).choice(len(ids), FIRST_QUERIES + WARM_QUERIES, replace=False)
        by_files = [_timed(lambda row=row: ask(row, exact=False)) for row in first][WARM_QUERIES:]
        time.sleep(given.settle)
        # One kind after the other: an exact search reads a gigabyte through the caches that the index lives in.
        answers: dict[bool, list[set[str]]] = {True: [], False: []}
        for exact in (False, True):
            for row in asked:
                began = time.perf_counter()
                answers[exact].append({near.item_id for near in ask(row, exact)})
                took[exact].append(time.perf_counter() - began)
            del answers[exact][:WARM_QUERIES], took[exact][:WARM_QUERIES]
        units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        for row in asked:
            bare.append(_timed(lambda row=row: topk.best(units @ units[row], K + 1)))
        del bare[:WARM_QUERIES]
        hits = sum(len(wanted & found) for wanted, found in zip(answers[True], answers[False], strict=True))
        (stats,) = client.embeddings.stats("bench").sources
    how = f"{len(ids)} × {given.width}, {made}; {given.queries} queries by item, one at a time, k={K}, median"
    alone = f"one product with all units and the best {K} of it, in process"
    index = stats.index
    assert index is not None
    found = [
        Row("neighbours/time", float(np.median(took[False])) * 1e3, "ms", f"{how}; peer: {alone}; index {index.kind}",
            float(np.median(bare)) * 1e3, 0.1, "lower"),
        Row("neighbours/by-files", float(np.median(by_files)) * 1e3, "ms", f"{how}, but the first {FIRST_QUERIES} of a "
            f"server: it has no matrix yet; peer: {alone}", float(np.median(bare)) * 1e3, None, "lower"),
        Row("neighbours/exact", float(np.median(took[True])) * 1e3, "ms", f"{how}, exact; peer: {alone}",
            float(np.median(bare)) * 1e3, None, "lower"),
        Row("neighbours/recall", hits / (K * given.queries), "recall@10", how, target=0.97),
        Row("neighbours/told", index.recall_at_10, "recall@10", f"as `embeddings stats` tells it, measured on "
            f"{index.recall_sample} of the vectors"),
    ]  # fmt: skip
    for what, seconds, told in (
        ("write", written, f"{len(ids)} × {given.width} written"),
        ("build", built, "from the last write to the first answer by the index; it is made at low priority"),
    ):
        if seconds is not None:
            found.append(Row(f"neighbours/{what}", seconds, "s", told, better="lower"))
    return found


def _timed(act: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def _slug(name: str) -> str:
    return name.lower().replace(" ", "-")


def _peers(given: argparse.Namespace) -> dict[str, Any]:
    if not given.peers_python.exists():
        print(f"no {given.peers_python}: Milvus Lite and Chroma are left out (benchmarks/requirements.txt)")
        return {}
    script = ROOT / "benchmarks" / "store_peers.py"
    done = subprocess.run(
        [str(given.peers_python), str(script), str(given.peer_items), str(given.dim)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    told: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    scale = given.items / given.peer_items  # their speed hardly depends on it, their patience does
    for one in told.values():
        one["read_seconds"] *= scale
        one["write_seconds"] *= scale
        one["versions"] += f", {given.peer_items} items"
    return told


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 where a target is missed."""
    given = _parser().parse_args(arguments)
    on = machine("lancedb", "pyarrow", "grpcio", "numpy")
    parts = list(dict.fromkeys(given.part or PARTS))
    peers = _peers(given) if {"read", "write"} & set(parts) else {}
    measured: list[Row] = []
    for part in parts:
        found = {"read": read, "write": write, "neighbours": neighbours}[part](given, peers)
        measured += [Row(**{**vars(row), "how": f"{row.how}; {on}"}) for row in found]
    figures.merge(given.output, measured)
    print(figures.table(measured))
    print(f"\nwritten to {given.output}; how each figure was got stands there")
    return int(any(row.met is False for row in measured))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.store", description=__doc__)
    parser.add_argument("--part", action="append", choices=PARTS, help="only this one; may be repeated")
    parser.add_argument("--items", type=int, default=50_000, help="of reads and writes")
    parser.add_argument("--peer-items", type=int, default=10_000, help="of Milvus Lite and Chroma")
    parser.add_argument("--dim", type=int, default=384, help="of reads and writes")
    parser.add_argument("--neighbours", type=int, default=1_000_000, help="vectors that are searched")
    parser.add_argument("--width", type=int, default=256, help="of those")
    parser.add_argument("--texts", type=int, default=12_000, help="at most so many real texts are encoded for them")
    parser.add_argument("--keep", type=Path, help="a folder for the store of neighbours; one that is there is searched")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--poll", type=float, default=5.0, help="seconds between looks at whether the index is there")
    parser.add_argument("--settle", type=float, default=15.0, help="seconds in which the server makes the matrix")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3, help="of writes")
    parser.add_argument("--peers-python", type=Path, default=ROOT / ".venv-bench" / "bin" / "python")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "store.json")
    return parser


if __name__ == "__main__":
    sys.exit(main())
