"""What a command talks through: results on stdout, everything else on stderr, and the connection to the server.

`serve`, `train` and the other commands of the extras use this module too; it is the one part of the command line that
they may import.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, Protocol

import typer
from rich.cells import cell_len
from rich.console import Console

if TYPE_CHECKING:
    import dmesr

DEFAULT_SERVER = "127.0.0.1:50051"
HELP_PANEL = "Connection and output"

#: For people: progress, questions and remarks. On stderr, so that stdout holds nothing but results.
console = Console(stderr=True, highlight=False)
#: For results that people read. Item texts are printed as they are: no markup, no emoji codes.
output = Console(highlight=False, markup=False, emoji=False)

BLOCK_ROWS = 1_000  # rows of a table that are laid out together
QUIET_LINE_SECONDS = 5.0  # how often progress is told where stderr is no terminal


@dataclasses.dataclass
class Settings:
    """The global options of this call."""

    server: str = DEFAULT_SERVER
    token: str | None = None
    tls: bool = False
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    catalog: str = "default"
    json: bool = False


def settings(ctx: typer.Context) -> Settings:
    """The global options, wherever on the command line they stood."""
    root = ctx.find_root()
    if not isinstance(root.obj, Settings):
        root.obj = Settings(
            server=os.environ.get("DMESR_SERVER_ADDRESS") or DEFAULT_SERVER,
            token=os.environ.get("DMESR_TOKEN") or None,
            catalog=os.environ.get("DMESR_CATALOG") or "default",
        )
    return root.obj


def _remember_json(ctx: typer.Context, value: bool) -> bool:
    if value:
        settings(ctx).json = True
    return value


#: The `--json` option after a subcommand. Declare it in a command as `json: Json = False` and ask `as_json(ctx)`.
Json = Annotated[
    bool,
    typer.Option(
        "--json", help="Print one JSON document on stdout.", callback=_remember_json, rich_help_panel=HELP_PANEL
    ),
]


def as_json(ctx: typer.Context) -> bool:
    """Whether the result is wanted as JSON, be `--json` before or after the subcommand."""
    return settings(ctx).json


@contextmanager
def connected(ctx: typer.Context, *, seconds: float | None = None) -> Iterator[dmesr.Client]:
    """A client of the server and the catalog that the global options name.

    Args:
        ctx: Of the command.
        seconds: What a single call may take; the SDK's own limit where it is None.
    """
    import dmesr

    chosen = settings(ctx)
    tls: bool | dmesr.TLS = chosen.tls
    if chosen.ca or chosen.cert or chosen.key:
        tls = dmesr.TLS(root_certificates=chosen.ca, client_certificate=chosen.cert, client_key=chosen.key)
    limits = dmesr.Timeout() if seconds is None else dmesr.Timeout(unary_seconds=seconds)
    with dmesr.connect(
        chosen.server, token=chosen.token, tls=tls or None, timeout=limits, catalog=chosen.catalog
    ) as client:
        yield client


def fail(message: str, code: int = 1) -> NoReturn:
    """Ends the command with one line on stderr.

    Args:
        message: What was wrong and what to do next.
        code: The exit status: 1 for a failure, 2 for a call that cannot be understood.

    Raises:
        typer.Exit: Always.
    """
    say(f"error: {one_line(message)}")
    raise typer.Exit(code)


def say(line: str) -> None:
    """Writes one plain line to stderr, unwrapped."""
    sys.stdout.flush()
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def one_line(text: str) -> str:
    """The text without line breaks and control characters."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def confirm(ctx: typer.Context, question: str, *, yes: bool) -> None:
    """Asks before something is destroyed.

    Args:
        ctx: The command's context.
        question: What is about to be destroyed, as a question.
        yes: The command's `--yes`: do not ask.

    Raises:
        typer.Exit: The answer is no, or there is nobody to ask.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        fail(f"{question} There is nobody to ask: repeat the command with --yes", code=2)
    if not typer.confirm(question, err=True):
        say("nothing was changed")
        raise typer.Exit(1)


def plain(value: object) -> Any:
    """The value as JSON can hold it: dataclasses and mappings as objects, enums by name, times as ISO 8601."""
    if value is None or (isinstance(value, bool | int | str) and not isinstance(value, enum.Enum)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, enum.Enum):
        return value.name
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = (field.name for field in dataclasses.fields(value) if not field.name.startswith("_"))
        return {name: plain(getattr(value, name)) for name in fields}
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Iterable):
        return [plain(entry) for entry in value]
    return value.item() if hasattr(value, "item") else str(value)


def print_json(obj: object) -> None:
    """Prints one JSON document on stdout: indented for people, on one line where it is piped."""
    indent = 2 if sys.stdout.isatty() else None
    sys.stdout.write(json.dumps(plain(obj), indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def print_json_array(rows: Iterable[object]) -> None:
    """Prints a JSON array on stdout, one row a line, without holding the rows."""
    separator = "["
    for row in rows:
        sys.stdout.write(separator + "\n" + json.dumps(plain(row), ensure_ascii=False, allow_nan=False))
        separator = ","
    sys.stdout.write("[]\n" if separator == "[" else "\n]\n")


def print_line(text: str = "") -> None:
    """Prints one line of a result on stdout, unwrapped."""
    sys.stdout.write(f"{text}\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = ()) -> None:
    """Prints a table on stdout: drawn on a terminal, plain aligned columns without any cut where it is piped.

    Args:
        columns: The headings.
        rows: The cells, aligned with the headings.
        right: Headings whose cells are figures and stand flush right.
    """
    texts = ([one_line(cell(value)) for value in row] for row in rows)
    if output.is_terminal:
        _draw(columns, texts, right)
        return
    head: list[list[str]] = [list(columns)] if any(columns) else []
    widths = [0] * len(columns)
    # A block at a time: a list of a million items neither waits nor is held.
    while block := [*head, *islice(texts, BLOCK_ROWS)]:
        head = []
        widths = [max(width, *(cell_len(line[place]) for line in block)) for place, width in enumerate(widths)]
        for line in block:
            cells = []
            for column, text, width in zip(columns, line, widths, strict=True):
                gap = " " * (width - cell_len(text))
                cells.append(gap + text if column in right else text + gap)
            print_line("  ".join(cells).rstrip())


def _draw(columns: Sequence[str], texts: Iterator[list[str]], right: Sequence[str]) -> None:
    from rich.table import Table

    block = list(islice(texts, BLOCK_ROWS))
    while True:
        table = Table(header_style="bold", show_edge=False, pad_edge=False, show_header=any(columns))
        for column in columns:
            table.add_column(column, justify="right" if column in right else "left", overflow="fold")
        for row in block:
            table.add_row(*row)
        output.print(table)
        block = list(islice(texts, BLOCK_ROWS))
        if not block:
            return


def cell(value: object) -> str:
    """A value as people read it in a table."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, enum.Enum):
        return value.name.lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, str):
        return value
    if isinstance(value, Iterable):
        return ", ".join(cell(entry) for entry in value) or "-"
    return str(value)


