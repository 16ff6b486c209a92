"""A dataset of one's own: two files, any of the formats."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from dmesr.readers import ColumnMapping
from dmesr_trainer.datasets import DatasetError, InteractionColumns, load
from pyarrow import parquet


def test_jsonl_and_csv(tmp_path: Path):
    (tmp_path / "items.jsonl").write_text('{"item_id": "a", "title": "Stapler"}\n{"item_id": "b", "title": "Pen"}\n')
    (tmp_path / "interactions.csv").write_text("user_id,item_id,position\nu,b,1\nu,a,0\nv,a,0.5\n")
    dataset = load("files", data=tmp_path, interactions=InteractionColumns(time="position"), domain="office product")
    assert [(item.item_id, item.title) for item in dataset.items()] == [("a", "Stapler"), ("b", "Pen")]
    events = dataset.interactions()
    assert events.item_ids.tolist() == ["b", "a", "a"]
    assert events.timestamps.tolist() == [1_000_000, 0, 500_000]
    assert dataset.domain == "office product"


def test_parquet_with_other_names_and_no_time(tmp_path: Path):
    parquet.write_table(pa.table({"sku": ["x"], "name": ["Desk"]}), tmp_path / "items.parquet")
    parquet.write_table(pa.table({"who": [1, 2], "what": ["x", "x"]}), tmp_path / "interactions.parquet")
    dataset = load(
        "files",
        data=tmp_path,
        items=ColumnMapping(item_id="sku"),
        interactions=InteractionColumns(user="who", item="what", time=None),
    )
    assert next(dataset.items()).item_id == "x"
    assert dataset.interactions().user_ids.tolist() == ["1", "2"]


def test_what_is_wrong_is_named(tmp_path: Path):
    with pytest.raises(DatasetError, match="expected one file items"):
        load("files", data=tmp_path)
    (tmp_path / "items.csv").write_text("item_id,title\n,Nameless\n")
    (tmp_path / "interactions.csv").write_text("user_id,item_id,when\nu,a,1\n")
    dataset = load("files", data=tmp_path)
    with pytest.raises(DatasetError, match=r"items\.csv.*mend that row"):
        list(dataset.items())
    with pytest.raises(DatasetError, match="--time-column"):
        dataset.interactions()
    (tmp_path / "items.jsonl").write_text("{}")
    with pytest.raises(DatasetError, match=r"found items\.csv, items\.jsonl"):
        load("files", data=tmp_path)


def test_unknown_dataset():
    with pytest.raises(DatasetError, match="known are sample, movielens, files"):
        load("netflix")
