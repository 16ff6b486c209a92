"""The real vLLM on a CPU, with a tiny random Qwen2.5-VL. One engine serves most tests: a start takes half a minute."""

from __future__ import annotations

import os

# Before anything of vLLM, torch or huggingface_hub is imported.
os.environ.update(
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_NO_USAGE_STATS="1",
    TOKENIZERS_PARALLELISM="false",
)
os.environ.setdefault("OMP_NUM_THREADS", "1")

import contextlib
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_model
from dmesr_server.config import EnrichmentConfig, load
from dmesr_server.enrichment.describers.mllm import MllmDescriber
from dmesr_server.enrichment.engines.transformers import TransformersEngine
from dmesr_server.enrichment.engines.vllm import VllmEngine

START_SECONDS = 240  # of a vLLM on a busy machine

Configured = Callable[..., EnrichmentConfig]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.build(tmp_path_factory.mktemp("model") / "tiny-qwen2.5-vl")


@pytest.fixture(scope="session")
def configured(tiny: Path) -> Configured:
    """The enrichment's configuration; flags as "mllm.seed" → 3 are laid over it."""

    def make(flags: dict[str, Any] | None = None) -> EnrichmentConfig:
        values: dict[str, Any] = {
            "mllm.model": str(tiny),
            "mllm.max_pixels": tiny_model.PIXELS,
            "mllm.max_tokens": 24,
            "mllm.temperature": 1.0,  # the best tokens of noise repeat themselves, which the guard refuses
            "mllm.repetition_penalty": 1.0,
            "mllm.attempts": 4,
            "vllm.dtype": "float32",
            "vllm.max_model_len": 1024,
            "vllm.max_num_seqs": 32,
            "vllm.max_num_batched_tokens": 2048,
            "vllm.enforce_eager": True,
            # Short prompts would never fill a block of the default size.
            "vllm.extra": {"block_size": 32},
            **(flags or {}),
        }
        return load(flags={f"enrichment.{key}": value for key, value in values.items()}).enrichment

    return make


@pytest.fixture(scope="session")
async def vllm_engine(configured: Configured) -> AsyncIterator[VllmEngine]:
    engine = VllmEngine(configured())
    await engine.start()
    yield engine
    await engine.stop()


@pytest.fixture(scope="session")
async def transformers_engine(configured: Configured) -> AsyncIterator[TransformersEngine]:
    engine = TransformersEngine(configured({"transformers.dtype": "float32", "transformers.device": "cpu"}))
    await engine.start()
    yield engine
    await engine.stop()


@pytest.fixture
async def describer(vllm_engine: VllmEngine, configured: Configured) -> MllmDescriber:
    """In the mode "rounds"."""
    return MllmDescriber(vllm_engine, configured().mllm)


@pytest.fixture
async def single(vllm_engine: VllmEngine, configured: Configured) -> MllmDescriber:
    """In the mode "single"."""
    return MllmDescriber(vllm_engine, configured({"mllm.hybrid_mode": "single"}).mllm)


@pytest.fixture(scope="module")
def openai_server(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """vLLM's own OpenAI server with the tiny model, which it calls "tiny", behind the key "right-key": its base URL."""
    arguments = ["--model", str(tiny), "--served-model-name", "tiny", "--api-key", "right-key", "--dtype", "float32"]
    arguments += ["--max-model-len", "1024", "--max-num-seqs", "16", "--block-size", "32", "--enforce-eager"]
    arguments += ["--limit-mm-per-prompt", '{"image": 1, "video": 0}']
    arguments += ["--enable-prompt-tokens-details"]  # otherwise it does not tell what its cache saved
    with _served(arguments, log=tmp_path_factory.mktemp("openai") / "server.log") as url:
        yield url


@pytest.fixture(scope="module")
def embedding_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """vLLM's own OpenAI server with a tiny encoder of 64 dimensions and 128 tokens, called "tiny-embedder"."""
    folder = tiny_model.build_encoder(tmp_path_factory.mktemp("encoder"))
    arguments = ["--model", str(folder), "--served-model-name", "tiny-embedder", "--dtype", "float32"]
    arguments += ["--runner", "pooling", "--max-num-seqs", "16", "--enforce-eager"]
    with _served(arguments, log=tmp_path_factory.mktemp("embedding") / "server.log") as url:
        yield url


@contextlib.contextmanager
def _served(arguments: list[str], *, log: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as output:
        server = subprocess.Popen([*command, *arguments], stdout=output, stderr=subprocess.STDOUT)
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", server, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(20)
        server.kill()
        server.wait()


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and server.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:
            if answer.status == 200:
                return
        time.sleep(0.5)
    pytest.fail(f"vLLM's server did not start:\n{log.read_text(errors='replace')[-4000:]}")
