"""What can be checked before anything heavy is imported: a wrong start is refused at once, in one line."""

from __future__ import annotations

import errno
import ipaddress
import socket
from pathlib import Path

from dmesr_server.config import Config, ServerConfig
from dmesr_server.errors import ServiceError
from dmesr_server.telemetry import traces


class StartError(Exception):
    """The server cannot start. The message is for the person who started it: what is wrong and what to do."""


def check(config: Config, *, ready_file: Path | None) -> None:
    """Checks the address, the certificates, the describer and the ready file.

    Raises:
        StartError: The server could not start.
    """
    _check_exposure(config.server)
    _check_address(config.server)
    check_traces(config)
    for key, path in (
        ("server.tls_key", config.server.tls_key),
        ("server.tls_certificate", config.server.tls_certificate),
        ("server.tls_client_ca", config.server.tls_client_ca),
        ("pictures.fetching.ca", config.pictures.fetching.ca),
    ):
        if path is not None:
            _check_pem(key, path)
    if ready_file is not None and not ready_file.parent.is_dir():
        raise StartError(f"--ready-file: there is no folder {ready_file.parent}; make it first")
    _check_describer(config)


def check_traces(config: Config) -> None:
    """Refuses a start that would be without the traces that the settings ask for.

    Raises:
        StartError: Their packages are missing.
    """
    try:
        traces.check(config.telemetry)
    except traces.TracesUnavailableError as error:
        raise StartError(f"telemetry: {error}") from error


def _check_describer(config: Config) -> None:
    from dmesr_server.enrichment import describers  # last: it takes seconds where the rest takes none

    name = config.enrichment.describer
    if name != describers.IMPORT:
        try:
            describers.create(name, config.enrichment)
        except ServiceError as error:
            raise StartError(f"enrichment.describer: {error.message}") from error


def _check_exposure(config: ServerConfig) -> None:
    """Refuses to let others in without TLS and a token, unless told so in so many words."""
    missing = []
    if config.tls_certificate is None:
        missing.append("no TLS (server.tls_certificate and server.tls_key)")
    if not config.needs_token:
        missing.append("no token (server.token, or server.require_token with tokens that the server made)")
    if missing and not config.insecure and not _is_loopback(config):
        raise StartError(
            f"server.host {config.host!r} can be reached from other machines, but there is {' and '.join(missing)}: "
            "set both, or listen on 127.0.0.1, or say --insecure (server.insecure = true) to let in whoever reaches it"
        )


def _is_loopback(config: ServerConfig) -> bool:
    try:
        found = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise cannot_listen(config, error) from error
    # A name may stand for several addresses; a scope ("%eth0") is no part of one.
    return all(ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found)


def _check_address(config: ServerConfig) -> None:
    """Binds the address once by hand: the kernel's reason is clearer than gRPC's."""
    try:
        found = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise cannot_listen(config, error) from error


def cannot_listen(config: ServerConfig, error: OSError) -> StartError:
    """Why the address cannot be used, and what to do."""
    place = f"{printable(config.host)}:{config.port}"
    if error.errno == errno.EADDRINUSE:
        return StartError(
            f"cannot listen on {place}: another program uses the port; stop it, or choose another with --port "
            "(0 takes a free one)"
        )
    if error.errno == errno.EACCES:
        return StartError(f"cannot listen on {place}: not allowed; choose a port above 1023 with --port")
    why = error.strerror or str(error)
    return StartError(f"cannot listen on {place}: {why}; check server.host and server.port")


def _check_pem(key: str, path: Path) -> None:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StartError(f"{key}: cannot read {path}: {error.strerror}") from error
    if b"-----BEGIN" not in content:
        raise StartError(f"{key}: {path} is not a PEM file")


def printable(host: str) -> str:
    """The host as it stands before a port."""
    return f"[{host}]" if ":" in host else host
