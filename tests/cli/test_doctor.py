"""The doctor names what is wrong and what to do, and fails only on what is broken."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dmesr.cli import doctor, main

Checks = dict[str, dict[str, Any]]
Doctor = Callable[..., tuple[int, Checks]]


@pytest.fixture
def free_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], free_address: str
) -> Doctor:
    """Runs the doctor in this process, in a folder of its own, without loading native packages."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DMESR_STORE__URI", raising=False)
    monkeypatch.setattr(doctor, "NATIVE", {})
    monkeypatch.setitem(sys.modules, "torch", None)

    def call(*arguments: str, server: str = free_address) -> tuple[int, Checks]:
        code = main(["--server", server, "doctor", "--json", *arguments])
        return code, {check["name"]: check for check in json.loads(capsys.readouterr().out)}

    return call


def test_a_whole_machine_is_fine(tmp_path: Path, free_address: str):
    """In a process of its own, with every native package loaded."""
    done = subprocess.run(
        [sys.executable, "-m", "dmesr.cli", "doctor", "--store", "new-store", "--server", free_address],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    *lines, total = done.stdout.splitlines()
    assert total.startswith("0 failed")
    names = {line[5:].split(":")[0] for line in lines if not line.startswith("     ")}
    assert names == {
        "python",
        "packages",
        "extra otel",
        "extra postgres",
        "extra server",
        "extra trainer",
        "extra transformers",
        "extra vllm",
        "gpu",
        "weights",
        "store",
        "disk",
        "server",
    }
    assert f"port {free_address.split(':')[1]} is free" in done.stdout
    assert not (tmp_path / "new-store").exists(), "looking must not make a store"


def test_a_missing_extra_is_a_warning_that_names_the_line(run: Doctor, monkeypatch: pytest.MonkeyPatch):
    def version(name: str) -> str:
        if name in ("lancedb", "sqlalchemy"):
            raise PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(doctor, "version", version)
    code, checks = run()
    extra = checks["extra server"]
    assert (code, extra["status"]) == (0, "WARN")
    assert "missing lancedb, sqlalchemy" in extra["detail"]
    assert "pip install --upgrade 'dmesr[server]'" in extra["remedy"]


@pytest.mark.parametrize(
    ("version", "status"), [("0.39.9", "FAIL"), ("0.40.0", "OK"), ("0.49.3.dev1", "OK"), ("0.50.0", "FAIL")]
)
def test_a_version_out_of_range_fails(run: Doctor, monkeypatch: pytest.MonkeyPatch, version: str, status: str):
    monkeypatch.setattr(doctor, "version", lambda name: version if name == "lancedb" else installed(name))
    code, checks = run()
    assert checks["extra server"]["status"] == status
    assert code == (1 if status == "FAIL" else 0)


def test_a_broken_native_library_fails(run: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "broken_native.py").write_text("raise OSError('libgomp.so.1: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(doctor, "NATIVE", {"onnxruntime": "broken_native"})
    code, checks = run()
    assert (code, checks["extra server"]["status"]) == (1, "FAIL")
    assert "libgomp.so.1" in checks["extra server"]["detail"]


def test_a_driver_without_a_gpu_build_of_torch_is_a_warning(run: Doctor, monkeypatch: pytest.MonkeyPatch):
    backends = SimpleNamespace(mps=None)
    cuda = SimpleNamespace(is_available=lambda: False)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda, backends=backends, __version__="2.13.0+cpu"))
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    _, checks = run()
    assert checks["gpu"]["status"] == "WARN"
    assert "CUDA build" in checks["gpu"]["remedy"]


def test_a_store_that_is_a_file_fails(run: Doctor):
    Path("store").write_text("")
    code, checks = run("--store", "store")
    assert (code, checks["store"]["status"]) == (1, "FAIL")
    assert "--store" in checks["store"]["remedy"]


def test_a_store_of_a_newer_version_fails(run: Doctor, tmp_path: Path):
    made = (
        "import lancedb\n"
        "from dmesr_server.store import Store\n"
        "Store(uri='s').close()\n"
        "lancedb.connect('s').open_table('dmesr_store').update(values={'schema_version': 99})\n"
    )
    subprocess.run([sys.executable, "-c", made], check=True, cwd=tmp_path)
    code, checks = run("--store", "s")
    assert (code, checks["store"]["status"]) == (1, "FAIL")
    assert "99" in checks["store"]["remedy"]


@pytest.mark.parametrize(("free", "status"), [(10**8, "FAIL"), (10**9, "WARN"), (10**11, "OK")])
def test_disk_space(run: Doctor, monkeypatch: pytest.MonkeyPatch, free: int, status: str):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    code, checks = run()
    assert checks["disk"]["status"] == status
    assert code == (1 if status == "FAIL" else 0)


def test_a_remote_store_is_left_to_the_server(run: Doctor):
    code, checks = run("--store", "s3://bucket/films")
    assert code == 0
    assert "s3://bucket/films" in checks["store"]["detail"]
    assert "disk" not in checks


def test_a_port_that_something_else_has_fails(run: Doctor):
    with socket.create_server(("127.0.0.1", 0)) as other:
        code, checks = run(server=f"127.0.0.1:{other.getsockname()[1]}")
    assert (code, checks["server"]["status"]) == (1, "FAIL")
    assert "--port" in checks["server"]["remedy"]


def test_an_address_that_is_none_fails(run: Doctor):
    code, checks = run(server="films")
    assert (code, checks["server"]["status"]) == (1, "FAIL")