class Tell(Protocol):
    """Takes the state of a long piece of work, as often as the work likes."""

    def __call__(self, done: int, *, total: int | None = None, note: str = "") -> None:
        """Tells how far the work is.

        Args:
            done: What has been done.
            total: All that is to be done, once it is known.
            note: More about it, in a few words.
        """


@contextmanager
def progress(label: str) -> Iterator[Tell]:
    """Shows progress on stderr: a bar on a terminal, now and then a line elsewhere.

    Args:
        label: What is going on, for instance "importing".
    """
    if not console.is_terminal:
        yield _lines(label)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(label, total=None, note="")

        def tell(done: int, *, total: int | None = None, note: str = "") -> None:
            bar.update(task, completed=done, total=total, note=note)

        yield tell


def _lines(label: str) -> Tell:
    # The first line comes late: work that is over in a moment says nothing.
    told: list[float] = [time.monotonic()]

    def tell(done: int, *, total: int | None = None, note: str = "") -> None:
        now = time.monotonic()
        if now - told[0] < QUIET_LINE_SECONDS:
            return
        told[0] = now
        say(f"{label}: {done:,}" + (f" of {total:,}" if total else "") + (f" ({note})" if note else ""))

    return tell


def shortened(text: str, *, width: int = 60) -> str:
    """The text for a table cell: cut on a terminal, whole where it is piped."""
    flat = one_line(text)
    if not output.is_terminal or cell_len(flat) <= width:
        return flat
    return flat[: width - 1] + "…"


Printer = Callable[[], None]


def show(ctx: typer.Context, result: object, people: Printer) -> None:
    """Prints a command's result: as JSON when asked for, else as people read it.

    Args:
        ctx: The command's context.
        result: What JSON shows.
        people: Prints the same for people.
    """
    if as_json(ctx):
        print_json(result)
    else:
        people()
