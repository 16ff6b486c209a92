from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest
from dmesr_server.enrichment.describers import specimen
from dmesr_server.enrichment.engines import PromptTooLong, Sampling, Turn
from dmesr_server.enrichment.engines.transformers import TransformersEngine
from dmesr_server.enrichment.engines.vllm import VllmEngine
from PIL import Image
from tiny_model import PIXELS

#: Where two engines take different tokens, their best two logits must lie closer than this (they span some 30).
EPSILON = 1e-3
TOKENS = 16

FILMS = [
    "Describe the film Heat, in which a detective hunts robbers.",
    "Describe a toy story about a cowboy doll.",
    "Sum up: title: The Lighthouse Keeper's Kite; year: 1987; genres: adventure, family. Answer with a paragraph.",
]


def noise(seed: int, width: int = 180, height: int = 120) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 12, width // 12, 3), dtype=np.uint8)
    return Image.fromarray(pixels, "RGB").resize((width, height), Image.Resampling.BICUBIC)


def prompts(kind: str) -> list[list[Turn]]:
    pictures = [specimen.picture(pixels=PIXELS), noise(1), noise(2, 97, 240)]
    system = Turn("system", "You write descriptions.")
    if kind == "text":
        return [[system, Turn("user", text)] for text in FILMS]
    text = FILMS if kind == "text and image" else ["Describe it."] * 3
    return [[system, Turn("user", said, picture)] for said, picture in zip(text, pictures, strict=True)]


@pytest.mark.parametrize("kind", ["text", "image", "text and image"])
@pytest.mark.parametrize("repetition_penalty", [1.0, 1.3])
async def test_greedy_answers_of_vllm_and_transformers_are_equal(
    kind: str, repetition_penalty: float, vllm_engine: VllmEngine, transformers_engine: TransformersEngine
) -> None:
    greedy = Sampling(max_tokens=TOKENS, repetition_penalty=repetition_penalty)
    asked = prompts(kind)
    ours = await asyncio.gather(*(vllm_engine.generate(turns, sampling=greedy) for turns in asked))
    theirs = await asyncio.gather(*(transformers_engine.generate(turns, sampling=greedy) for turns in asked))
    for turns, one, other in zip(asked, ours, theirs, strict=True):
        assert one.tokens_in == other.tokens_in
        pairs = zip(one.token_ids, other.token_ids, strict=False)
        same = next((at for at, (ours_at, theirs_at) in enumerate(pairs) if ours_at != theirs_at), None)
        if same is None:
            assert len(one.token_ids) == len(other.token_ids) == TOKENS or one.finish_reason == "stop"
            continue
        gap = await asyncio.to_thread(gap_at, transformers_engine, turns, list(other.token_ids[:same]), greedy)
        assert gap < EPSILON, f"differs at token {same}, where the best two logits are {gap} apart"


def gap_at(engine: TransformersEngine, turns: list[Turn], written: list[int], sampling: Sampling) -> float:
    """Between the best two logits after a prompt and an answer's beginning."""
    import torch
    from dmesr_server.enrichment.engines.transformers_sampling import RowSampling

    loaded = engine._loaded
    assert loaded is not None
    inputs = loaded._inputs([turns])
    prompt_BT = inputs["input_ids"]
    extended_BT = torch.cat([prompt_BT, torch.tensor([written], dtype=prompt_BT.dtype)], 1)
    tail = {"input_ids": extended_BT, "attention_mask": torch.ones_like(extended_BT)}
    if "mm_token_type_ids" in inputs:
        tail["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, len(written)))
    with torch.inference_mode():
        logits_BV = loaded._model(**{**inputs, **tail}).logits[:, -1].float()
    penalised_BV = RowSampling([sampling], inputs["attention_mask"])(extended_BT, logits_BV)
    best = penalised_BV[0].topk(2).values
    return float(best[0] - best[1])


async def test_transformers_rows_do_not_depend_on_their_batch(transformers_engine: TransformersEngine) -> None:
    samplings = [Sampling(max_tokens=12, temperature=1.0, top_p=0.9, seed=seed) for seed in range(3)]
    asked = list(zip(prompts("text and image"), samplings, strict=True))
    together = await asyncio.gather(*(transformers_engine.generate(turns, sampling=one) for turns, one in asked))
    alone = [await transformers_engine.generate(turns, sampling=one) for turns, one in asked]
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]
    assert len({one.token_ids for one in alone}) == 3


