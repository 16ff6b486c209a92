"""What can be told about the MLLM describers without an engine: what is missing, and what it takes to restart one."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from dmesr_server.config import EnrichmentConfig, MllmConfig, load
from dmesr_server.enrichment import describers
from dmesr_server.enrichment.describers import auto
from dmesr_server.enrichment.engines import EngineDown, Generation, Sampling, TokenCount, Turn
from dmesr_server.enrichment.engines.supervision import SupervisedEngine
from dmesr_server.errors import ServiceError

HELLO = [Turn("user", "Hello")]
GREEDY = Sampling(max_tokens=4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Looks like a model from outside."""
    place = tmp_path / "a-model"
    place.mkdir()
    (place / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl", "max_position_embeddings": 4096}))
    (place / "model.safetensors").write_bytes(b"0" * 64)
    return place


def configured(model: Path | str, **settings: object) -> EnrichmentConfig:
    flags = {f"enrichment.mllm.{name}": value for name, value in settings.items()}
    return load(flags={"enrichment.mllm.model": str(model), **flags}).enrichment


@pytest.mark.skipif(auto.importlib.util.find_spec("vllm") is not None, reason="tells what happens without vLLM")
async def test_vllm_that_is_not_installed_is_told_when_it_is_started(folder: Path):
    describer = describers.create("vllm", configured(folder))
    with pytest.raises(ServiceError) as raised:
        await describer.start()
    assert raised.value.reason == "DESCRIBER_UNAVAILABLE"
    assert "pip install 'dmesr[vllm]'" in raised.value.message
    await describer.stop()


async def test_weights_that_are_none_are_told_by_transformers(folder: Path):
    describer = describers.create("transformers", configured(folder))
    with pytest.raises(ServiceError) as raised:
        await describer.start()
    assert raised.value.reason == "DESCRIBER_UNAVAILABLE"
    await describer.stop()


def test_identity_follows_all_that_shapes_the_text(folder: Path):
    def fields(**settings: object) -> Mapping[str, object]:
        return describers.create("vllm", configured(folder, **settings)).recipe_fields("hybrid")

    plain = fields()
    shaping = [{"seed": 1}, {"temperature": 0.5}, {"max_pixels": 50_176}, {"hybrid_mode": "single"}, {"max_rounds": 1}]
    for changed in shaping:
        assert fields(**changed) != plain, changed
    for same in ({"concurrency": 3}, {"idle_seconds": 5.0}, {"restarts": 9}):
        assert fields(**same) == plain, same
    one = describers.create("vllm", configured(folder)).model
    (folder / "model.safetensors").write_bytes(b"1" * 64)
    assert describers.create("vllm", configured(folder)).model != one
    assert describers.create("vllm", configured(folder, revision="mine")).model == "a-model@mine"


def test_a_missing_shard_is_told(folder: Path):
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model-1.safetensors").write_bytes(b"0")
    with pytest.raises(ServiceError, match="1 of its 2 files of weights are missing"):
        describers.create("vllm", configured(folder))


def test_a_hub_model_with_a_stated_revision_needs_no_hub():
    describer = describers.create("vllm", configured("Qwen/Qwen2.5-VL-3B-Instruct", revision="0123456789abcdef"))
    assert describer.model == "Qwen/Qwen2.5-VL-3B-Instruct@0123456789ab"
    assert describer.routes == ("text", "image", "hybrid", "reflect")


def test_auto_says_why(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert auto.choose() == auto.Choice("palette", "no GPU was found, and an MLLM on a CPU takes minutes for each item")
    with caplog.at_level("INFO"):
        assert describers.create("auto", EnrichmentConfig()).name == "palette"
    assert "auto means palette: no GPU" in caplog.text


class ScriptedEngine:
    """Lives and dies by a script; proves nothing about real ones."""

    name = model = "scripted"
    revision = version = ""
    context_tokens = None
    is_mllm = True
    concurrency = items_per_call = 1

    def __init__(self, *script: str):
        self.script = list(script)  # "up" or "down" for each start, "text" or "dies" for each call
        self.starts = 0

    async def start(self) -> None:
        self.starts += 1
        if self.script.pop(0) == "down":
            raise ServiceError("DESCRIBER_UNAVAILABLE", "it does not start")

    async def stop(self) -> None:
        pass

    def recipe_fields(self) -> Mapping[str, object]:
        return {}

    def picture_tokens(self, width_px: int, height_px: int) -> int | None:
        return None

    async def generate(self, turns: Sequence[Turn], *, sampling: Sampling) -> Generation:
        await asyncio.sleep(0)
        if self.script.pop(0) == "dies":
            raise EngineDown("as scripted")
        return Generation("words", "stop", 1, 1, 0, 1.0)

    async def count_tokens(self, turns: Sequence[Turn]) -> TokenCount | None:
        return None


def supervised(*script: str, restarts: int = 2) -> tuple[SupervisedEngine, ScriptedEngine]:
    engine = ScriptedEngine(*script)
    config = MllmConfig(restarts=restarts, restart_seconds=0.001, idle_seconds=0)
    return SupervisedEngine(engine, config), engine


async def test_a_call_whose_engine_dies_ends_and_the_next_one_finds_it_restarted():
    keeper, engine = supervised("up", "text", "dies", "up", "text")
    await keeper.generate(HELLO, sampling=GREEDY)
    with pytest.raises(EngineDown):
        await keeper.generate(HELLO, sampling=GREEDY)
    assert (await keeper.generate(HELLO, sampling=GREEDY)).text == "words"
    assert engine.starts == 2


async def test_an_engine_that_keeps_dying_is_given_up_and_the_next_job_begins_anew():
    keeper, engine = supervised("up", "dies", "up", "dies", "up", "dies", "up", "text", restarts=2)
    for _ in range(3):
        with pytest.raises(EngineDown):
            await keeper.generate(HELLO, sampling=GREEDY)
    with pytest.raises(ServiceError, match="died 3 times"):
        await keeper.generate(HELLO, sampling=GREEDY)
    assert (await keeper.generate(HELLO, sampling=GREEDY)).text == "words"
    assert engine.starts == 4


async def test_a_restart_that_fails_is_tried_again_but_a_first_start_is_not():
    keeper, engine = supervised("down")
    with pytest.raises(ServiceError, match="does not start"):
        await keeper.start()
    assert engine.starts == 1
    keeper, engine = supervised("up", "dies", "down", "up", "text")
    with pytest.raises(EngineDown):
        await keeper.generate(HELLO, sampling=GREEDY)
    await keeper.generate(HELLO, sampling=GREEDY)
    assert engine.starts == 3


async def test_one_start_serves_callers_that_come_together_and_outlives_those_that_leave():
    keeper, engine = supervised("up", *["text"] * 3)
    calls = [asyncio.create_task(keeper.generate(HELLO, sampling=GREEDY)) for _ in range(4)]
    await asyncio.sleep(0)
    calls[0].cancel()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert [answer.text for answer in answers[1:]] == ["words"] * 3
    assert engine.starts == 1
