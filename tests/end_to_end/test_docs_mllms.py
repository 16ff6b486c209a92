"""What docs/mllms.md shows of prompts, imports and settings is what runs; the model of another stack apart."""

from __future__ import annotations

import itertools
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import dmesr
import pytest
from dmesr_server.config import load
from dmesr_trainer.datasets import load as dataset
from running_server import RunningServer

DOC = (Path(__file__).parents[2] / "docs/mllms.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOC, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", blocks("toml"))
def test_settings_are_settings(block: str, tmp_path: Path):
    (tmp_path / "dmesr.toml").write_text(block)
    load(file=tmp_path / "dmesr.toml")
    assert tomllib.loads(block)


def test_texts_of_another_stack_come_in(
    start_server: Callable[..., RunningServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    server = start_server(enrichment__mllm__hybrid_mode="single")
    with dmesr.connect(server.address) as client:
        client.items.upsert(itertools.islice(dataset("sample").items(), 12))
    prompts_out, describe = blocks("python")
    compile(describe, "describe.py", "exec")
    monkeypatch.chdir(tmp_path)
    exec(compile(prompts_out.replace("127.0.0.1:50051", server.address), "prompts.py", "exec"), {})
    asked = [json.loads(line) for line in (tmp_path / "visualglm/prompts.jsonl").read_text().splitlines()]
    assert {one["route"] for one in asked} == {"text", "image", "hybrid"}
    for one in asked:
        assert bool(one["picture"]) == (one["route"] != "text")
        assert not one["picture"] or Path(one["picture"]).stat().st_size > 0
        assert "{" not in one["prompt"]
    with dmesr.connect(server.address) as client:
        texts = [
            dmesr.ImportedDescription(one["item_id"], one["route"], f"What {one['route']} says of {one['item_id']}.")
            for one in asked
        ]
        summary = client.enrichment.import_descriptions(texts, model="THUDM/visualglm-6b", recipe="visualglm")
        assert summary.inserted == len(texts)
        assert summary.rejected == ()
        client.enrichment.start(describer="import", recipe="visualglm").wait()
        vectors = client.embeddings.read(recipe="visualglm")
    for route in ("text", "image", "hybrid"):
        described = {one["item_id"] for one in asked if one["route"] == route}
        present = vectors.present(route)
        assert {item_id for item_id, there in zip(vectors.ids, present, strict=True) if there} == described
