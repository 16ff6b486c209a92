"""Describer and encoder are loaded side by side at the start of a job: in a process that has imported nothing yet."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_model
from conftest import Configured

_SIDE_BY_SIDE = """
import asyncio, json, sys
from dmesr_server.config import EnrichmentConfig
from dmesr_server.enrichment import describers, encoders

config = EnrichmentConfig(**json.loads(sys.argv[1]))
describer, encoder = describers.create(config.describer, config), encoders.create(config.encoder)

async def main():
    starts = [asyncio.create_task(part.start()) for part in (describer, encoder)]
    try:
        await asyncio.gather(*starts)
    finally:
        await describer.stop()
        await encoder.stop()

if __name__ == "__main__":
    asyncio.run(main())
    print("both")
"""


@pytest.mark.parametrize("name", ["transformers", "vllm"])
def test_describer_and_encoder_load_at_the_same_time(name: str, configured: Configured, tmp_path: Path) -> None:
    encoder = {"model": str(tiny_model.build_encoder(tmp_path / "encoder"))}
    config = configured({"describer": name, "encoder": encoder}).model_dump(mode="json")
    script = tmp_path / "side_by_side.py"  # vLLM's processes import it again
    script.write_text(_SIDE_BY_SIDE)
    command = [sys.executable, str(script), json.dumps(config)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ended.stdout.strip().endswith("both")
