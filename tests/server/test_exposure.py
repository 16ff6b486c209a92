"""Where the server listens: not for other machines without TLS and a token, unless told so in so many words."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from running_server import RunningServer

TLS = {"DMESR_SERVER__TLS_CERTIFICATE": "certificate.pem", "DMESR_SERVER__TLS_KEY": "key.pem"}
TOKEN = {"DMESR_SERVER__TOKEN": "s3cret"}


def refused(folder: Path, *arguments: str, **environment: str) -> str:
    flags = ["serve", "--no-enricher", "--port", "0", "--store", str(folder / "store"), *arguments]
    ran = subprocess.run(
        [sys.executable, "-m", "dmesr_server", *flags],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 1, ran.stderr
    assert not (folder / "store").exists()
    (line,) = ran.stderr.strip().splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_other_machines_need_tls_and_a_token(host: str, workers: str, tmp_path: Path):
    line = refused(tmp_path, "--host", host, "--workers", workers)
    assert repr(host) in line
    for word in ("server.tls_certificate", "server.tls_key", "server.token", "--insecure", "server.insecure"):
        assert word in line


def test_what_is_there_is_not_asked_for_again(tmp_path: Path):
    line = refused(tmp_path, "--host", "0.0.0.0", **TOKEN)
    assert "no TLS" in line
    assert "no token" not in line
    line = refused(tmp_path, "--host", "0.0.0.0", **TLS)
    assert "no token" in line
    assert "no TLS" not in line
    # With both, the next thing that is wrong is told.
    assert "server.tls_key: cannot read" in refused(tmp_path, "--host", "0.0.0.0", **TLS, **TOKEN)


def test_told_in_so_many_words_it_listens(start_server: Callable[..., RunningServer]):
    server = start_server(enricher=False, server__host="0.0.0.0", server__insecure=True)
    assert server.address.startswith("0.0.0.0:")


@pytest.mark.parametrize("token", ["", "two words", "tab\t", "Zürich"])
def test_a_token_that_could_never_match_is_refused(token: str, tmp_path: Path):
    assert "server.token" in refused(tmp_path, DMESR_SERVER__TOKEN=token)


def test_client_certificates_need_tls(tmp_path: Path):
    line = refused(tmp_path, DMESR_SERVER__TLS_CLIENT_CA="ca.pem")
    assert "tls_client_ca needs tls_certificate and tls_key" in line
