"""`python -m benchmarks.growth`: what each step of a catalogue's way to recommendations takes as it grows.

For 10,000, 100,000 and 1,000,000 items by default: items in, vectors of four sources in, a model published (its items
are adapted), promoted, asked. Each size has a server and a store of its own. The model is as in benchmarks.serving, a
DMESR trained on the first 500 items, since training is none of what grows here.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import dmesr
import numpy as np
import psutil

from benchmarks import rows as figures
from benchmarks import serving
from benchmarks.rows import Row, machine

CHUNK = 50_000  # items whose vectors are made at a time: the client's memory does not grow either
CALLS = 100
SAMPLE_SECONDS = 0.2
STEPS = ("import", "write", "publish", "promote", "first-answer", "recommend")


@dataclass
class Passed:
    """One size."""

    items: int
    seconds: dict[str, float] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)  # of the API process, by step
    rest_bytes: int = 0  # of the API process, after the last answer
    matrix_bytes: int = 0

    @contextmanager
    def step(self, name: str, process: psutil.Process) -> Iterator[None]:
        """Takes the time of a step, and the most memory that the server had meanwhile."""
        with _Watch(process) as watch:
            started = time.perf_counter()
            yield
            self.seconds[name] = time.perf_counter() - started
        self.peak_bytes[name] = watch.peak
        print(f"{self.items:,} items: {name} {self.seconds[name]:.2f} s, API {watch.peak / 1e6:,.0f} MB", flush=True)


class _Watch:
    """Looks at a process's resident memory from a process of its own: a thread here would wait for this one's."""

    def __init__(self, process: psutil.Process):
        self._command = [
            sys.executable,
            "-c",
            "import psutil, select, sys\n"
            f"process, peak = psutil.Process({process.pid}), 0\n"
            f"while not select.select([sys.stdin], [], [], {SAMPLE_SECONDS})[0]:\n"
            "    peak = max(peak, process.memory_info().rss)\n"
            "print(max(peak, process.memory_info().rss))",
        ]
        self.peak = 0

    def __enter__(self) -> _Watch:
        self._looking = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        told, _ = self._looking.communicate("\n")
        self.peak = int(told)


def ids_of(start: int, stop: int) -> list[str]:
    """Ids in order."""
    return [f"i{number:07d}" for number in range(start, stop)]


def vectors_of(items: int) -> Iterator[tuple[list[str], dict[str, np.ndarray]]]:
    """All sources, a chunk of items at a time."""
    rng = np.random.default_rng(items)
    for start in range(0, items, CHUNK):
        ids = ids_of(start, min(start + CHUNK, items))
        yield (
            ids,
            {source: rng.standard_normal((len(ids), serving.SOURCE_DIM), np.float32) for source in serving.SOURCES},
        )


def passed(items: int, folder: Path, *, rest_seconds: float) -> Passed:
    """Takes a catalogue of this size all the way, and then waits before it looks at the memory that is left."""
    found = Passed(items)
    with serving.server(folder) as (address, process), dmesr.connect(address) as client:
        with found.step("import", process):
            summary = client.items.upsert(
                dmesr.Item(item_id, {"title": f"Item {item_id}", "year": 1950 + row % 75})
                for row, item_id in enumerate(ids_of(0, items))
            )
        assert summary.inserted == items, summary
        with found.step("write", process):
            written = client.embeddings.write_batches(vectors_of(items), recipe="random", create_recipe=True)
        assert written.inserted == items, written
        # In a process of its own, and not counted.
        subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.serving", "--train", address, "default", folder],
            check=True,
            cwd=serving.ROOT,
        )
        with found.step("publish", process):  # until all items are adapted
            model = client.models.publish(folder / "artefact", name="dmesr", timeout=3_600)
        with found.step("promote", process):
            client.models.promote(model.ref)
        rng = np.random.default_rng(0)

        def ask() -> None:
            history = [f"i{row:07d}" for row in rng.choice(items, serving.HISTORY, replace=False)]
            answer = client.recommend(history=history, k=serving.K)
            assert len(answer) == serving.K, answer

        with found.step("first-answer", process):
            ask()
        with found.step("recommend", process):
            took = [_timed(ask) for _ in range(CALLS)]
        found.seconds["recommend"] = float(np.median(took))
        time.sleep(rest_seconds)
        found.rest_bytes = process.memory_info().rss
        found.matrix_bytes = 4 * items * _width(client)
    return found


def _width(client: dmesr.Client) -> int:
    read = client.embeddings.read(model="production", item_ids=ids_of(0, 1))
    return int(read.matrix("vector").shape[1])


def _timed(act: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def rows_of(all_passed: Sequence[Passed]) -> list[Row]:
    """The figures: each step at each size, beside what the smallest size would make of it."""
    smallest, largest = all_passed[0], all_passed[-1]
    found = []
    for one in all_passed:
        part = f"growth-{one.items}"
        grown = one.items / smallest.items
        for step in STEPS:
            constant = step in ("promote", "first-answer")
            peer = None if one is smallest else smallest.seconds[step] * (1 if constant else grown)
            told = "seconds at the smallest size" + ("" if constant else f" × {grown:g}, as the items grew")
            how = f"{one.items:,} items, one run; peer: {told}; API at most {one.peak_bytes[step] / 1e6:,.0f} MB in it"
            if step == "recommend":
                how += f"; median of {CALLS} calls, history {serving.HISTORY}, k {serving.K}"
            found.append(Row(f"{part}/{step}", one.seconds[step], "s", how, peer=peer, better="lower"))
        peak = max(one.peak_bytes.values())
        how = (
            f"resident memory of the API a while after the last answer, mapped files included; peer: item matrix; at "
            f"most {peak / 1e6:,.0f} MB on the way"
        )
        matrix = one.matrix_bytes / 1e6
        target = 2.0 if one is largest and one.items >= 1_000_000 else None  # below, the program itself outweighs it
        found.append(Row(f"{part}/memory", one.rest_bytes / 1e6, "MB", how, matrix, target, "lower"))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 where a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--items", type=int, action="append", help="a size; 10,000, 100,000 and 1,000,000 by default")
    parser.add_argument("--rest", type=float, default=25.0, help="seconds after the last answer, before memory is read")
    parser.add_argument("--output", type=Path, default=serving.ROOT / "benchmarks" / "results" / "growth.json")
    given = parser.parse_args(arguments)
    on = machine("lancedb", "pyarrow", "grpcio", "onnxruntime", "numpy")
    all_passed = []
    for items in sorted(given.items or (10_000, 100_000, 1_000_000)):
        with tempfile.TemporaryDirectory() as name:
            all_passed.append(passed(items, Path(name), rest_seconds=given.rest))
    measured = [Row(**{**vars(row), "how": f"{row.how}; {on}"}) for row in rows_of(all_passed)]
    figures.merge(given.output, measured)
    print(figures.table(measured))
    print(f"\nwritten to {os.fspath(given.output)}; how each figure was got stands there")
    return int(any(row.met is False for row in measured))


if __name__ == "__main__":
    sys.exit(main())
