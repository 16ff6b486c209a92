"""Client certificates: required, verified, and named in the audit log. Made anew by each run of this test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import dmesr
import grpc
import pytest
from certificates import authority, signed
from dmesr.v1 import admin_pb2 as pb
from running_server import RunningServer
from wire import Stubs


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    ours, others = authority(folder, "ours"), authority(folder, "others")
    for name, by in (("server", ours), ("nightly", ours), ("stranger", others)):
        signed(folder, name, by)
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, certificates: Path) -> Iterator[RunningServer]:
    server = RunningServer(
        tmp_path_factory.mktemp("mtls"),
        enricher=False,
        server__tls_certificate=str(certificates / "server.pem"),
        server__tls_key=str(certificates / "server.key"),
        server__tls_client_ca=str(certificates / "ours.pem"),
    )
    yield server.start()
    server.stop()


def _tls(folder: Path, name: str | None) -> dmesr.TLS:
    return dmesr.TLS(
        root_certificates=folder / "ours.pem",
        client_certificate=None if name is None else folder / f"{name}.pem",
        client_key=None if name is None else folder / f"{name}.key",
    )


def test_who_shows_a_certificate_of_ours_is_let_in_and_named(served: RunningServer, certificates: Path):
    with dmesr.connect(served.address, tls=_tls(certificates, "nightly")) as client:
        client.admin.create_catalog("films")
        (entry,) = client.admin.list_audit()
    assert (entry.method, entry.outcome) == ("AdminService/CreateCatalog", "OK")
    assert entry.who.startswith("certificate ")
    assert "nightly" in entry.who


@pytest.mark.parametrize("name", [None, "stranger"])
def test_who_shows_none_or_one_of_others_is_not(served: RunningServer, certificates: Path, name: str | None):
    retry = dmesr.RetryPolicy(attempts=1)
    with (
        dmesr.connect(served.address, tls=_tls(certificates, name), retry=retry) as client,
        pytest.raises(dmesr.ServerUnavailable),
    ):
        client.admin.server_info()


def test_without_tls_nobody_is(served: RunningServer):
    with grpc.insecure_channel(served.address) as channel, pytest.raises(grpc.RpcError) as caught:
        Stubs.of(channel).admin.GetServerInfo(pb.GetServerInfoRequest())
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_token_is_still_needed_where_one_is_set(start_server: Callable[..., RunningServer], certificates: Path):
    server = start_server(
        enricher=False,
        server__host="0.0.0.0",
        server__token="first-of-all",
        server__tls_certificate=str(certificates / "server.pem"),
        server__tls_key=str(certificates / "server.key"),
        server__tls_client_ca=str(certificates / "ours.pem"),
    )
    address = server.address.replace("0.0.0.0", "127.0.0.1")
    tls = _tls(certificates, "nightly")
    with dmesr.connect(address, tls=tls) as client, pytest.raises(dmesr.Unauthenticated):
        client.admin.server_info()
    with dmesr.connect(address, tls=tls, token="first-of-all") as client:
        assert client.admin.server_info().needs_token
