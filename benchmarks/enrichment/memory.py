"""Peak memory of an enricher's process by the size of the catalogue, with a describer that takes none. No vLLM."""

from __future__ import annotations

import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from dmesr_server.config import Config, load
from dmesr_server.control import Control, JobState
from dmesr_server.enrichment import jobs
from dmesr_server.enrichment.specs import JobSpec
from dmesr_server.store import Store

from benchmarks.rows import Row

from . import catalogue, null_enricher
from .catalogue import Listing

FEW, MANY = 1_000, 10_000
TARGET_MB = 50.0
_PICTURES = 200  # different ones
_PATIENCE_SECONDS = 1_800


def measure(listings: Sequence[Listing], *, domain: str, repeats: int) -> list[Row]:
    """The peaks of jobs over few and many items, each in an enricher of its own."""
    null_enricher.register()
    pictures = [listing.picture for listing in listings if listing.picture is not None][:_PICTURES]
    peaks: dict[int, list[float]] = {FEW: [], MANY: []}
    seconds: dict[int, list[float]] = {FEW: [], MANY: []}
    for _ in range(repeats):
        for count, measured in peaks.items():
            with tempfile.TemporaryDirectory() as folder:
                peak, took = _peak(Path(folder), _items(count, pictures), count=count)
            measured.append(peak)
            seconds[count].append(took)
            print(f"{count:,} items: peak {peak:,.0f} MB, {took:.0f} s", file=sys.stderr, flush=True)
    few, many = (statistics.median(peaks[count]) for count in (FEW, MANY))
    how = (
        f"peak resident memory (VmHWM, 1 MB = 10⁶ bytes) of the enricher's own process in one job, three routes "
        f"with a null describer, {len(pictures)} different pictures decoded again and again, "
        f"bundled:all-MiniLM-L6-v2; {repeats} runs each, medians"
    )
    return [
        Row(
            name="memory/growth",
            value=many - few,
            unit="MB",
            target=TARGET_MB,
            better="lower",
            how=f"peak at {MANY:,} items less that at {FEW:,} (target: of the difference); {how}",
        ),
        Row(
            name="memory/peak",
            value=many,
            peer=few,
            unit="MB",
            better="lower",
            how=f"peak at {MANY:,} items; the peer is the peak at {FEW:,}; {how}",
        ),
        Row(
            name="memory/null_job_items_per_second",
            value=MANY / statistics.median(seconds[MANY]),
            unit="items/s",
            how=f"the same jobs at {MANY:,} items, 4 texts each encoded; {how}",
        ),
    ]


def _items(count: int, pictures: Sequence[bytes]) -> Iterator[Listing]:
    for number in range(count):
        attributes = (("title", (f"Number {number}",)), ("genres", ("Drama", "Crime")))
        yield Listing(f"item-{number:06}", attributes, pictures[number % len(pictures)] if pictures else None)


def _peak(folder: Path, items: Iterator[Listing], *, count: int) -> tuple[float, float]:
    """Runs one job over items in an enricher of its own: its peak in MB, and the seconds of the job."""
    config: Config = load(flags={"store.uri": str(folder / "store"), "enrichment.describer": null_enricher.NAME})
    store, control = Store(uri=config.store.uri), Control(config.store.resolved_control_url)
    try:
        control.migrate()
        control.catalogs.ensure_default()
        catalogue.store(items, store.catalog("default"))
        job = jobs.start_job(
            control=control, store=store, config=config, catalog="default", spec=JobSpec(), request_id=None
        )
        settings = json.dumps({"store": {"uri": config.store.uri}, "enrichment": {"describer": null_enricher.NAME}})
        log = folder / "enricher.log"
        with log.open("wb") as output:
            command = [sys.executable, "-m", "benchmarks.enrichment.null_enricher", "--config-json", settings]
            enricher = subprocess.Popen(command, stdout=output, stderr=output)
        began = time.monotonic()
        while not (found := control.jobs.get(job.job_id)).state.ended:
            if time.monotonic() > began + _PATIENCE_SECONDS or enricher.poll() is not None:
                enricher.kill()
                raise RuntimeError(f"the job over {count} items did not end:\n{log.read_text()[-2000:]}")
            time.sleep(0.2)
        peak = _peak_bytes(enricher.pid)
        enricher.send_signal(signal.SIGTERM)
        enricher.wait()
        if found.state is not JobState.SUCCEEDED:
            raise RuntimeError(f"the job over {count} items ended as {found.state}: {found.problem}")
        return peak / 1e6, found.progress["rates"]["seconds"]
    finally:
        control.close()
        store.close()


def _peak_bytes(pid: int) -> int:
    """The most that a process has held in memory. (`ru_maxrss` would tell its parent's where that is larger.)"""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"the process {pid} has ended, or this system does not tell its peak")
