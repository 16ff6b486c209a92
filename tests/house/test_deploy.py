"""The files of deploy/: their settings are settings, what they copy is there, and the health check tells the truth."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
import yaml
from dmesr_server.cli import enricher, serve
from dmesr_server.config import load
from running_server import RunningServer
from typer.main import get_command

DEPLOY = Path(__file__).parents[2] / "deploy"
SECRETS = {"DMESR_TOKEN": "t0ken", "POSTGRES_PASSWORD": "pw", "S3_KEY": "key", "S3_SECRET": "secret"}


def test_the_configuration_file_is_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DMESR_SERVER__TOKEN", "t0ken")
    config = load(file=DEPLOY / "dmesr.toml")
    assert config.server.needs_token
    assert config.server.tls_certificate is not None
    assert config.store.folder == Path("/var/lib/dmesr/store")


@pytest.mark.parametrize("files", [["compose.yaml"], ["compose.yaml", "compose.gpu.yaml"]], ids=["cpu", "gpu"])
def test_the_variables_of_compose_are_settings(files: list[str], monkeypatch: pytest.MonkeyPatch):
    for service in ("api", "enricher"):
        variables: dict[str, str] = {}
        for file in files:
            described = yaml.safe_load((DEPLOY / file).read_text())["services"].get(service, {})
            variables |= described.get("environment", {})
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                if name.startswith("DMESR_") and not name.startswith("DMESR_HEALTH"):
                    patch.setenv(name, re.sub(r"\$\{(\w+):\?\}", lambda found: SECRETS[found[1]], value))
            config = load()
        assert config.store.uri == "s3://dmesr/store"
        assert config.store.resolved_control_url == "postgresql://dmesr:pw@postgres:5432/dmesr"
        assert config.server.token == "t0ken"
        assert config.enrichment.describer == ("vllm" if service == "enricher" and len(files) > 1 else "palette")


def test_every_command_that_is_started_has_these_options():
    command = re.search(r"^ExecStart=\S+/dmesr-cli (.+)$", (DEPLOY / "dmesr.service").read_text(), re.MULTILINE)
    image = re.search(r"^CMD \[(.+)\]$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert command is not None
    assert image is not None
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    commands = [command[1].split(), re.findall(r'"([^"]+)"', image[1])]
    commands += [services[name]["command"] for name in ("api", "enricher")]
    known = {"serve": serve, "enricher": enricher}
    for name, *arguments in commands:
        app = typer.Typer()
        app.command()(known[name])
        options = {
            option for parameter in get_command(app).params for option in (*parameter.opts, *parameter.secondary_opts)
        }
        assert {one for one in arguments if one.startswith("--")} <= options, name


def test_what_the_images_copy_is_there_and_not_ignored():
    ignore = (DEPLOY.parent / ".dockerignore").read_text().splitlines()
    for line in re.findall(r"^COPY (?!--from)(.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE):
        for source in line.split():
            assert (DEPLOY.parent / source).exists(), source
            assert f"!{source.split('/')[0]}" in ignore, source


def test_the_health_check_tells_who_serves(start_server: Callable[..., RunningServer]):
    def asked(address: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, DEPLOY / "healthy.py"],
            env=os.environ | {"DMESR_HEALTH_ADDRESS": address},
            capture_output=True,
            text=True,
        )

    server = start_server(enricher=False)
    assert asked(server.address).returncode == 0
    server.stop()
    gone = asked(server.address)
    assert gone.returncode == 1
    assert "UNAVAILABLE" in gone.stderr
    assert "Traceback" not in gone.stderr
