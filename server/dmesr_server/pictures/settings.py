"""Settings of pictures: where they may be fetched from, and what decoding one may cost."""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

_HOST = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?|\[?[0-9a-f:.]+\]?")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FetchingConfig(_Section):
    """Which http(s) URIs of pictures the server fetches itself. None, unless hosts are named."""

    hosts: tuple[str, ...] = ()  # exact names, or "*.example.com" for all below; empty: nothing is fetched
    schemes: tuple[Literal["https", "http"], ...] = ("https",)
    ports: tuple[Annotated[int, Field(ge=1, le=65535)], ...] = (443, 80)
    private_networks: tuple[
        IPv4Network | IPv6Network, ...
    ] = ()  # CIDR; private addresses that are allowed all the same
    max_bytes: int = Field(default=16 * 1024 * 1024, ge=1)  # of one picture; limits.max_picture_bytes holds too
    seconds: float = Field(default=15.0, gt=0)  # of one picture: names, connections, redirects and all its bytes
    batch_seconds: float = Field(default=60.0, gt=0)  # of all pictures of the batches that come in together
    max_redirects: int = Field(default=3, ge=0, le=20)
    concurrency: int = Field(default=8, ge=1, le=256)  # fetches of one API process at a time
    ca: Path | None = None  # PEM; certificates of hosts must then be signed by one of these, not by the system's

    @field_validator("hosts")
    @classmethod
    def _hosts_are_names(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        named = tuple(host.lower().rstrip(".") for host in hosts)
        for host in named:
            if not _HOST.fullmatch(host):
                raise ValueError(
                    f"hosts: {host!r} is neither a host's name nor '*.' and a domain; no port, path or lone '*'"
                )
        return named


class DecodingConfig(_Section):
    """What decoding one picture may cost: it is done in processes that may do nothing else."""

    workers: int = Field(default=2, ge=1, le=64)  # processes beside each API process; enrichment.picture_workers else
    memory_mib: int = Field(default=2048, ge=32)  # address space of such a process, beyond what it begins with
    cpu_seconds: float = Field(default=20.0, gt=0)  # processor time of one picture
    seconds: float = Field(default=60.0, gt=0)  # of one picture by the clock; a busy machine needs more than above
    pictures_per_worker: int = Field(default=10_000, ge=1)  # then a fresh process takes over


class PicturesConfig(_Section):
    """How pictures of unknown origin are handled."""

    fetching: FetchingConfig = FetchingConfig()
    decoding: DecodingConfig = DecodingConfig()
