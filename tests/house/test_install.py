"""`pip install .` without extras is light, and says what to install when more is asked of it."""

from __future__ import annotations

import subprocess
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment that holds the SDK and the CLI as a user gets them, without any extra."""
    folder = tmp_path_factory.mktemp("light")
    venv.create(folder, with_pip=True)
    subprocess.run(
        [folder / "bin/pip", "install", "--quiet", "-c", ROOT / "constraints.txt", ROOT],
        check=True,
        capture_output=True,
        text=True,
    )
    return folder


def test_no_heavy_package_comes_along(light: Path):
    installed = subprocess.run(
        [light / "bin/pip", "list", "--format=freeze"], check=True, capture_output=True, text=True
    ).stdout
    names = {line.split("==")[0].lower() for line in installed.splitlines()}
    assert names & {"torch", "lancedb", "sqlalchemy", "sentence-transformers", "onnxruntime", "transformers"} == set()
    assert {"dmesr", "grpcio", "pyarrow", "typer"} <= names


def test_the_sdk_imports(light: Path):
    subprocess.run([light / "bin/python", "-W", "error", "-c", "import dmesr; dmesr.connect"], check=True)


@pytest.mark.parametrize(("command", "extra"), [("serve", "server"), ("train", "trainer"), ("demo", "server,trainer")])
def test_a_command_of_a_missing_extra_names_the_line_that_brings_it(light: Path, command: str, extra: str):
    called = subprocess.run([light / "bin/dmesr-cli", command], capture_output=True, text=True)
    assert called.returncode == 2
    assert f"pip install 'dmesr[{extra}]'" in called.stderr
    assert "Traceback" not in called.stderr


def test_help_lists_every_command(light: Path):
    shown = subprocess.run([light / "bin/dmesr-cli", "--help"], check=True, capture_output=True, text=True).stdout
    for command in ("serve", "items", "enrich", "train", "models", "recommend", "demo", "doctor"):
        assert command in shown
