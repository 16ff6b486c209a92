"""The engine that is measured: vLLM with a tiny random model on a CPU, or with any model on a GPU."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmesr_server.config import EnrichmentConfig, load
from dmesr_server.enrichment.describers.mllm import MllmDescriber
from dmesr_server.enrichment.engines.vllm import VllmEngine

from .bare import Recorded

TINY = "tiny"
_ENVIRONMENT_OF_TINY = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",  # of the engine's process; the other core is left to ours
}
# The best tokens of noise repeat themselves, which the guard refuses: they are drawn, from most of the vocabulary.
_TINY: dict[str, Any] = {
    "mllm.temperature": 1.3,
    "mllm.repetition_penalty": 1.1,
    "mllm.attempts": 4,
    "vllm.dtype": "float32",
    "vllm.max_model_len": 4096,
    "vllm.enforce_eager": True,
    # Short prompts would hardly fill a block of the default size.
    "vllm.extra": {"block_size": 32},
}


@dataclass(frozen=True)
class Model:
    """A model with the settings that it is run with."""

    name: str  # TINY, or what enrichment.mllm.model takes
    folder: Path  # where the tiny one is made
    max_tokens: int | None = None

    @property
    def is_tiny(self) -> bool:
        return self.name == TINY

    def config(self, **flags: Any) -> EnrichmentConfig:
        """The enrichment's configuration; flags such as mllm__seed are laid over it."""
        values: dict[str, Any] = {"mllm.model": str(self.folder) if self.is_tiny else self.name}
        if self.is_tiny:
            values |= _TINY
        if self.max_tokens is not None:
            values["mllm.max_tokens"] = self.max_tokens
        # Many describers share one engine here: none of them may unload it because it has nothing to do itself.
        values["mllm.idle_seconds"] = 0
        values |= {key.replace("__", "."): value for key, value in flags.items()}
        return load(flags={f"enrichment.{key}": value for key, value in values.items()}).enrichment

    def prepare(self) -> None:
        """Settles the environment and makes the tiny model; before anything of vLLM is imported."""
        if not self.is_tiny:
            return
        os.environ.update(_ENVIRONMENT_OF_TINY)
        from tests_vllm import tiny_model

        tiny_model.build(self.folder)


@asynccontextmanager
async def running(model: Model, **flags: Any) -> AsyncIterator[VllmEngine]:
    """A started engine."""
    engine = VllmEngine(model.config(**flags))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def describer(engine: VllmEngine, model: Model, **flags: Any) -> tuple[MllmDescriber, Recorded]:
    """A warm describer with its own way of asking, on an engine that others use too."""
    recorded = Recorded(engine)
    made = MllmDescriber(recorded, model.config(**flags).mllm)
    await made.start()
    await made._check(with_picture=True)
    recorded.calls.clear()
    return made, recorded
