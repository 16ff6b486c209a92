"""Descriptions in files: one row for each item and route, with the provenance, as Parquet or JSONL."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import Tell, fail, plain

if TYPE_CHECKING:
    import pyarrow as pa

    import dmesr

#: Ends of the names of files that can be written.
FORMATS = (".parquet", ".jsonl")

_ROWS = 1_000  # held at a time
_TEXTS = (
    "description_recipe_id",
    "describer",
    "model",
    "engine",
    "prompt_revision",
    "content_hash",
    "picture_sha256",
    "stop_reason",
    "sampling",
    "author",
)
_COUNTS = ("rounds", "tokens_in", "tokens_out", "tokens_cached")


def write(descriptions: Iterable[dmesr.Description], file: Path, *, tell: Tell) -> int:
    """Writes descriptions at constant memory. A file of that name is replaced only by a whole one.

    Args:
        descriptions: What to write.
        file: A name that ends in one of `FORMATS`.
        tell: Is told how many have been written.

    Returns:
        How many there were.

    Raises:
        typer.Exit: The file cannot be written.
    """
    unfinished = file.with_name(f".{file.name}.partial")
    counted = _counted(descriptions, tell)
    try:
        if file.suffix.lower() == ".parquet":
            count = _write_parquet(counted, unfinished)
        else:
            count = _write_jsonl(counted, unfinished)
        unfinished.replace(file)
    except OSError as error:
        fail(f"cannot write {file}: {error.strerror or error}")
    finally:
        unfinished.unlink(missing_ok=True)
    return count


def makers(files: Sequence[Path]) -> set[tuple[str, bool]]:
    """Who made the texts of files that were exported: models, and whether each is a multimodal LLM.

    What people corrected says nothing about that.

    Raises:
        InvalidInput: A file cannot be read, or has no column "model".
    """
    from dmesr import RejectedRow
    from dmesr.readers import read_rows

    found: set[tuple[str, bool]] = set()
    for file in files:
        for row in read_rows(file, needed=["model"], optional=["is_mllm", "describer"], only_needed=True):
            if isinstance(row, RejectedRow) or row.values.get("describer") == "person":
                continue
            model = row.values["model"]
            if model not in (None, ""):
                found.add((str(model), _truth(row.values.get("is_mllm"))))
    return found


def _truth(value: object) -> bool:
    """A truth value of any file; True where there is none, as for texts that an unnamed model made."""
    return str(value).strip().lower() not in ("false", "0", "no")


def _counted(descriptions: Iterable[dmesr.Description], tell: Tell) -> Iterator[dict[str, Any]]:
    for number, one in enumerate(descriptions, 1):
        yield _row(one)
        tell(number)


def _row(one: dmesr.Description) -> dict[str, Any]:
    made = one.provenance
    row: dict[str, Any] = {"item_id": one.item_id, "route": one.route, "text": one.text or None, "stale": one.stale}
    for name in (*_TEXTS, *_COUNTS, "is_mllm", "milliseconds", "create_time"):
        row[name] = getattr(made, name) if made is not None else None
    row["replaced_text"] = one.replaced.text or None if one.replaced is not None else None
    row["problem_reason"] = one.problem.reason if one.problem is not None else None
    row["problem_message"] = one.problem.message if one.problem is not None else None
    return row


def _write_jsonl(rows: Iterator[dict[str, Any]], file: Path) -> int:
    count = 0
    with file.open("w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(plain(row), ensure_ascii=False) + "\n")
            count += 1
    return count


def _write_parquet(rows: Iterator[dict[str, Any]], file: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema()
    count = 0
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        while batch := list(islice(rows, _ROWS)):
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))
            count += len(batch)
    return count


def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            ("item_id", pa.string()),
            ("route", pa.string()),
            ("text", pa.string()),
            ("stale", pa.bool_()),
            *((name, pa.string()) for name in _TEXTS),
            *((name, pa.int64()) for name in _COUNTS),
            ("is_mllm", pa.bool_()),
            ("milliseconds", pa.float64()),
            ("create_time", pa.timestamp("us", tz="UTC")),
            ("replaced_text", pa.string()),
            ("problem_reason", pa.string()),
            ("problem_message", pa.string()),
        ]
    )
