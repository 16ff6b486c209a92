"""A server for the session, a catalog for each test, and the command line in this process or in one of its own."""

from __future__ import annotations

import importlib.util
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import dmesr
import pytest
from dmesr.cli import main
from running_server import RunningServer

from .calls import Called


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    server = RunningServer(tmp_path_factory.mktemp("cli-server"))
    server.start()
    yield server
    server.stop()


_numbers = itertools.count(1)


@pytest.fixture
def catalog(running: RunningServer) -> Iterator[dmesr.Client]:
    """A client of an empty catalog of its own."""
    with dmesr.connect(running.address) as client:
        name = f"test-{next(_numbers)}"
        client.admin.create_catalog(name, domain="film")
        yield client.catalog(name)


@pytest.fixture
def cli(
    running: RunningServer,
    catalog: dmesr.Client,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> Callable[..., Called]:
    """Calls the command line in this process, against the test's catalog, in the test's folder."""
    monkeypatch.setenv("DMESR_SERVER_ADDRESS", running.address)
    monkeypatch.setenv("DMESR_CATALOG", catalog.catalog_name)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Called:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Called(code, captured.out, captured.err)

    return call


@pytest.fixture
def process(running: RunningServer, catalog: dmesr.Client, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts the command line in a process of its own."""

    def start(*arguments: object, **changes: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "dmesr.cli", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={
                **os.environ,
                "DMESR_SERVER_ADDRESS": running.address,
                "DMESR_CATALOG": catalog.catalog_name,
                **changes,
            },
        )

    return start


@pytest.fixture(scope="session")
def tiny_artefact() -> ModuleType:
    """The server tests' artefact, whose every number can be worked out by hand."""
    file = Path(__file__).parents[1] / "server/tiny_artefact.py"
    spec = importlib.util.spec_from_file_location("tiny_artefact", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
