"""`python -m benchmarks.housekeeping`: a day of small writes, scaled down, and what it leaves on the disk.

A day's clock runs faster by a factor: versions are kept, and tables looked at, that many times shorter than by default.
Then one client writes as quickly as the server answers: an item, and its vector, each a call of its own.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import dmesr
import numpy as np

from benchmarks import rows as figures
from benchmarks.rows import Row, machine

ROOT = Path(__file__).parents[1]
DAY_SECONDS = 86_400.0
KEEP_SECONDS = 1_800.0  # the server's default
LOOK_SECONDS = 20.0  # the server's default
ITEMS = 2_000  # before the day; it changes some of them and adds others
DIM = 384
UNTIDIED_WRITES = 200  # from which files for each write are told where nobody tidies; the server itself would at 500


@dataclass
class Day:
    """What was seen.

    Attributes:
        writes: Calls that wrote.
        files: Of all tables, one figure for each look.
        bytes: The same.
        seconds: Of each call.
    """

    writes: int
    files: list[int]
    bytes: list[int]
    seconds: list[float]


@contextmanager
def server(folder: Path, **settings: float) -> Iterator[str]:
    """A server as a user starts it, without an enricher."""
    ready = folder / "ready"
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "dmesr_server", "serve", "--store", str(folder / "store"), "--port", "0"]
    environment = os.environ | {f"DMESR_STORE__{name.upper()}": str(value) for name, value in settings.items()}
    with (folder / "server.log").open("wb") as log:
        started = subprocess.Popen(
            [*command, "--no-enricher", "--ready-file", str(ready)],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env=environment,
        )
    try:
        while not ready.exists():
            if started.poll() is not None:
                raise SystemExit((folder / "server.log").read_text())
            time.sleep(0.05)
        yield ready.read_text()
    finally:
        started.send_signal(signal.SIGTERM)
        started.wait(60)


def live(address: str, *, seconds: float, writes: int | None = None) -> Day:
    """Writes for so long, or so often; looks at the tables now and then."""
    rng = np.random.default_rng(7)
    day = Day(0, [], [], [])
    with dmesr.connect(address) as client:
        ids = [f"i{number:06d}" for number in range(ITEMS)]
        client.items.upsert(dmesr.Item(item_id, {"title": f"Item {item_id}"}) for item_id in ids)
        vectors = rng.standard_normal((ITEMS, DIM), np.float32)
        client.embeddings.write(recipe="ours", source="clip", item_ids=ids, vectors=vectors, create_recipe=True)
        end, look = time.monotonic() + seconds, 0.0
        while time.monotonic() < end and (writes is None or day.writes < writes):
            number = int(rng.integers(ITEMS + day.writes // 4))
            item_id = f"i{number:06d}"
            started = time.perf_counter()
            client.items.upsert([dmesr.Item(item_id, {"title": f"Item {item_id}, write {day.writes}"})])
            between = time.perf_counter()
            vector = rng.standard_normal((1, DIM), np.float32)
            client.embeddings.write(recipe="ours", source="clip", item_ids=[item_id], vectors=vector)
            day.seconds += [between - started, time.perf_counter() - between]
            day.writes += 2
            if time.monotonic() >= look:
                _look(client, day)
                look = time.monotonic() + 1.0
        _look(client, day)
    return day


def _look(client: dmesr.Client, day: Day) -> None:
    tables = client.admin.store_stats().tables
    day.files.append(sum(one.files for one in tables))
    day.bytes.append(sum(one.bytes for one in tables))


def measure(folder: Path, *, seconds: float) -> list[Row]:
    """A day with house-keeping, and the beginning of one without."""
    how = machine("lancedb", "dmesr")
    factor = DAY_SECONDS / seconds
    with server(
        folder / "tidied",
        keep_versions_seconds=max(1.0, KEEP_SECONDS / factor),
        housekeeping_seconds=LOOK_SECONDS / factor,
    ) as address:
        day = live(address, seconds=seconds)
        with dmesr.connect(address) as client:
            time.sleep(3 * max(1.0, KEEP_SECONDS / factor))
            quiet = Day(0, [], [], [])
            _look(client, quiet)
    with server(folder / "untidied", housekeeping_seconds=DAY_SECONDS) as address:
        wild = live(address, seconds=seconds, writes=UNTIDIED_WRITES)
    grown = (wild.files[-1] - wild.files[0]) / wild.writes
    said = (
        f"{day.writes} writes of one row in {seconds:.0f} s that stand for a day: a write each "
        f"{DAY_SECONDS / day.writes:.0f} s; versions kept {KEEP_SECONDS / factor:.1f} s for 30 min, tables looked at "
        f"each {LOOK_SECONDS / factor:.2f} s for 20 s. {ITEMS} items with {DIM} numbers before. {how}"
    )
    half = len(day.files) // 2
    return [
        Row(
            name="day/files at most",
            value=max(day.files),
            peer=grown * day.writes,
            unit="files",
            better="lower",
            target=0.25,
            how=f"{said}; the peer: files of a write, of {UNTIDIED_WRITES} without house-keeping, times the writes",
        ),
        Row(
            name="day/files at most, second half of the day",
            value=max(day.files[half:]),
            peer=max(day.files[:half]),
            unit="files",
            better="lower",
            target=1.5,
            how=f"{said}; the peer: the first half",
        ),
        Row(
            name="day/bytes at most, second half of the day",
            value=max(day.bytes[half:]) / 1e6,
            peer=max(day.bytes[:half]) / 1e6,
            unit="MB",
            better="lower",
            target=1.5,
            how=f"{said}; the peer: the first half. The catalogue itself grows by a quarter of the writes",
        ),
        Row(name="day/files, a while after", value=quiet.files[0], unit="files", better="lower", how=said),
        Row(name="day/bytes, a while after", value=quiet.bytes[0] / 1e6, unit="MB", better="lower", how=said),
        Row(
            name="day/a write, p50",
            value=statistics.median(day.seconds) * 1e3,
            peer=statistics.median(wild.seconds) * 1e3,
            unit="ms",
            better="lower",
            how=f"{said}; the peer: the {UNTIDIED_WRITES} writes without house-keeping",
        ),
        Row(
            name="day/a write, p99",
            value=statistics.quantiles(day.seconds, n=100)[98] * 1e3,
            peer=statistics.quantiles(wild.seconds, n=100)[98] * 1e3,
            unit="ms",
            better="lower",
            how=f"{said}; the peer: the {UNTIDIED_WRITES} writes without house-keeping",
        ),
    ]


def main() -> int:
    """Measures and writes; 1 when a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.housekeeping", description=__doc__)
    parser.add_argument("--seconds", type=float, default=180.0, help="that stand for a day")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "housekeeping.json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dmesr-bench-") as folder:
        rows = measure(Path(folder), seconds=given.seconds)
    figures.merge(given.output, rows)
    sys.stdout.write(figures.table(rows) + "\n")
    return int(any(row.met is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
