import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from dmesr_server.config import BUNDLED_ENCODER, EncoderConfig
from dmesr_server.enrichment import encoders
from dmesr_server.errors import ServiceError
from enriching import DIM

TEXTS = ["a film", "a much longer text about a film and a thief", "b", "a film", ""]


async def encoded(model: str | Path, texts: list[str], **settings) -> np.ndarray:
    encoder = encoders.create(EncoderConfig(model=str(model), device="cpu", **settings))
    await encoder.start()
    try:
        return await encoder.encode(texts)
    finally:
        await encoder.stop()


async def test_vectors_stand_in_the_order_of_their_texts(tiny_encoder: Path):
    vectors = await encoded(tiny_encoder, TEXTS)
    assert vectors.shape == (5, DIM)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    np.testing.assert_array_equal(vectors[0], vectors[3])
    alone = [await encoded(tiny_encoder, [text]) for text in TEXTS]
    np.testing.assert_allclose(vectors, np.concatenate(alone), atol=1e-6)
    small_steps = await encoded(tiny_encoder, TEXTS, batch_size=1)
    np.testing.assert_allclose(vectors, small_steps, atol=1e-6)


async def test_vectors_are_those_of_the_plain_library(tiny_encoder: Path):
    from sentence_transformers import SentenceTransformer

    plain = SentenceTransformer(str(tiny_encoder), device="cpu").encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(await encoded(tiny_encoder, TEXTS), plain, atol=1e-6)


async def test_nothing_to_encode(tiny_encoder: Path):
    assert (await encoded(tiny_encoder, [])).shape == (0, DIM)


async def test_texts_are_cut_where_the_recipe_says(tiny_encoder: Path):
    long = " ".join("abcdefg"[index % 7] for index in range(500))
    vectors = await encoded(tiny_encoder, [long, long + " z z z"])
    np.testing.assert_array_equal(vectors[0], vectors[1])
    fields = encoders.create(EncoderConfig(model=str(tiny_encoder))).recipe_fields()
    assert (fields["max_tokens"], fields["normalisation"], fields["pooling"]) == (64, "l2", "mean")


async def test_many_calls_at_once_share_one_model(tiny_encoder: Path):
    encoder = encoders.create(EncoderConfig(model=str(tiny_encoder), batch_size=2))
    await asyncio.gather(encoder.start(), encoder.start())
    lots = [[f"text {number} of {lot}" for number in range(30)] for lot in range(6)]
    together = await asyncio.gather(*(encoder.encode(lot) for lot in lots))
    for lot, vectors in zip(lots, together, strict=True):
        np.testing.assert_allclose(vectors, await encoder.encode(lot), atol=1e-6)
    await encoder.stop()


def test_revision_follows_the_content_not_the_place(tiny_encoder: Path, tmp_path: Path):
    copy = Path(shutil.copytree(tiny_encoder, tmp_path / "tiny"))
    before = encoders.create(EncoderConfig(model=str(tiny_encoder))).recipe_fields()
    assert encoders.create(EncoderConfig(model=str(copy))).recipe_fields() == before
    (copy / "README.md").write_text("Words about the model shape no vector.")
    assert encoders.create(EncoderConfig(model=str(copy))).recipe_fields() == before
    (copy / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 32}))
    after = encoders.create(EncoderConfig(model=str(copy))).recipe_fields()
    assert after["max_tokens"] == 32
    assert after["revision"] != before["revision"]


def test_bundled_model_is_known_without_loading_anything():
    """The API process makes recipes too, and must stay free of torch."""
    code = (
        "import sys; from dmesr_server.config import EncoderConfig; from dmesr_server.enrichment import encoders;"
        "e = encoders.create(EncoderConfig()); print(e.model, e.dim, 'torch' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert answer.split() == [BUNDLED_ENCODER, "384", "False"]


@pytest.mark.parametrize("name", ["bundled:other", "/no/such/folder", "./relative", "a/b/c"])
def test_models_that_are_not_there_are_refused_at_once(name: str):
    with pytest.raises(ServiceError) as caught:
        encoders.create(EncoderConfig(model=name))
    assert (caught.value.reason, caught.value.metadata["encoder"]) == ("ENCODER_UNAVAILABLE", name)


def test_hub_model_offline(monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ServiceError) as caught:
        encoders.create(EncoderConfig(model="nobody/nothing"))
    assert caught.value.reason == "ENCODER_UNAVAILABLE"
    assert "HF_HUB_OFFLINE" in caught.value.message
    assert "hf download nobody/nothing" in caught.value.message


def test_folder_that_holds_no_model(tmp_path: Path):
    with pytest.raises(ServiceError) as caught:
        encoders.create(EncoderConfig(model=str(tmp_path)))
    assert "neither modules.json nor config.json" in caught.value.message


async def test_broken_weights_and_unknown_devices_say_what_to_do(tiny_encoder: Path, tmp_path: Path):
    broken = Path(shutil.copytree(tiny_encoder, tmp_path / "broken"))
    (broken / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0garbage!")
    for config in (EncoderConfig(model=str(broken)), EncoderConfig(model=str(tiny_encoder), device="warp")):
        with pytest.raises(ServiceError) as caught:
            await encoders.create(config).start()
        assert caught.value.reason == "ENCODER_UNAVAILABLE"
        assert "cannot be loaded" in caught.value.message


async def test_cancelling_does_not_wait_for_the_rest(tiny_encoder: Path):
    encoder = encoders.create(EncoderConfig(model=str(tiny_encoder), batch_size=1))
    await encoder.start()
    work = asyncio.create_task(encoder.encode([f"text {number}" for number in range(5_000)]))
    await asyncio.sleep(0.05)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(work, 1)
    assert (await encoder.encode(["after"])).shape == (1, DIM)
    await encoder.stop()
