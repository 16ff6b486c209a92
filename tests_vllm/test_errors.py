from __future__ import annotations

import asyncio
import multiprocessing
import shutil
import time
from pathlib import Path

import pytest
from conftest import Configured
from dmesr_server.enrichment import describers
from dmesr_server.enrichment.describers import specimen
from dmesr_server.enrichment.describers.mllm import MllmDescriber
from dmesr_server.enrichment.engines import EngineDown, Sampling, Turn
from dmesr_server.enrichment.engines.supervision import SupervisedEngine
from dmesr_server.enrichment.engines.transformers import TransformersEngine
from dmesr_server.enrichment.engines.vllm import VllmEngine
from dmesr_server.errors import ServiceError
from tiny_model import PIXELS

GREETING = [Turn("user", "Hello")]


async def refused(engine: VllmEngine | TransformersEngine) -> ServiceError:
    with pytest.raises(ServiceError) as raised:
        await engine.start()
    await engine.stop()
    assert raised.value.reason == "DESCRIBER_UNAVAILABLE"
    return raised.value


@pytest.mark.parametrize("name", ["vllm", "transformers"])
def test_models_that_are_not_there_are_told_before_anything_is_loaded(
    name: str, configured: Configured, tiny: Path, tmp_path: Path
) -> None:
    hollow = tmp_path / "hollow"
    shutil.copytree(tiny, hollow, ignore=shutil.ignore_patterns("*.safetensors"))
    for model, said in (
        ("/nowhere/qwen", "no such folder"),
        ("nobody/has-this", "hf download nobody/has-this"),
        (str(hollow), "no weights"),
        (str(tmp_path), "no config.json"),
    ):
        with pytest.raises(ServiceError) as raised:
            describers.create(name, configured({"mllm.model": model}))
        assert raised.value.reason == "DESCRIBER_UNAVAILABLE"
        assert said in raised.value.message


async def test_vllm_refuses_a_setting_that_it_does_not_know(configured: Configured) -> None:
    error = await refused(VllmEngine(configured({"vllm.extra": {"warp_factor": 9}})))
    assert "warp_factor" in error.message
    assert "enrichment.vllm.extra" in error.message


async def test_vllm_refuses_a_quantisation_that_does_not_exist(configured: Configured) -> None:
    error = await refused(VllmEngine(configured({"vllm.quantization": "one-bit"})))
    assert "one-bit" in error.message


async def test_what_a_process_of_vllm_died_of_is_told(configured: Configured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "100000")  # GiB
    before = set(multiprocessing.active_children())
    error = await refused(VllmEngine(configured()))
    assert "memory" in error.message.lower()
    assert "max_model_len" in error.message
    assert set(multiprocessing.active_children()) == before


async def test_transformers_refuses_a_device_that_is_not_there(configured: Configured) -> None:
    error = await refused(TransformersEngine(configured({"transformers.device": "cuda"})))
    assert "cuda" in error.message
    error = await refused(TransformersEngine(configured({"transformers.dtype": "float3"})))
    assert "float3" in error.message


async def test_a_context_that_is_too_short_is_told_before_work(configured: Configured) -> None:
    config = configured({"mllm.max_tokens": 4000})
    describer = MllmDescriber(TransformersEngine(config), config.mllm)
    with pytest.raises(ServiceError, match="context is too short"):
        await describer.start()
    await describer.stop()


async def test_a_start_can_be_abandoned(configured: Configured) -> None:
    before = set(multiprocessing.active_children())

    async def started(wanted: bool) -> None:
        async with asyncio.timeout(60):
            while bool(set(multiprocessing.active_children()) - before) != wanted:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.1)

    engine = SupervisedEngine(VllmEngine(configured()), configured().mllm)
    asked = asyncio.create_task(engine.generate(GREETING, sampling=Sampling(max_tokens=4)))
    await started(True)
    began = time.monotonic()
    await engine.stop()
    assert time.monotonic() - began < 5
    with pytest.raises(EngineDown):
        await asked
    await started(False)
    assert before <= set(multiprocessing.active_children()), "another engine's processes are none of its business"


async def test_an_idle_model_is_unloaded_and_comes_back_when_it_is_asked(configured: Configured) -> None:
    config = configured({"mllm.idle_seconds": 0.3})
    engine = TransformersEngine(config)
    describer = MllmDescriber(engine, config.mllm)
    await describer.start()
    await asyncio.sleep(1.0)
    assert engine._loaded is None
    (answer,) = await describer.describe([specimen.request("image", pixels=PIXELS)])
    assert answer.text
    assert engine._loaded is not None
    await describer.stop()
    assert engine._loaded is None
