"""The smoke test of a multimodal LLM on this machine: `dmesr-cli doctor --mllm`.

Loads the configured model, describes a picture that is drawn here by every route, then several at once, and tells what
came out, how fast, and what memory it took.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dmesr_server.config import Config, ConfigError, EnrichmentConfig, load
from dmesr_server.enrichment import describers
from dmesr_server.enrichment.describers import (
    Describer,
    DescribeRequest,
    DescriptionFailure,
    DescriptionResult,
    auto,
    specimen,
)
from dmesr_server.errors import ServiceError

_BURST = 16  # specimens that are described at once
_SMI = ["nvidia-smi", "--query-gpu=name,memory.used,memory.total", "--format=csv,noheader,nounits"]


@dataclass(frozen=True)
class RouteReport:
    """What a route gave for the specimen.

    Attributes:
        route: Its name.
        text: The description; empty where it failed.
        problem: Why it failed; empty where it did not.
        seconds: From the question to the text.
        tokens_in: Tokens read, pictures included.
        tokens_out: Tokens written.
        tokens_cached: Those read that the prefix cache saved.
        rounds: Of refinement.
        stop_reason: Why it ended.
    """

    route: str
    text: str
    problem: str
    seconds: float
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cached: int = 0
    rounds: int = 0
    stop_reason: str = ""


@dataclass(frozen=True)
class BurstReport:
    """What several items at once gave: the speed that a catalogue will see.

    Attributes:
        items: Described by all routes at once.
        failed: Descriptions that failed.
        seconds: For all of them.
        tokens_out: Tokens written.
        tokens_per_second: Tokens written in a second.
        items_per_hour: Items described by all routes in an hour.
    """

    items: int
    failed: int
    seconds: float
    tokens_out: int
    tokens_per_second: float
    items_per_hour: float


@dataclass(frozen=True)
class GpuMemory:
    """A GPU's memory, whoever uses it, in MiB."""

    name: str
    used_mib: int
    total_mib: int


@dataclass(frozen=True)
class MllmReport:
    """The whole smoke test.

    Attributes:
        describer: Its name.
        chosen: Why, where "auto" chose it.
        model: The model and its revision.
        engine: What ran it.
        start_seconds: Until the model was loaded and had said something.
        routes: By route.
        burst: Several at once.
        memory_mib: Resident memory of this process and those that it started; 0 where it cannot be told.
        gpus: Memory of the GPUs while the model was loaded.
    """

    describer: str
    chosen: str
    model: str
    engine: str
    start_seconds: float
    routes: tuple[RouteReport, ...]
    burst: BurstReport
    memory_mib: int
    gpus: tuple[GpuMemory, ...]

    @property
    def passed(self) -> bool:
        """Whether every route gave a text."""
        return not self.burst.failed and all(route.text for route in self.routes)


class CannotExamineError(Exception):
    """The smoke test could not be run. The message says why, and what to do."""


def examine_configured(
    *, file: Path | None, describer: str = "", say: Callable[[str], None] = lambda _: None
) -> MllmReport:
    """Runs the smoke test of what a configuration file and the environment say.

    Args:
        file: The server's TOML file, or None.
        describer: As for :func:`examine`.
        say: As for :func:`examine`.

    Raises:
        CannotExamineError: The configuration or the model cannot be used.
    """
    try:
        return examine(load(file=file), describer=describer, say=say)
    except (ConfigError, ServiceError) as error:
        raise CannotExamineError(str(error)) from error


def examine(config: Config, *, describer: str = "", say: Callable[[str], None] = lambda _: None) -> MllmReport:
    """Runs the smoke test. Blocks for as long as the model takes to load.

    Args:
        config: Which model, and how.
        describer: One that asks a model; the configured one when empty.
        say: Told what is being done.

    Raises:
        ServiceError: DESCRIBER_UNAVAILABLE: the model cannot be used, or the describer asks none.
    """
    return asyncio.run(_examine(config.enrichment, describer or config.enrichment.describer, say))


def lines(report: MllmReport) -> Iterator[str]:
    """The report for people, a line at a time."""
    yield f"describer  {report.describer}{f' ({report.chosen})' if report.chosen else ''}"
    yield f"model      {report.model}"
    yield f"engine     {report.engine}, ready after {report.start_seconds:.0f} s"
    for route in report.routes:
        yield ""
        if route.problem:
            yield f"{route.route}: FAILED: {route.problem}"
            continue
        refined = f", {route.rounds} round(s) of refinement, {route.stop_reason}" if route.rounds else ""
        yield (
            f"{route.route}: {route.seconds:.1f} s, {route.tokens_in} tokens read "
            f"({route.tokens_cached} from the cache), {route.tokens_out} written{refined}"
        )
        yield f"  {route.text}"
    burst = report.burst
    yield ""
    yield (
        f"at once    {burst.items} items by all routes in {burst.seconds:.1f} s: "
        f"{burst.tokens_per_second:,.0f} tokens/s written, {burst.items_per_hour:,.0f} items/hour"
        + (f", {burst.failed} failed" if burst.failed else "")
    )
    if report.memory_mib:
        yield f"memory     {report.memory_mib:,} MiB"
    for gpu in report.gpus:
        yield f"GPU        {gpu.name}: {gpu.used_mib:,} of {gpu.total_mib:,} MiB used"


