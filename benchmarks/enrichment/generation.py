"""Generated tokens/s of whole jobs beside the bare engine, on the same calls in the same run."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dmesr_server.enrichment.engines.vllm import VllmEngine

from benchmarks.rows import Row

from . import bare
from .bare import Clock, Took
from .catalogue import Listing
from .engine import Model, describer
from .null import NullEncoder
from .shop import Ran, Shop

TARGET = 0.8
_IN_FLIGHT = 128  # of the bare engine's second way; a job has as many: 64 items, text beside picture routes


@dataclass(frozen=True)
class Job:
    """A job that was measured."""

    took: Took
    ran: Ran
    calls: tuple[bare.Call, ...]


@dataclass(frozen=True)
class Bench:
    """What is measured on."""

    model: Model
    listings: Sequence[Listing]
    shop: Shop
    repeats: int

    @property
    def about(self) -> str:
        """For `Row.how`."""
        what = "a tiny random Qwen2.5-VL, float32" if self.model.is_tiny else self.model.name
        return (
            f"{len(self.listings)} items with pictures, {what}, at most {self.model.config().mllm.max_tokens} tokens "
            f"an answer; {self.repeats} interleaved repeats, cold caches, medians"
        )

    def with_listings(self, listings: Sequence[Listing]) -> Bench:
        return replace(self, listings=listings)

    async def job(
        self, engine: VllmEngine, *, routes: tuple[str, ...] = ("text", "image", "hybrid"), **flags: Any
    ) -> Job:
        """A whole job with cold caches: what the engine wrote, over the job's time."""
        made, recorded = await describer(engine, self.model, **flags)
        await bare.forget(engine)
        clock = Clock()
        ran = await self.shop.run(self.listings, describer=made, encoder=NullEncoder(), routes=routes)
        _, cpu_seconds = clock.read()
        took = bare.took(recorded.calls, seconds=ran.seconds, cpu_seconds=cpu_seconds)
        return Job(took, ran, tuple(recorded.calls))


async def against_bare(bench: Bench, engine: VllmEngine) -> list[Row]:
    """Our pipeline and the bare engine by turns; the bare one in two ways, of which the faster counts."""
    calls = (await bench.job(engine, mllm__hybrid_mode="single")).calls  # warm, and what the bare engine is asked
    runs: dict[str, list[Took]] = {"ours": [], "all at once": [], f"{_IN_FLIGHT} in flight": []}
    ways = list(runs)
    for number in range(bench.repeats):
        for way in ways[number % 3 :] + ways[: number % 3]:
            if way == "ours":
                took = (await bench.job(engine, mllm__hybrid_mode="single")).took
            else:
                await bare.forget(engine)
                took = await bare.asked_bare(engine, calls, in_flight=0 if way == "all at once" else _IN_FLIGHT)
            runs[way].append(took)
        say(", ".join(f"{way} {took[-1].tokens_per_second:,.0f} tokens/s" for way, took in runs.items()))

    def median(way: str, of: Callable[[Took], float]) -> float:
        return statistics.median(of(took) for took in runs[way])

    peer = max(ways[1:], key=lambda way: median(way, lambda took: took.tokens_per_second))
    one = runs["ours"][0]
    ratios = sorted(
        ours.tokens_per_second / theirs.tokens_per_second for ours, theirs in zip(runs["ours"], runs[peer], strict=True)
    )
    how = (
        f"whole jobs (claim, store, pictures decoded, prompts, guard, provenance, a null encoder's vectors) against "
        f"AsyncLLM on the same {len(calls)} calls with the same sampling, {peer}, pictures decoded before; routes "
        f"text, image, hybrid (single); {one.tokens_out:,} tokens written in {one.seconds:.1f} s, "
        f"{len(calls) / (3 * len(bench.listings)) - 1:.0%} of the calls were later attempts; ratios of the repeats "
        f"{ratios[0]:.2f} to {ratios[-1]:.2f}; {bench.about}"
    )
    return [
        Row(
            name="generation/tokens_per_second",
            value=median("ours", lambda took: took.tokens_per_second),
            peer=median(peer, lambda took: took.tokens_per_second),
            unit="tokens/s",
            target=TARGET,
            how=how,
        ),
        Row(
            name="generation/cpu_per_1000_tokens",
            value=median("ours", lambda took: took.cpu_per_1000_tokens),
            peer=median(peer, lambda took: took.cpu_per_1000_tokens),
            unit="CPU seconds, engine included",
            better="lower",
            how=f"the same runs; {how}",
        ),
    ]


def say(line: str) -> None:
    """For whoever waits."""
    print(line, file=sys.stderr, flush=True)
