"""What the documentation shows is what runs."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import dmesr
import pytest
from dmesr_trainer.datasets import load

DOCS = Path(__file__).parents[2] / "docs"


def test_the_worked_example_runs(server, client: dmesr.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    client.items.upsert(itertools.islice(load("sample").items(), 80))
    client.enrichment.start().wait()
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / "your-own-model.md").read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 4
    monkeypatch.chdir(tmp_path)
    program = "\n".join(blocks).replace("127.0.0.1:50051", server.address)
    exec(compile(program, "your-own-model.md", "exec"), {})
    assert (tmp_path / "vectors.parquet").stat().st_size > 0
