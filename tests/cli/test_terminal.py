"""On a terminal: questions are asked, tables are drawn, progress moves; elsewhere nothing of that."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import dmesr
import pytest
from running_server import RunningServer

if sys.platform == "win32":
    pytest.skip("needs a pseudo-terminal", allow_module_level=True)
import pty

Terminal = Callable[..., tuple[int, str]]


# Makes the terminal the process' own, so that Ctrl-C there is a signal. Not a preexec_fn: this process has threads.
LAUNCH = (
    "import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); from dmesr.cli import main; sys.exit(main())"
)


@pytest.fixture
def terminal(running: RunningServer, catalog: dmesr.Client, tmp_path: Path) -> Terminal:
    """Runs the command line on a terminal, types `keys` once it asks, and returns the exit status and the screen."""

    def call(*arguments: str, keys: str = "", **changes: str) -> tuple[int, str]:
        ours, theirs = pty.openpty()
        environment = {
            **os.environ,
            "DMESR_SERVER_ADDRESS": running.address,
            "DMESR_CATALOG": catalog.catalog_name,
            "TERM": "xterm-256color",
            "COLUMNS": "80",
            **changes,
        }
        environment.pop("NO_COLOR", None)
        process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=tmp_path,
            env=environment,
            start_new_session=True,
        )
        os.close(theirs)
        screen, patience, deadline = b"", 0.3, time.monotonic() + 60
        while time.monotonic() < deadline:
            if not select.select([ours], [], [], patience)[0]:
                # Ctrl-C in the moment between the question and Python's read is lost: a person presses it again.
                if keys and b"?" in screen:
                    os.write(ours, keys.encode())
                    patience = 5.0
                continue
            try:
                piece = os.read(ours, 65536)
            except OSError:  # Linux's way of telling that the other end has closed
                break
            if not piece:
                break
            screen += piece
        else:
            process.kill()
        os.close(ours)
        return process.wait(30), screen.decode().replace("\r\n", "\n")

    return call


@pytest.mark.parametrize(("keys", "left", "code"), [("y\n", 0, 0), ("n\n", 1, 1)])
def test_destruction_is_asked_about(terminal: Terminal, catalog: dmesr.Client, keys: str, left: int, code: int):
    catalog.items.upsert([dmesr.Item("1", {"title": "Heat"})])
    ended, screen = terminal("items", "delete", "1", keys=keys)
    assert "Delete 1" in screen
    assert (ended, catalog.items.count()) == (code, left)


def test_ctrl_c_at_a_question(terminal: Terminal, catalog: dmesr.Client):
    catalog.items.upsert([dmesr.Item("1", {"title": "Heat"})])
    ended, screen = terminal("items", "delete", "1", keys="\x03")
    assert ended == 130
    assert "Traceback" not in screen
    assert catalog.items.count() == 1


def test_tables_are_drawn_and_long_titles_cut(terminal: Terminal, catalog: dmesr.Client):
    catalog.items.upsert([dmesr.Item("1", {"title": "[red]" + "very long " * 20})])
    ended, screen = terminal("items", "list")
    assert ended == 0
    assert "\x1b[1m" in screen, "the heading is bold"
    assert "[red]very" in screen, "an item's text is no markup"
    assert "…" in screen


def test_progress_is_shown_and_cleaned_away(terminal: Terminal, catalog: dmesr.Client, tmp_path: Path):
    (tmp_path / "films.csv").write_text("item_id,title\n" + "".join(f"{n},Film {n}\n" for n in range(2_000)))
    ended, screen = terminal("items", "import", "films.csv")
    assert ended == 0
    assert "importing" in screen
    assert screen.rstrip().endswith("2,000 inserted, 0 updated, 0 unchanged, 0 rejected")


def test_errors_are_one_line_on_a_terminal_too(terminal: Terminal):
    ended, screen = terminal("items", "get", "nine")
    assert ended == 1
    assert len(screen.splitlines()) == 1
