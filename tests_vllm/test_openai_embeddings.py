"""The encoder openai, and a describer that was pointed at the wrong model, against vLLM's own OpenAI server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import numpy as np
import pytest
from dmesr_server.config import EncoderConfig, EnrichmentConfig
from dmesr_server.enrichment import encoders
from dmesr_server.enrichment.encoders import Encoder
from dmesr_server.enrichment.engines.openai import OpenaiEngine
from dmesr_server.errors import ServiceError

WIDTH = 64


def settings(url: str, *, dim: int = WIDTH) -> EncoderConfig:
    return EncoderConfig(kind="openai", model="tiny-embedder", dim=dim, base_url=url, batch_size=4)


@pytest.fixture
async def encoder(embedding_server: str) -> AsyncIterator[Encoder]:
    made = encoders.create(settings(embedding_server))
    await made.start()
    yield made
    await made.stop()


async def test_vectors_of_length_one_in_order(encoder: Encoder) -> None:
    texts = [f"film {number} about a lighthouse" for number in range(10)]
    vectors_ND = await encoder.encode([*texts, texts[3]])
    assert vectors_ND.shape == (11, WIDTH)
    np.testing.assert_allclose(np.linalg.norm(vectors_ND, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(vectors_ND[3], vectors_ND[10])
    alone = await encoder.encode([texts[3]])
    np.testing.assert_allclose(alone[0], vectors_ND[3], atol=1e-5)
    assert len({vector.tobytes() for vector in vectors_ND}) == 10


async def test_a_text_over_the_context_is_cut(encoder: Encoder) -> None:
    long = "ab cd " * 400  # four tokens each time, 128 fit
    vectors_ND = await encoder.encode([long, "ab cd"])
    assert np.isfinite(vectors_ND).all()
    cut = await encoder.encode([("ab cd " * 31).strip()])
    assert vectors_ND[0] @ cut[0] > 0.95


async def test_another_width_is_found_at_the_start(embedding_server: str) -> None:
    with pytest.raises(
        ServiceError, match=r"gives vectors of width 64, expected 1536; set enrichment.encoder.dim = 64"
    ):
        await encoders.create(settings(embedding_server, dim=1536)).start()


async def test_a_describer_finds_no_chat_there(
    embedding_server: str, configured: Callable[..., EnrichmentConfig]
) -> None:
    config = configured({"mllm.model": "tiny-embedder", "openai.base_url": embedding_server})
    with pytest.raises(ServiceError, match="cannot work with the model tiny-embedder") as caught:
        await OpenaiEngine(config).start()
    assert caught.value.reason == "DESCRIBER_UNAVAILABLE"
