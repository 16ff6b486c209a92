"""How long to wait for the server, and whom to trust: what :func:`dmesr.connect` is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc

from dmesr.errors import InvalidInput


@dataclass(frozen=True, kw_only=True)
class Timeout:
    """How long to wait."""

    unary_seconds: float = 30.0  # one call, retries included
    stream_seconds: float = 120.0  # the next message of a stream; the whole stream may take any time

    def __post_init__(self) -> None:
        for name in ("unary_seconds", "stream_seconds"):
            if not getattr(self, name) > 0:
                raise InvalidInput(f"Timeout.{name} must be above 0, not {getattr(self, name)!r}")


@dataclass(frozen=True, kw_only=True)
class TLS:
    """Whom to trust and who we are. All files are PEM."""

    root_certificates: Path | None = None  # the system's roots when None
    client_certificate: Path | None = None  # with client_key, for a server that asks for one
    client_key: Path | None = None
    server_name_override: str | None = None  # where the certificate names another host than the target

    def __post_init__(self) -> None:
        if (self.client_certificate is None) != (self.client_key is None):
            raise InvalidInput("TLS.client_certificate and TLS.client_key go together: give both or neither")

    def credentials(self) -> grpc.ChannelCredentials:
        """Reads the files.

        Raises:
            InvalidInput: A file cannot be read.
        """
        return grpc.ssl_channel_credentials(
            root_certificates=_read_pem(self.root_certificates),
            private_key=_read_pem(self.client_key),
            certificate_chain=_read_pem(self.client_certificate),
        )


def _read_pem(path: Path | None) -> bytes | None:
    try:
        return None if path is None else Path(path).read_bytes()
    except OSError as error:
        raise InvalidInput(f"cannot read the TLS file {path}: {error.strerror}") from error
