"""Small files that a kill never leaves half written: they get their name once they are whole."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Indented JSON; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The reverse of `write_json`."""
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def write_text(path: Path, text: str) -> None:
    """UTF-8."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def write_parquet(path: Path, table: pa.Table) -> None:
    """Compressed with zstd."""
    partial = path.with_name(path.name + ".partial")
    pq.write_table(table, partial, compression="zstd")
    partial.replace(path)


def read_parquet(path: Path) -> pa.Table:
    """The reverse of `write_parquet`."""
    return pq.read_table(path)


def write_ids(path: Path, ids: Sequence[str]) -> None:
    """Ids in order, as an Arrow file."""
    table = pa.table({"id": pa.array(ids, pa.utf8())})
    partial = path.with_name(path.name + ".partial")
    with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    partial.replace(path)


def read_ids(path: Path) -> tuple[str, ...]:
    """The reverse of `write_ids`."""
    with pa.OSFile(str(path)) as source:
        return tuple(pa.ipc.open_file(source).read_all()["id"].to_pylist())
