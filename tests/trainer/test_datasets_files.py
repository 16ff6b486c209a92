"""A dataset of one's own: two files, any of the formats."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from dmesr import RejectedRow
from dmesr.readers import ColumnMapping
from dmesr_trainer.datasets import DatasetError, InteractionColumns, load
from dmesr_trainer.datasets.statistics import statistics
from pyarrow import parquet


def test_jsonl_and_csv(tmp_path: Path):
    (tmp_path / "items.jsonl").write_text('{"item_id": "a", "title": "Stapler"}\n{"item_id": "b", "title": "Pen"}\n')
    (tmp_path / "interactions.csv").write_text("user_id,item_id,position\nu,b,1\nu,a,0\nv,a,0.5\n")
    dataset = load("files", data=tmp_path, interactions=InteractionColumns(time="position"), domain="office product")
    assert [(item.item_id, item.title) for item in dataset.items()] == [("a", "Stapler"), ("b", "Pen")]
    events = dataset.interactions()
    assert events.item_ids.tolist() == ["b", "a", "a"]
    assert events.timestamps.tolist() == [2, 0, 1]  # fractions become ranks
    assert dataset.domain == "office product"


def test_parquet_with_other_names_and_no_time(tmp_path: Path):
    parquet.write_table(pa.table({"sku": ["x"], "name": ["Desk"]}), tmp_path / "items.parquet")
    parquet.write_table(pa.table({"who": [1, 2], "what": ["x", "x"]}), tmp_path / "interactions.parquet")
    dataset = load(
        "files",
        data=tmp_path,
        items=ColumnMapping(item_id="sku"),
        interactions=InteractionColumns(user="who", item="what"),
    )
    assert next(dataset.items()).item_id == "x"
    assert dataset.interactions().user_ids.tolist() == ["1", "2"]


def test_the_usual_names_are_found(tmp_path: Path):
    (tmp_path / "items.csv").write_text("item_id,title\na,Stapler\n")
    (tmp_path / "interactions.csv").write_text("user,item,position\nu,a,7\nv,a,3\n")
    events = load("files", data=tmp_path).interactions()
    assert events.user_ids.tolist() == ["u", "v"]
    assert events.timestamps.tolist() == [7, 3]
    in_order = load("files", data=tmp_path, interactions=InteractionColumns(time="")).interactions()
    assert in_order.timestamps.tolist() == [0, 1]


def test_large_times_keep_their_order(tmp_path: Path):
    (tmp_path / "items.csv").write_text("item_id\na\n")
    nanoseconds = [1_700_000_000_000_000_000, 1_600_000_000_000_000_000]
    lines = [f"u,a,{time}" for time in [*nanoseconds, 9e19]]
    (tmp_path / "interactions.csv").write_text("\n".join(["user_id,item_id,time", *lines]))
    assert load("files", data=tmp_path).interactions().timestamps.argsort().tolist() == [1, 0, 2]


def test_bad_rows_are_left_out_and_told(tmp_path: Path):
    (tmp_path / "items.csv").write_text("item_id,title\n,Nameless\na,Stapler\n")
    (tmp_path / "interactions.csv").write_text("user_id,item_id,time\nu,a,1\nu,,2\nu,b,soon\nv,b,4\n")
    dataset = load("files", data=tmp_path)
    bad, good = dataset.items()
    assert isinstance(bad, RejectedRow)
    assert "row 1 of items.csv" in bad.message
    assert good.item_id == "a"
    assert dataset.interactions().item_ids.tolist() == ["a", "b"]
    assert dataset.rejected == 2
    assert [problem.metadata["row"] for problem in dataset.problems] == ["2", "3"]
    counted = statistics(dataset)
    assert (counted.catalogue, counted.rejected, counted.interactions) == (1, 1, 2)


def test_what_is_wrong_is_named(tmp_path: Path):
    with pytest.raises(DatasetError, match="expected one file items"):
        load("files", data=tmp_path)
    (tmp_path / "items.csv").write_text("sku,title\na,Stapler\n")
    (tmp_path / "interactions.csv").write_text("user_id,item_id,when\n,a,1\n")
    dataset = load("files", data=tmp_path)
    with pytest.raises(DatasetError, match=r"items\.csv has no column 'item_id'.*--id-column"):
        list(dataset.items())
    with pytest.raises(DatasetError, match=r"no interaction that can be used: row 1 of interactions\.csv"):
        dataset.interactions()
    with pytest.raises(DatasetError, match=r"no column 'who'; it has.*--user-column"):
        load("files", data=tmp_path, interactions=InteractionColumns(user="who")).interactions()
    (tmp_path / "items.jsonl").write_text("{}")
    with pytest.raises(DatasetError, match=r"found items\.csv, items\.jsonl"):
        load("files", data=tmp_path)


def test_unknown_dataset():
    with pytest.raises(DatasetError, match="known are sample, movielens, yelp, amazon-games, amazon, files"):
        load("netflix")
