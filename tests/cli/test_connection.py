"""The global options: token, catalog and server, from flags and from the environment."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from running_server import RunningServer

from .calls import Called

Cli = Callable[..., Called]


def test_a_token_is_asked_for_and_taken(
    cli: Cli, start_server: Callable[..., RunningServer], monkeypatch: pytest.MonkeyPatch
):
    from dmesr.cli import doctor

    monkeypatch.setattr(doctor, "NATIVE", {})
    server = start_server(enricher=False, server__token="secret")
    where = ("--server", server.address, "--catalog", "default")
    refused = cli("items", "list", *where)
    assert refused.code == 1
    assert "[UNAUTHENTICATED]" in refused.err
    assert len(refused.err.splitlines()) == 1
    assert cli("items", "list", *where, "--token", "secret", "--json").json == []
    assert cli("--token", "secret", "items", "list", *where, "--json").json == []
    (check,) = (check for check in cli("doctor", "--json", *where[:2]).json if check["name"] == "server")
    assert check["status"] == "WARN"
    assert "--token" in check["remedy"]
    monkeypatch.setenv("DMESR_TOKEN", "secret")
    assert cli("items", "list", *where, "--json").json == []


def test_flags_beat_the_environment_and_the_nearer_one_wins(cli: Cli, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DMESR_CATALOG", "from-the-environment")
    assert "from-the-environment" in cli("items", "list").err
    assert "from-the-root" in cli("--catalog", "from-the-root", "items", "list").err
    assert "from-the-command" in cli("--catalog", "from-the-root", "items", "list", "--catalog", "from-the-command").err


def test_an_address_without_a_port_is_a_mistake(cli: Cli):
    called = cli("items", "list", "--server", "films")
    assert called.code == 1
    assert len(called.err.splitlines()) == 1
    assert "films" in called.err


def test_a_certificate_file_that_is_not_there_is_a_mistake(cli: Cli):
    called = cli("items", "list", "--ca", "absent.pem")
    assert called.code == 2
    assert "absent.pem" in called.err