async def test_a_seed_repeats_a_drawn_answer(vllm_engine: VllmEngine) -> None:
    turns = prompts("image")[0]
    one, again, other = [
        await vllm_engine.generate(turns, sampling=Sampling(max_tokens=20, temperature=1.0, seed=seed))
        for seed in (1, 1, 2)
    ]
    assert one.token_ids == again.token_ids != other.token_ids


async def test_32_requests_at_once(vllm_engine: VllmEngine) -> None:
    asked = [
        [Turn("user", f"Film number {number}. Describe it.", noise(number % 8) if number % 2 else None)]
        for number in range(32)
    ]
    began = time.perf_counter()
    answers = await asyncio.gather(
        *(
            vllm_engine.generate(turns, sampling=Sampling(max_tokens=8 + number, temperature=1.0, seed=number))
            for number, turns in enumerate(asked)
        )
    )
    seconds = time.perf_counter() - began
    for number, answer in enumerate(answers):
        assert answer.tokens_out == 8 + number or answer.finish_reason == "stop"
        assert answer.tokens_in > (20 if number % 2 else 10)
    # They ran side by side: one after the other their times would not add up to more than the clock's.
    assert sum(answer.milliseconds for answer in answers) / 1e3 > 4 * seconds


async def test_drawn_answers_to_more_prompts_than_one_step_reads(vllm_engine: VllmEngine) -> None:
    # On a CPU vLLM dies where it reads the prompt of a seeded draw in parts.
    asked = [[Turn("user", f"Film number {number}. " + "It is about a kite. " * 60)] for number in range(16)]
    answers = await asyncio.gather(
        *(
            vllm_engine.generate(turns, sampling=Sampling(max_tokens=4, temperature=1.0, seed=number))
            for number, turns in enumerate(asked)
        )
    )
    assert sum(answer.tokens_in for answer in answers) > 2 * 2048
    assert all(answer.tokens_out for answer in answers)


async def test_a_cancelled_request_frees_its_place(vllm_engine: VllmEngine) -> None:
    long = Sampling(max_tokens=900, temperature=1.0)
    tasks = [
        asyncio.create_task(vllm_engine.generate([Turn("user", f"{number}")], sampling=long)) for number in range(12)
    ]
    await asyncio.sleep(0.1)
    for task in tasks:
        task.cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    # Noise may come to an end by itself, but hardly twelve times in a tenth of a second.
    assert sum(isinstance(one, asyncio.CancelledError) for one in ended) > 4
    assert vllm_engine._running.get_num_unfinished_requests() == 0
    answer = await asyncio.wait_for(
        vllm_engine.generate([Turn("user", "Still there?")], sampling=Sampling(max_tokens=4)), 10
    )
    assert answer.tokens_out > 0


async def test_a_cancelled_row_of_transformers_ends_early(transformers_engine: TransformersEngine) -> None:
    task = asyncio.create_task(
        transformers_engine.generate([Turn("user", "Go on.")], sampling=Sampling(max_tokens=3000, temperature=1.0))
    )
    await asyncio.sleep(0.3)
    task.cancel()
    began = time.perf_counter()
    await transformers_engine.generate([Turn("user", "Next.")], sampling=Sampling(max_tokens=2))
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize("name", ["vllm", "transformers"])
async def test_a_prompt_over_the_context_is_told_with_its_length(
    name: str, vllm_engine: VllmEngine, transformers_engine: TransformersEngine
) -> None:
    engine = vllm_engine if name == "vllm" else transformers_engine
    assert engine.context_tokens == (1024 if name == "vllm" else 4096)
    turns = [Turn("user", "a kite " * 5000, noise(3))]
    short = [Turn("user", "a kite " * 400, noise(3))] if name == "vllm" else turns
    for said, max_tokens in ((turns, 16), (short, 900)):
        with pytest.raises(PromptTooLong) as raised:
            await engine.generate(said, sampling=Sampling(max_tokens=max_tokens))
        assert raised.value.actual > raised.value.expected > 0
    count = await engine.count_tokens([Turn("user", "a kite", noise(3))])
    assert count is not None
    assert count.total > count.picture == 24  # 180 × 120 pixels: 6 × 4 tokens of 28 × 28
