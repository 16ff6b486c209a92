"""What vLLM's prefix cache, rounds of refinement and the size of pictures do to a job. Reported, no targets."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from typing import Any

from dmesr_server.enrichment.engines.vllm import VllmEngine

from benchmarks.rows import Row

from . import catalogue
from .engine import running
from .generation import Bench, Job, say

PICTURE_TOKENS = (128, 512, 1280)  # of Qwen2.5-VL: squares of 28 pixels
_STORED_PIXELS = 1400 * 28 * 28
_MODES: dict[str, dict[str, Any]] = {
    "single": {"mllm__hybrid_mode": "single"},
    "rounds_1": {"mllm__hybrid_mode": "rounds", "mllm__max_rounds": 1},
    "rounds_2": {"mllm__hybrid_mode": "rounds", "mllm__max_rounds": 2},
    "rounds_3": {"mllm__hybrid_mode": "rounds", "mllm__max_rounds": 3},
}


async def caching(bench: Bench, engine: VllmEngine) -> list[Row]:
    """The same jobs with and without the prefix cache, in both hybrid modes, on two engines by turns."""
    jobs: dict[tuple[str, bool], list[Job]] = {(mode, cached): [] for mode in _two() for cached in (True, False)}
    async with running(bench.model, vllm__enable_prefix_caching=False) as without:
        for cached in (True, False):
            await bench.job(engine if cached else without, **_two()["single"])  # warm
        for _ in range(bench.repeats):
            for (mode, cached), done in jobs.items():
                done.append(await bench.job(engine if cached else without, **_two()[mode]))
    rows = []
    for mode in _two():
        on, off = jobs[mode, True], jobs[mode, False]
        how = f"whole jobs, routes text, image, hybrid ({mode}), with prefix caching; {{peer}}; {bench.about}"
        rows += [
            Row(
                name=f"caching/{mode}_tokens_per_second",
                value=_median(on, lambda job: job.took.tokens_per_second),
                peer=_median(off, lambda job: job.took.tokens_per_second),
                unit="tokens/s",
                how=how.format(peer="the peer is the same without it"),
            ),
            Row(
                name=f"caching/{mode}_cached_share",
                value=_median(on, lambda job: job.took.cached_share),
                unit="of the tokens read",
                how=how.format(peer="the engine's own count"),
            ),
        ]
        say(f"{mode}: {rows[-2].value:,.0f} tokens/s, without the cache {rows[-2].peer:,.0f}")
    return rows


async def rounds(bench: Bench, engine: VllmEngine) -> list[Row]:
    """The hybrid route as the paper's one prompt, and refined in up to 1, 2 and 3 rounds."""
    jobs: dict[str, list[Job]] = {mode: [] for mode in _MODES}
    await bench.job(engine, **_MODES["single"])  # warm
    for _ in range(bench.repeats):
        for mode, done in jobs.items():
            done.append(await bench.job(engine, routes=("image", "hybrid"), **_MODES[mode]))
    rows = []
    for mode, done in jobs.items():
        rows += _rounds_rows(bench, mode, done)
        said = {row.name.removeprefix(f"rounds/{mode}_"): round(row.value, 2) for row in rows if mode in row.name}
        say(f"{mode}: {said}")
    return rows


def _rounds_rows(bench: Bench, mode: str, jobs: list[Job]) -> list[Row]:
    written = [row for row in jobs[-1].ran.rows() if row.route == "hybrid"]
    told = [row.provenance for row in written if row.text is not None]
    how = (
        f"mean of {len(told)} hybrid descriptions ({len(written) - len(told)} failed), the image route before it as "
        f"in every job; {bench.about}"
    )

    def mean(figure: str) -> float:
        return float(statistics.mean(each[figure] for each in told))

    figures: dict[str, tuple[str, float]] = {
        "tokens_in": ("tokens", mean("tokens_in")),
        "tokens_cached": ("tokens", mean("tokens_cached")),
        "tokens_out": ("tokens", mean("tokens_out")),
        "rounds": ("rounds", mean("rounds")),
        "seconds_per_item": ("s, image and hybrid", _median(jobs, lambda job: job.ran.seconds) / len(bench.listings)),
    }
    refined = [json.loads(each["sampling"])["refinement"] for each in told if mode != "single"]
    if refined:
        figures["draft_words"] = ("content words", statistics.mean(each["draft_words"] for each in refined))
        for number in range(max(len(each["new_words"]) for each in refined)):
            new = [each["new_words"][number] for each in refined if len(each["new_words"]) > number]
            figures[f"new_words_{number + 1}"] = (f"content words, of {len(new)} texts", statistics.mean(new))
    noise = " (the words of random weights are noise)" if bench.model.is_tiny else ""
    costs = ("tokens_in", "tokens_out", "seconds_per_item")
    return [
        Row(
            name=f"rounds/{mode}_{figure}",
            value=value,
            unit=unit,
            how=how + (noise if "words" in figure else ""),
            better="lower" if figure in costs else "higher",
        )
        for figure, (unit, value) in figures.items()
    ]


async def pictures(bench: Bench, engine: VllmEngine) -> list[Row]:
    """The image route by the size of pictures, all of them shrunk from the same large ones."""
    large = bench.with_listings([catalogue.enlarged(each, pixels=_STORED_PIXELS) for each in bench.listings])
    jobs: dict[int, list[Job]] = {tokens: [] for tokens in PICTURE_TOKENS}
    await large.job(engine, routes=("image",))  # warm
    for _ in range(bench.repeats):
        for tokens, done in jobs.items():
            done.append(await large.job(engine, routes=("image",), mllm__max_pixels=tokens * 28 * 28))
    rows = []
    for tokens, done in jobs.items():
        took = done[-1].took
        how = (
            f"image route, max_pixels = {tokens} × 28 × 28, JPEG of {_STORED_PIXELS / 1e6:.1f} megapixels stored, "
            f"{took.tokens_in / took.calls:.0f} tokens read and {took.tokens_out / took.calls:.0f} written a call; "
            f"{bench.about}"
        )
        items_per_second = _median(done, lambda job: len(large.listings) / job.ran.seconds)
        rows += [
            Row(name=f"pictures/{tokens}_tokens_items_per_second", value=items_per_second, unit="items/s", how=how),
            Row(
                name=f"pictures/{tokens}_tokens_tokens_per_second",
                value=_median(done, lambda job: job.took.tokens_per_second),
                unit="tokens/s",
                how=how,
            ),
        ]
        say(f"pictures of {tokens} tokens: {items_per_second:.2f} items/s")
    return rows


def _two() -> dict[str, dict[str, Any]]:
    return {"single": _MODES["single"], "rounds": _MODES["rounds_2"]}


def _median(jobs: list[Job], of: Callable[[Job], float]) -> float:
    return statistics.median(of(job) for job in jobs)
