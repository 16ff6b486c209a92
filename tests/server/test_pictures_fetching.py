"""Fetching of pictures against real HTTP servers: what is let in, and all the ways in which a host can misbehave."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from certificates import authority, signed
from dmesr_server.errors import ServiceError
from dmesr_server.pictures.fetching import Fetcher, shown
from dmesr_server.pictures.settings import FetchingConfig
from enriching import picture
from picture_host import BLUE, RED, PictureHost, unused_port
from pydantic import ValidationError

LOOPBACK = ("127.0.0.0/8", "::1/128")
NOT_ALLOWED, FAILED, TOO_LARGE = "PICTURE_URI_NOT_ALLOWED", "PICTURE_FETCH_FAILED", "PICTURE_TOO_LARGE"


@pytest.fixture
def host() -> Iterator[PictureHost]:
    running = PictureHost()
    yield running
    running.close()


def settings(*hosts: PictureHost, **changed: Any) -> FetchingConfig:
    """Allows the hosts as localhost, by http."""
    allowed = {
        "hosts": ["localhost"],
        "schemes": ["http"],
        "ports": [host.port for host in hosts],
        "private_networks": LOOPBACK,
    }
    return FetchingConfig.model_validate(allowed | changed)


def fetch(config: FetchingConfig, *uris: str, max_picture_bytes: int = 1_000_000) -> list[bytes | ServiceError]:
    """What becomes of URIs, fetched one after the other."""

    async def all_of_them() -> list[bytes | ServiceError]:
        fetcher = Fetcher(config=config, max_picture_bytes=max_picture_bytes)
        outcomes: list[bytes | ServiceError] = []
        for uri in uris:
            try:
                outcomes.append(await fetcher.fetch(uri))
            except ServiceError as error:
                outcomes.append(error)
        await fetcher.close()
        return outcomes

    return asyncio.run(all_of_them())


def refused(config: FetchingConfig, uri: str, **options: Any) -> ServiceError:
    (outcome,) = fetch(config, uri, **options)
    assert isinstance(outcome, ServiceError), f"{uri} was fetched"
    return outcome


def resolving(monkeypatch: pytest.MonkeyPatch, **answers: list[str]) -> list[str]:
    """Makes names lead to addresses, the next one at each question; what was asked for."""
    asked: list[str] = []
    genuine = socket.getaddrinfo

    def getaddrinfo(name: Any, port: Any, *args: Any, **options: Any) -> Any:
        name = name.decode() if isinstance(name, bytes) else name
        known = answers.get(name.replace(".", "_"))
        if known is None:
            return genuine(name, port, *args, **options)
        asked.append(name)
        addresses = (known.pop(0) if len(known) > 1 else known[0]).split()
        return [
            (socket.AF_INET6 if ":" in one else socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port))
            for one in addresses
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def test_a_picture_comes_without_proxy_credentials_or_cookies(host: PictureHost, monkeypatch: pytest.MonkeyPatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{unused_port()}")
    seen: list[dict[str, str]] = []

    def answer(asking):
        seen.append({name.lower(): value for name, value in asking.headers.items()})
        asking.say(200, picture(RED), **{"Set-Cookie": "who=you"})

    host.answers["/a b/ö.png"] = host.answers["/a%20b/%C3%B6.png"] = answer
    uri = f"http://LOCALHOST:{host.port}/a b/ö.png?size=1#part"
    assert fetch(settings(host), uri, uri) == [picture(RED)] * 2
    assert host.asked == [(f"localhost:{host.port}", "/a%20b/%C3%B6.png?size=1")] * 2
    assert [sorted(headers) for headers in seen] == [["accept", "accept-encoding", "host", "user-agent"]] * 2


def test_nothing_is_fetched_unless_hosts_are_named():
    fetcher = Fetcher(config=FetchingConfig(), max_picture_bytes=1)
    assert not fetcher.is_on
    assert refused(FetchingConfig(), "https://example.com/x.png").reason == NOT_ALLOWED


@pytest.mark.parametrize(
    "hosts", [["*"], ["example.com:443"], ["https://example.com"], ["exa mple.com"], [""], ["*.*"]]
)
def test_hosts_are_names_and_nothing_else(hosts: list[str]):
    with pytest.raises(ValidationError):
        FetchingConfig(hosts=tuple(hosts))


def test_only_what_is_named_may_be_asked(host: PictureHost):
    port = host.port
    config = settings(host, hosts=["localhost", "*.shop.test"])
    for uri, said in {
        f"http://127.0.0.1:{port}/red.png": "host '127.0.0.1'",
        f"http://localhost.shop.evil:{port}/red.png": "host 'localhost.shop.evil'",
        f"http://shop.test:{port}/red.png": "host 'shop.test'",
        f"http://evilshop.test:{port}/red.png": "host 'evilshop.test'",
        f"http://localhost@evil.test:{port}/red.png": "credentials",
        f"http://user:secret@localhost:{port}/red.png": "credentials",
        f"https://localhost:{port}/red.png": "scheme",
        f"http://localhost:{port + 1}/red.png": f"port {port + 1}",
        "http://localhost/red.png": "port 80",
        f"http://localhost:{port}\\@evil.test/red.png": "",
        f"http://evil.test:{port}#@localhost/red.png": "host 'evil.test'",
        f"http://[::1]:{port}/red.png": "host '::1'",
        f"http://0x7f.1:{port}/red.png": "host '0x7f.1'",
        f"http://2130706433:{port}/red.png": "host '2130706433'",
        f"http://ｌocalhost.evil:{port}/red.png": "host",
        "http://": "",
        "http:///red.png": "host ''",
        "http://[": "",
        f"http://localhost:{port}99999/red.png": "",
        "http://localhost:port/red.png": "no URI",
        "http://" + "a" * 5000: "more than 4096 characters",
        f"http://localhost:{port}/\r\nHost: evil.test": "no URI",
    }.items():
        problem = refused(config, uri)
        assert (problem.reason, said in problem.message) == (NOT_ALLOWED, True), (uri, problem.message)
    assert host.asked == []


def test_a_name_that_leads_inside_is_refused(host: PictureHost, monkeypatch: pytest.MonkeyPatch):
    for addresses in ("127.0.0.1", "::1", "::ffff:127.0.0.1", "169.254.169.254", "10.0.0.7", "8.8.8.8 127.0.0.1"):
        resolving(monkeypatch, cdn_test=[addresses])
        config = settings(host, hosts=["cdn.test"], private_networks=[])
        problem = refused(config, f"http://cdn.test:{host.port}/red.png")
        assert problem.reason == NOT_ALLOWED, addresses
        assert "not public" in problem.message
        assert addresses.split()[-1] not in str(problem), "where a name leads inside is nobody's business"
    assert refused(settings(host, private_networks=[]), f"http://localhost:{host.port}/red.png").reason == NOT_ALLOWED
    assert host.asked == []


def test_the_address_that_was_checked_is_the_one_that_is_asked(host: PictureHost, monkeypatch: pytest.MonkeyPatch):
    """DNS rebinding: each later question is answered by an address that is not allowed."""
    inside = PictureHost(address="127.0.0.2", port=host.port)
    try:
        asked = resolving(monkeypatch, cdn_test=["127.0.0.1", "127.0.0.2"])
        config = settings(host, hosts=["cdn.test"], private_networks=["127.0.0.1/32"])
        host.redirect("/again.png", "/red.png")
        uri = f"http://cdn.test:{host.port}"
        first, redirected, later = fetch(config, f"{uri}/red.png", f"{uri}/again.png", f"{uri}/red.png")
        assert first == picture(RED)
        assert len(asked) == 3, "one question for each connection"
        assert [isinstance(one, ServiceError) and one.reason for one in (redirected, later)] == [NOT_ALLOWED] * 2
        assert len(host.asked) == 1
        assert inside.asked == []
    finally:
        inside.close()


def test_redirects_are_followed_and_each_is_checked(host: PictureHost):
    other = PictureHost()
    try:
        config = settings(host, other, max_redirects=2)
        base = f"http://localhost:{host.port}"
        host.redirect("/relative.png", "red.png", status=307)
        host.redirect("/elsewhere.png", f"http://localhost:{other.port}/blue.png", status=301)
        host.redirect("/twice.png", "/relative.png")
        host.redirect("/thrice.png", "/twice.png")
        host.redirect("/loop.png", "/loop.png")
        got = fetch(config, *(f"{base}/{name}.png" for name in ("relative", "elsewhere", "twice")))
        assert got == [picture(RED), picture(BLUE), picture(RED)]
        for name in ("thrice", "loop"):
            problem = refused(config, f"{base}/{name}.png")
            assert problem.reason == FAILED
            assert "more than 2 times" in problem.message

        before = len(other.asked)
        for to in (
            f"http://127.0.0.1:{other.port}/red.png",
            "http://169.254.169.254/latest/meta-data/",
            f"//evil.test:{other.port}/red.png",
            f"http://user:secret@localhost:{other.port}/red.png",
            f"http://localhost:{unused_port()}/red.png",
            "file:///etc/passwd",
            "ftp://localhost/red.png",
            "javascript:alert(1)",
            "/" + "a" * 5000,
        ):
            host.redirect("/away.png", to)
            assert refused(config, f"{base}/away.png").reason == NOT_ALLOWED, to
        for to in ("http://[", "http://[::1/x", "http://localhost:port/"):
            host.redirect("/broken.png", to)
            assert refused(config, f"{base}/broken.png").reason in (NOT_ALLOWED, FAILED), to
        assert len(other.asked) == before
    finally:
        other.close()


def test_bodies_are_bounded_while_they_come(host: PictureHost):
    config = settings(host, max_bytes=300_000)
    host.answers["/endless.png"] = host.pour
    problem = refused(config, f"http://localhost:{host.port}/endless.png")
    assert (problem.reason, problem.metadata["expected"]) == (TOO_LARGE, "300000")
    assert host.gave_up.wait(20), "the connection goes on"
    host.answers["/announced.png"] = lambda asking: asking.say(200, b"\0" * 300_001)
    assert refused(config, f"http://localhost:{host.port}/announced.png").metadata["actual"] == "300001"
    # limits.max_picture_bytes holds too.
    small = refused(config, f"http://localhost:{host.port}/red.png", max_picture_bytes=20)
    assert (small.reason, small.metadata["expected"]) == (TOO_LARGE, "20")


def test_slow_hosts_are_given_up(host: PictureHost):
    config = settings(host, seconds=0.3)
    host.answers |= {"/drip.png": host.drip, "/silent.png": host.say_nothing}
    for path in ("drip", "silent"):
        problem = refused(config, f"http://localhost:{host.port}/{path}.png")
        assert problem.reason == FAILED
        assert "pictures.fetching.seconds" in problem.message
    patient = settings(host)
    assert fetch(patient, f"http://localhost:{host.port}/red.png") == [picture(RED)], "and then goes on"


def test_connections_are_kept_and_may_be_closed_at_any_moment(host: PictureHost, monkeypatch: pytest.MonkeyPatch):
    host.answers |= {
        "/kept.png": lambda asking: asking.say(200, picture(RED), last=False),
        "/closed.png": lambda asking: asking.say(200, picture(BLUE), last=None),  # closes and does not say so
    }
    asked = resolving(monkeypatch, cdn_test=["127.0.0.1"])
    base = f"http://cdn.test:{host.port}"
    config = settings(host, hosts=["cdn.test"])
    assert fetch(config, *[f"{base}/kept.png"] * 5) == [picture(RED)] * 5
    assert len(asked) == 1
    assert fetch(config, *[f"{base}/kept.png", f"{base}/closed.png"] * 5) == [picture(RED), picture(BLUE)] * 5


def test_what_is_no_picture_by_its_head_is_not_read(host: PictureHost):
    config = settings(host)
    host.answers |= {
        "/page.png": lambda asking: asking.say(200, b"<html>", kind="text/html; charset=utf-8"),
        "/empty.png": lambda asking: asking.say(204, b""),
        "/error.png": lambda asking: asking.say(500, b"", kind="image/png"),
        "/nowhere.png": lambda asking: asking.say(302, b""),
        "/zipped.png": lambda asking: asking.say(200, b"\x1f\x8b", **{"Content-Encoding": "gzip"}),
        "/cut.png": lambda asking: asking.say(200, b"\x89PNG", **{"Content-Length": "100"}),
        "/nonsense.png": lambda asking: asking.wfile.write(b"hello\r\n\r\n"),
        "/nothing.png": lambda asking: None,
    }
    for path in (*host.answers, "/missing.png"):
        if path not in ("/red.png", "/blue.png"):
            assert refused(config, f"http://localhost:{host.port}{path}").reason == FAILED, path
    host.answers["/plain.png"] = lambda asking: asking.say(200, picture(RED), kind="binary/octet-stream")
    assert fetch(config, f"http://localhost:{host.port}/plain.png") == [picture(RED)]


def test_a_host_that_is_away_is_no_fault_of_the_servers(monkeypatch: pytest.MonkeyPatch):
    port = unused_port()
    config = settings(hosts=["localhost", "gone.invalid"], ports=[port])
    assert refused(config, f"http://localhost:{port}/red.png").reason == FAILED

    def unknown(*args: Any, **options: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    problem = refused(config, f"http://gone.invalid:{port}/red.png")
    assert problem.reason == FAILED
    assert "no address" in problem.message


def test_tls_is_verified_for_the_name_and_not_for_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ours, others = authority(tmp_path, "ours"), authority(tmp_path, "others")
    host = PictureHost(certificate=signed(tmp_path, "shop", ours))  # names localhost and 127.0.0.1
    plain = PictureHost()
    try:
        trusting = settings(host, plain, schemes=["https", "http"], hosts=["localhost", "cdn.test"], ca=str(ours))
        assert fetch(trusting, f"https://localhost:{host.port}/red.png") == [picture(RED)]

        resolving(monkeypatch, cdn_test=["127.0.0.1"])  # an address in the certificate, under a name that is not
        uri = f"https://cdn.test:{host.port}/red.png"
        assert refused(trusting, uri).reason == FAILED
        for ca in (str(others), None):
            stranger = settings(host, schemes=["https"], ca=ca)
            assert refused(stranger, f"https://localhost:{host.port}/red.png").reason == FAILED

        host.redirect("/down.png", f"http://localhost:{plain.port}/red.png")
        problem = refused(trusting, f"https://localhost:{host.port}/down.png")
        assert problem.reason == NOT_ALLOWED
        assert "from https to http" in problem.message
        assert plain.asked == []
    finally:
        host.close()
        plain.close()


def test_secrets_of_uris_are_not_shown(host: PictureHost):
    assert shown("https://me:pass@shop.test:8443/a.png?token=t#f") == "https://shop.test:8443/a.png?…"
    assert shown("http://shop.test/a.png") == "http://shop.test/a.png"
    assert "pass" not in shown("https://me:pass@[broken/a.png?token=t")
    assert shown("/srv/pictures/a?b.png") == "/srv/pictures/a?b.png"
    for uri in (f"http://me:pa55@localhost:{host.port}/red.png", f"http://localhost:{host.port}/gone.png?token=pa55"):
        problem = refused(settings(host), uri)
        assert "pa55" not in f"{problem} {problem.message} {problem.metadata}"