async def _examine(config: EnrichmentConfig, name: str, say: Callable[[str], None]) -> MllmReport:
    chosen = ""
    if name == auto.NAME:
        choice = auto.choose()
        name, chosen = choice.describer, choice.why
    made = await asyncio.to_thread(describers.create, name, config)
    if not made.is_mllm or not made.generates:
        raise ServiceError(
            "DESCRIBER_UNAVAILABLE",
            f"the describer {name} asks no multimodal LLM{f' ({chosen})' if chosen else ''}; "
            "name vllm, transformers or openai (enrichment.describer)",
            describer=name,
        )
    say(f"loading {made.model} ({made.engine})")
    began = time.perf_counter()
    try:
        await made.start()
        start_seconds = time.perf_counter() - began
        routes = []
        for route in made.routes:
            say(f"describing by the route {route}")
            routes.append(await _route(made, config, route))
        say(f"describing {_BURST} items at once")
        burst = await _burst(made, config)
        gpus = await asyncio.to_thread(_gpus)
        memory_mib = _memory_mib()
    finally:
        await made.stop()
    return MllmReport(
        describer=made.name,
        chosen=chosen,
        model=made.model,
        engine=made.engine,
        start_seconds=start_seconds,
        routes=tuple(routes),
        burst=burst,
        memory_mib=memory_mib,
        gpus=gpus,
    )


async def _route(made: Describer, config: EnrichmentConfig, route: str) -> RouteReport:
    began = time.perf_counter()
    (answer,) = await made.describe([_request(config, route)])
    seconds = time.perf_counter() - began
    if isinstance(answer, DescriptionFailure):
        return RouteReport(route, "", f"{answer.reason}: {answer.message}", seconds)
    return RouteReport(
        route,
        answer.text,
        "",
        seconds,
        tokens_in=answer.tokens_in,
        tokens_out=answer.tokens_out,
        tokens_cached=answer.tokens_cached,
        rounds=answer.rounds,
        stop_reason=answer.stop_reason,
    )


async def _burst(made: Describer, config: EnrichmentConfig) -> BurstReport:
    """Specimens whose pictures and titles differ, so that no cache knows them."""
    began = time.perf_counter()
    calls = asyncio.Semaphore(made.window.calls)
    step = made.window.items_per_call

    async def one_call(numbers: Sequence[int]) -> list[DescriptionResult | DescriptionFailure]:
        async with calls:
            return await made.describe([_request(config, route, number) for number in numbers for route in made.routes])

    numbers = list(range(1, _BURST + 1))
    parts = [numbers[start : start + step] for start in range(0, len(numbers), step)]
    answers = [answer for part in await asyncio.gather(*map(one_call, parts)) for answer in part]
    written = [answer for answer in answers if isinstance(answer, DescriptionResult)]
    seconds = time.perf_counter() - began
    tokens_out = sum(answer.tokens_out for answer in written)
    return BurstReport(
        items=_BURST,
        failed=len(answers) - len(written),
        seconds=seconds,
        tokens_out=tokens_out,
        tokens_per_second=tokens_out / seconds,
        items_per_hour=_BURST / seconds * 3600,
    )


def _request(config: EnrichmentConfig, route: str, number: int = 0) -> DescribeRequest:
    request = specimen.request(route, pixels=config.mllm.max_pixels)
    if not number:
        return request
    picture = request.picture
    if picture is not None:
        picture = picture.copy()
        picture.paste((16 * number % 256, 40, 80), (0, 0, picture.width, max(1, picture.height // 40)))
    attributes = tuple(
        (name, tuple(f"{value} {number}" for value in values) if name == "title" else values)
        for name, values in request.attributes
    )
    return replace(request, item_id=f"specimen-{number}", picture=picture, attributes=attributes)


def _gpus() -> tuple[GpuMemory, ...]:
    if shutil.which(_SMI[0]) is None:
        return ()
    try:
        told = subprocess.run(_SMI, capture_output=True, text=True, timeout=20, check=True).stdout
        rows = [[part.strip() for part in line.rsplit(",", 2)] for line in told.splitlines() if line.strip()]
        return tuple(GpuMemory(name, int(used), int(total)) for name, used, total in rows)
    except (OSError, subprocess.SubprocessError, ValueError):
        return ()


def _memory_mib() -> int:
    """Resident memory of this process and its descendants, where /proc tells it."""
    parents: dict[int, int] = {}
    pages: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            pages[int(folder.name)] = int((folder / "statm").read_text().split()[1])
            parents[int(folder.name)] = int(status[1])
        except (OSError, IndexError, ValueError):  # it has just ended
            continue
    mine = {os.getpid()}
    while more := {process for process, parent in parents.items() if parent in mine} - mine:
        mine |= more
    page_bytes = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    return sum(pages.get(process, 0) for process in mine) * page_bytes // 2**20
