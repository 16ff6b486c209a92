"""Arrows run one way (docs/architecture.md): who may import whom is a rule, and a rule that matters is a test."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SDK = ROOT / "sdk/dmesr"
SERVER = ROOT / "server/dmesr_server"
TRAINER = ROOT / "trainer/dmesr_trainer"


def _imports(file: Path) -> Iterator[tuple[str, bool]]:
    """Every absolute module that the file imports, and whether the import stands at the top level."""
    tree = ast.parse(file.read_text())
    package = ".".join(file.with_suffix("").relative_to(file.parents[len(file.relative_to(ROOT).parts) - 2]).parts)
    for node in ast.walk(tree):
        top = node in tree.body
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, top
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = package.split(".")[: -node.level]
                yield ".".join([*base, node.module or ""]).rstrip("."), top
            else:
                for alias in node.names:
                    yield f"{node.module}.{alias.name}", top


def _importers(folder: Path, *modules: str) -> list[str]:
    return sorted(
        str(file.relative_to(ROOT))
        for file in folder.rglob("*.py")
        if any(name == module or name.startswith(f"{module}.") for name, _ in _imports(file) for module in modules)
    )


def test_sdk_imports_neither_server_nor_trainer():
    assert _importers(SDK, "dmesr_server", "dmesr_trainer") == []


def test_server_and_trainer_do_not_know_each_other():
    assert _importers(SERVER, "dmesr_trainer") == []
    assert _importers(TRAINER, "dmesr_server") == []


def test_server_uses_of_the_sdk_only_the_wire_and_the_command_line_face():
    uses = {
        name
        for file in SERVER.rglob("*.py")
        for name, _ in _imports(file)
        if name == "dmesr" or name.startswith("dmesr.")
    }
    assert {".".join(name.split(".")[:2]) for name in uses} <= {"dmesr.v1", "dmesr.cli"}


@pytest.mark.parametrize(("module", "owner"), [("lancedb", "store"), ("sqlalchemy", "control"), ("alembic", "control")])
def test_each_database_has_one_owner(module: str, owner: str):
    others = [file for file in _importers(SERVER, module) if not file.startswith(f"server/dmesr_server/{owner}/")]
    assert others == []
    assert _importers(SDK, module) == _importers(TRAINER, module) == []


def test_api_is_above_everything_else():
    below = [SERVER / name for name in ("store", "control", "enrichment", "pictures", "serving", "upkeep")]
    assert [file for folder in below for file in _importers(folder, "dmesr_server.api", "dmesr_server.app")] == []


def test_databases_do_not_know_what_they_serve():
    for name in ("store", "control"):
        assert _importers(SERVER / name, "dmesr_server.enrichment", "dmesr_server.serving") == []


def test_only_the_enricher_loads_encoders():
    """The API process must stay small: importing it may not bring torch."""
    loaded = subprocess.run(
        [sys.executable, "-c", "import dmesr_server.app, sys; print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert loaded.stdout.strip() == "False"


def test_importing_the_sdk_is_light():
    loaded = subprocess.run(
        [sys.executable, "-c", "import dmesr, sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    heavy = {"torch", "lancedb", "sqlalchemy", "pydantic", "onnxruntime", "rich", "typer", "pandas"}
    assert heavy & set(loaded.stdout.split()) == set()


def test_modules_stay_readable():
    """A module is one concern: about 400 lines at most."""
    long = {
        str(file.relative_to(ROOT)): length
        for folder in (SDK, SERVER, TRAINER)
        for file in folder.rglob("*.py")
        if "v1" not in file.parts and (length := len(file.read_text().splitlines())) > 420
    }
    assert long == {}
