"""How a bulk write ends: counts, and the rows that were not taken, with why."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from .console import as_json, fail, one_line, plain, print_json, print_line, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    import dmesr

SHOWN_REJECTS = 10


def check_rejects_file(file: Path | None) -> None:
    """Sees to it that the rejects can be written before anything is sent.

    Raises:
        typer.BadParameter: There is no folder for the file.
    """
    if file is not None and not file.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {file.parent}", param_hint="--rejects")


def report_rejects(
    ctx: typer.Context,
    summary: dmesr.UpsertSummary,
    *,
    noun: str,
    file: Path | None,
    unreadable: Sequence[dmesr.RejectedRow] = (),
    strict: bool = False,
) -> None:
    """Tells what a bulk write did.

    Args:
        ctx: The command's context.
        summary: What the server did.
        noun: What a row is, in the singular.
        file: Where every rejected row goes as JSONL, or None.
        unreadable: Rows that did not get as far as the server.
        strict: End with an error when any row was rejected, not only when every row was.

    Raises:
        typer.Exit: Every row was rejected, or one was and `strict` is set.
    """
    rejected = [*unreadable, *summary.rejected]
    pictures = list(summary.picture_problems)
    if file is not None:
        lines = [
            json.dumps({"kind": kind, **plain(row)}, ensure_ascii=False)
            for kind, rows in (("row", rejected), ("picture", pictures))
            for row in rows
        ]
        file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    taken = summary.inserted + summary.updated + summary.unchanged
    if as_json(ctx):
        counts = {name: getattr(summary, name) for name in ("inserted", "updated", "unchanged")}
        print_json({**counts, "rejected": rejected, "picture_problems": pictures})
    else:
        print_line(
            f"{summary.inserted:,} inserted, {summary.updated:,} updated, {summary.unchanged:,} unchanged, "
            f"{len(rejected):,} rejected" + (f", {len(pictures):,} taken without their picture" if pictures else "")
        )
        _show("rejected", rejected, file)
        _show("without picture", pictures, file)
    if rejected and (strict or not taken):
        word = noun if len(rejected) == 1 else f"{noun}s"
        fail(f"{len(rejected):,} {word} rejected" + ("" if taken else ", none taken"))


def _show(label: str, rows: Sequence[dmesr.RejectedRow], file: Path | None) -> None:
    if not rows:
        return
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in Counter(row.reason for row in rows).most_common())
    say(f"{label}: {reasons}")
    for row in rows[:SHOWN_REJECTS]:
        say(f"  {one_line(row.item_id) or '(no id)'}: {one_line(row.message)}")
    if len(rows) > SHOWN_REJECTS:
        where = f"all of them are in {file}" if file else "--rejects FILE writes all of them"
        say(f"  … and {len(rows) - SHOWN_REJECTS:,} more; {where}")
