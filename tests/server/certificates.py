"""Certificates for a test, made anew by each run."""

from __future__ import annotations

import subprocess
from pathlib import Path


def authority(folder: Path, name: str) -> Path:
    """A certificate authority: NAME.pem and NAME.key."""
    certificate = folder / f"{name}.pem"
    key = certificate.with_suffix(".key")
    _openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"),
        *("-subj", f"/CN={name}", "-keyout", key, "-out", certificate),
    )
    return certificate


def signed(folder: Path, name: str, by: Path) -> Path:
    """A certificate that an authority has signed, for this machine's address and name too."""
    certificate, request, extensions = (folder / f"{name}{ending}" for ending in (".pem", ".csr", ".ext"))
    extensions.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost")
    _openssl(
        *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/O=Shop/CN={name}"),
        *("-keyout", certificate.with_suffix(".key"), "-out", request),
    )
    _openssl(
        *("x509", "-req", "-in", request, "-CA", by, "-CAkey", by.with_suffix(".key")),
        *("-days", "2", "-extfile", extensions, "-out", certificate),
    )
    return certificate


def _openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
