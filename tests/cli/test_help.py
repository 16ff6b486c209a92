"""The help teaches by example, and is the same whatever is installed."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from dmesr.cli.app import app
from typer.main import get_command

EXTRAS = {"serve", "enricher", "train", "datasets", "demo", "experiment"}


def _commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if name in EXTRAS:
            continue
        if hasattr(command, "commands"):
            yield from _commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


COMMANDS = dict(_commands(get_command(app)))


def test_every_promised_command_is_there():
    assert set(COMMANDS) == {
        *(f"catalogs {name}" for name in ("create", "list", "drop")),
        *(f"items {name}" for name in ("import", "list", "get", "delete")),
        *(f"enrich {name}" for name in ("start", "status", "watch", "cancel", "retry", "preview", "stats")),
        *(f"descriptions {name}" for name in ("show", "export", "import", "edit")),
        *(f"embeddings {name}" for name in ("stats", "export", "neighbours", "drift")),
        *(
            f"models {name}"
            for name in ("list", "show", "publish", "promote", "rollback", "delete", "split", "aliases")
        ),
        *(f"store {name}" for name in ("stats", "check", "compact", "snapshot", "restore")),
        "server info",
        *(f"tokens {name}" for name in ("create", "list", "revoke")),
        "audit list",
        "recommend",
        "evaluate",
        "doctor",
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_teaches_by_examples_that_parse(name: str):
    command = COMMANDS[name]
    assert command.help, "a command without a word about what it does"
    heading, *examples = command.epilog.split("\n")
    assert "Examples" in heading
    assert examples
    assert any(f"dmesr-cli {name}" in example for example in examples)
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for example in examples:
        if f"dmesr-cli {name}" in example:
            used = set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", example.split("|")[0]))
            assert used <= options, f"{example} uses an option that the command lacks"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_json(name: str):
    assert any("--json" in parameter.opts for parameter in COMMANDS[name].params)


def _run(*arguments: str, code: str | None = None) -> subprocess.CompletedProcess[str]:
    start = ["-c", code] if code else ["-m", "dmesr.cli"]
    return subprocess.run([sys.executable, *start, *arguments], capture_output=True, text=True, timeout=60)


def test_root_help_lists_the_extras_without_importing_them():
    code = (
        "import sys; from dmesr.cli import main; code = main(['--help']);"
        "print(sorted(name for name in sys.modules if name.split('.')[0] in ('dmesr_server', 'dmesr_trainer')));"
        "sys.exit(code)"
    )
    shown = _run(code=code)
    assert shown.returncode == 0
    assert all(name in shown.stdout for name in EXTRAS)
    assert shown.stdout.rstrip().endswith("[]")


@pytest.mark.parametrize(
    ("command", "blocked", "extra"),
    [
        ("serve", "dmesr_server", "server"),
        ("enricher", "dmesr_server", "server"),
        ("train", "dmesr_trainer", "trainer"),
        ("datasets", "dmesr_trainer", "trainer"),
        ("demo", "dmesr_trainer", "trainer"),
    ],
)
def test_a_missing_extra_names_the_line_that_brings_it(command: str, blocked: str, extra: str):
    code = f"import sys; sys.modules[{blocked!r}] = None; from dmesr.cli import main; sys.exit(main())"
    called = _run(command, code=code)
    assert called.returncode == 2
    assert called.stdout == ""
    (line,) = called.stderr.splitlines()
    assert f"pip install 'dmesr[{extra}]'" in line
    listed = _run("--help", code=code)
    assert listed.returncode == 0
    assert command in listed.stdout


def test_a_wrong_call_is_one_line_and_exit_2():
    called = _run("items", "gte", "296")
    assert called.returncode == 2
    assert called.stdout == ""
    assert called.stderr == "error: No such command 'gte'. Did you mean 'get'? (see dmesr-cli items --help)\n"


def test_a_group_alone_shows_its_help():
    called = _run("enrich")
    assert called.returncode == 2
    assert "status" in called.stdout + called.stderr


def test_version():
    called = _run("--version")
    assert called.returncode == 0
    assert re.fullmatch(r"dmesr-cli \d+\.\d+\.\d+\S*\n", called.stdout)


@pytest.mark.parametrize("words", [("", "items"), ("enrich", "start"), ("demo", "demo")])
def test_shell_completion_completes_commands(words: tuple[str, str]):
    before, wanted = words
    line = f"dmesr-cli {before} {wanted[:3]}".replace("  ", " ") if before != wanted else f"dmesr-cli {wanted[:3]}"
    code = "import sys; from dmesr.cli import main; sys.exit(main())"
    shown = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={
            "PATH": "/usr/bin:/bin",
            "_DMESR_CLI_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(line.split()) - 1),
            "_TYPER_COMPLETE_ARGS": line,
        },
    )
    assert wanted in shown.stdout.splitlines()


def test_shell_completion_script():
    shown = _run("--show-completion", "bash")
    assert shown.returncode == 0
    assert "_DMESR_CLI_COMPLETE" in shown.stdout


def test_importing_the_command_line_is_light():
    shown = _run(code="import dmesr.cli.app, sys; print(*sys.modules)")
    assert {"pyarrow", "numpy", "torch", "rich.progress", "rich.table"} & set(shown.stdout.split()) == set()


def test_a_fault_of_the_command_line_is_one_line_and_its_place_is_shown_on_demand(monkeypatch: pytest.MonkeyPatch):
    code = (
        "import sys; from dmesr.cli import doctor, main\n"
        "def broken(ctx, store): raise RuntimeError('of all things')\n"
        "doctor._checks = broken\n"
        "sys.exit(main(['doctor']))"
    )
    told = _run(code=code)
    assert (told.returncode, told.stdout) == (1, "")
    (line,) = told.stderr.splitlines()
    assert "RuntimeError: of all things" in line
    assert "DMESR_DEBUG=1" in line
    monkeypatch.setenv("DMESR_DEBUG", "1")
    assert "Traceback" in _run(code=code).stderr
