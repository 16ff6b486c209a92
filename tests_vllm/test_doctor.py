"""`dmesr-cli doctor --mllm` as a person runs it, with the engine that starts sooner."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_model import PIXELS


@pytest.fixture
def configuration(tiny: Path, tmp_path: Path) -> Path:
    file = tmp_path / "dmesr.toml"
    file.write_text(
        f"""
[enrichment]
describer = "transformers"

[enrichment.mllm]
model = "{tiny}"
max_pixels = {PIXELS}
max_tokens = 24
temperature = 1.0
attempts = 6
max_rounds = 1
"""
    )
    return file


def doctor(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dmesr.cli", "doctor", "--mllm", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def test_doctor_describes_by_every_route_and_tells_speed_and_memory(configuration: Path) -> None:
    answer = doctor("--config", configuration, "--json")
    assert answer.returncode == 0, answer.stderr
    report = json.loads(answer.stdout)
    assert report["model"].startswith("tiny-qwen2.5-vl@")
    assert report["engine"].startswith("transformers ")
    assert [route["route"] for route in report["routes"]] == ["text", "image", "hybrid", "reflect"]
    for route in report["routes"]:
        assert route["text"]
        assert not route["problem"]
        assert route["tokens_in"] > route["tokens_out"] > 0
        assert route["seconds"] > 0
    assert report["burst"]["tokens_per_second"] > 0
    assert report["burst"]["failed"] == 0
    assert report["memory_mib"] > 100
    assert "loading tiny-qwen2.5-vl@" in answer.stderr


def test_doctor_tells_what_is_wrong_in_one_line(configuration: Path, tmp_path: Path) -> None:
    configuration.write_text(configuration.read_text().replace("/tiny-qwen2.5-vl", "/nothing-here"))
    answer = doctor("--config", configuration)
    assert answer.returncode == 1
    assert "no such folder" in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1
    answer = doctor("--config", configuration, "--describer", "palette")
    assert answer.returncode == 1
    assert "asks no multimodal LLM" in answer.stderr
