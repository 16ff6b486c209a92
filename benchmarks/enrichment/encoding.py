"""Texts encoded a second, ours beside the bare SentenceTransformer on sorted batches. Needs no vLLM.

The bare one runs in a process of its own: our encoder tells torch how many threads to use, which would slow it down.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from dmesr_server.config import EncoderConfig
from dmesr_server.enrichment import encoders
from dmesr_server.enrichment.encoders import model_files

from benchmarks.rows import Row

from .catalogue import Listing
from .null import NullDescriber
from .shop import Shop

TARGET = 0.95
_BATCHES = (16, 32, 64)  # of the bare one; the fastest counts
_TRIED = 256  # texts, to find it
_LOT = 8 * 64  # texts that the pipeline hands over at a time


@dataclass(frozen=True)
class _Run:
    seconds: float  # by the clock
    cpu_seconds: float


def measure(listings: Sequence[Listing], *, domain: str, repeats: int) -> list[Row]:
    """Our encoder, whole jobs, and the bare one by turns."""
    return asyncio.run(_measure(listings, domain=domain, repeats=repeats))


async def _measure(listings: Sequence[Listing], *, domain: str, repeats: int) -> list[Row]:
    texts = list(dict.fromkeys(listing.text for listing in listings))
    config = EncoderConfig()
    encoder = encoders.create(config)
    await encoder.start()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    bare = context.Process(target=_bare, args=(theirs, str(model_files.find(config.model).folder)), daemon=True)
    bare.start()
    tried = {batch: await _asked(ours, texts[:_TRIED], batch) for _ in range(2) for batch in _BATCHES}
    batch = min(tried, key=lambda each: tried[each].seconds)
    await encoder.encode(texts[:_TRIED])
    runs: dict[str, list[_Run]] = {"encoder": [], "job": [], "bare": []}
    ways = list(runs)
    with tempfile.TemporaryDirectory() as folder, Shop(Path(folder), domain=domain) as shop:
        for number in range(repeats):
            for way in ways[number % 3 :] + ways[: number % 3]:
                began, cpu_began = time.perf_counter(), time.process_time()
                if way == "bare":
                    runs[way].append(await _asked(ours, texts, batch))
                    continue
                if way == "encoder":
                    for start in range(0, len(texts), _LOT):
                        await encoder.encode(texts[start : start + _LOT])
                    seconds = time.perf_counter() - began
                else:
                    ran = await shop.run(listings, describer=NullDescriber(), encoder=encoder, routes=())
                    seconds = ran.seconds
                runs[way].append(_Run(seconds, time.process_time() - cpu_began))
            said = ", ".join(f"{way} {len(texts) / done[-1].seconds:.1f} texts/s" for way, done in runs.items())
            print(said, file=sys.stderr, flush=True)
    ours.send(None)
    bare.join()
    await encoder.stop()
    how = (
        f"{{what}} against SentenceTransformer.encode, all texts sorted by length, batch_size {batch} (the fastest of "
        f"{_BATCHES}), torch's own threads, a process of its own; {config.model}, {len(texts)} texts of "
        f"{statistics.mean(map(len, texts)):.0f} characters on average ({domain}s); {repeats} interleaved repeats, "
        "medians"
    )
    what = {
        "encoder": f"our encoder, {_LOT} texts at a time in the catalogue's order as jobs hand them over,",
        "job": "whole jobs that encode the original texts (claim, items read, vectors written, reported)",
    }
    speed = {way: statistics.median(len(texts) / run.seconds for run in done) for way, done in runs.items()}
    cpu = {way: statistics.median(run.cpu_seconds / len(texts) * 1e3 for run in done) for way, done in runs.items()}
    rows = []
    for way, said in what.items():
        rows += [
            Row(
                name=f"encoding/{way}_texts_per_second",
                value=speed[way],
                peer=speed["bare"],
                unit="texts/s",
                target=TARGET if way == "encoder" else None,
                how=how.format(what=said),
            ),
            Row(
                name=f"encoding/{way}_cpu_per_1000_texts",
                value=cpu[way],
                peer=cpu["bare"],
                unit="CPU seconds",
                better="lower",
                how=f"the same runs, storing the items included: {how.format(what=said)}",
            ),
        ]
    return rows


async def _asked(pipe: Connection, texts: Sequence[str], batch: int) -> _Run:
    pipe.send((list(texts), batch))
    return _Run(*await asyncio.to_thread(pipe.recv))


def _bare(pipe: Connection, folder: str) -> None:
    """The peer's process."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device="cpu", local_files_only=True)
    while (asked := pipe.recv()) is not None:
        texts, batch = asked
        ordered: list[str] = sorted(texts, key=len)
        began, cpu_began = time.perf_counter(), time.process_time()
        model.encode(ordered, batch_size=batch, normalize_embeddings=True, show_progress_bar=False)
        pipe.send((time.perf_counter() - began, time.process_time() - cpu_began))
