"""How pictures come in: by a URI that the server reads itself, and in chunks from a client."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from dmesr_server.api import validation
from dmesr_server.config import LimitsConfig
from dmesr_server.errors import ServiceError
from dmesr_server.pictures.decoders import Decoders, DecodersUnavailableError
from dmesr_server.pictures.fetching import is_fetched, shown
from dmesr_server.pictures.info import PictureInfo


@dataclass(frozen=True)
class RawPicture:
    """Bytes of the right size and hash that nobody has looked into yet."""

    sha256: str
    data: bytes


@dataclass(frozen=True)
class NewPicture(RawPicture):
    """A picture whose header was read and whose size is within the limits."""

    media_type: str
    width_px: int
    height_px: int


def raw(data: bytes, limits: LimitsConfig, *, sha256: str | None = None) -> RawPicture:
    """Checks bytes from the outside.

    Args:
        data: What is to be a picture.
        limits: The most bytes.
        sha256: What the client says that it hashes to.

    Raises:
        ServiceError: PICTURE_HASH_MISMATCH or PICTURE_TOO_LARGE.
    """
    if len(data) > limits.max_picture_bytes:
        raise too_large(len(data), limits)
    actual = hashlib.sha256(data).hexdigest()
    if sha256 is not None and actual != sha256:
        raise ServiceError(
            "PICTURE_HASH_MISMATCH",
            f"the {len(data)} bytes hash to {actual}, announced was {sha256}; upload the picture again, whole",
            expected=sha256,
            actual=actual,
            bytes=len(data),
        )
    return RawPicture(actual, data)


def inspected(
    pictures: Sequence[RawPicture], limits: LimitsConfig, *, decoders: Decoders
) -> list[NewPicture | ServiceError]:
    """Reads pictures' headers.

    Args:
        pictures: Their bytes.
        limits: The most pixels.
        decoders: Read the headers.

    Returns:
        For each, in order, the picture, or PICTURE_TOO_MANY_PIXELS, PICTURE_UNREADABLE or PICTURE_DECODER_FAILED.
    """
    found: Sequence[PictureInfo | ServiceError]
    try:
        found = decoders.inspect_all([picture.data for picture in pictures], max_pixels=limits.max_picture_pixels)
    except DecodersUnavailableError as error:
        found = [ServiceError("PICTURE_DECODER_FAILED", f"{error}; send the picture again later")] * len(pictures)
    return [
        info
        if isinstance(info, ServiceError)
        else NewPicture(picture.sha256, picture.data, info.media_type, info.width_px, info.height_px)
        for picture, info in zip(pictures, found, strict=True)
    ]


def too_large(size: int, limits: LimitsConfig, *, at_least: bool = False) -> ServiceError:
    """A picture with more bytes than the limit."""
    return ServiceError(
        "PICTURE_TOO_LARGE",
        f"the picture has {'at least ' if at_least else ''}{size} bytes, at most {limits.max_picture_bytes} "
        "(max_picture_bytes) are allowed; send a smaller one",
        expected=limits.max_picture_bytes,
        actual=size,
    )


def read_uri(uri: str, *, roots: Sequence[Path], limits: LimitsConfig) -> RawPicture:
    """Reads a picture from a folder that the configuration allows.

    Args:
        uri: A file:// URI or an absolute path.
        roots: The allowed folders.
        limits: The most bytes.

    Raises:
        ServiceError: PICTURE_URI_NOT_ALLOWED, PICTURE_FILE_NOT_FOUND or PICTURE_TOO_LARGE.
    """
    path = _path_of(uri)
    # Resolved first: a symlink or ".." inside an allowed folder may lead out of it. What lies outside is refused
    # whether it exists or not, so nobody can probe the server's disk.
    resolved = Path(os.path.realpath(path))
    if not any(resolved.is_relative_to(os.path.realpath(root)) for root in roots):
        allowed = ", ".join(str(root) for root in roots) or "none"
        raise _not_allowed(
            uri,
            f"does not lie under a folder that server.picture_roots allows ({allowed})",
        )
    try:
        handle = _opened(resolved)
    except OSError as error:
        raise ServiceError(
            "PICTURE_FILE_NOT_FOUND",
            f"{uri!r:.500} cannot be read on the server: {error.strerror}; check the path",
            uri=uri[:1000],
        ) from error
    about = os.fstat(handle)
    if not stat.S_ISREG(about.st_mode):
        os.close(handle)
        raise ServiceError("PICTURE_FILE_NOT_FOUND", f"{uri!r:.500} is no regular file on the server", uri=uri[:1000])
    with os.fdopen(handle, "rb") as file:
        if about.st_size > limits.max_picture_bytes:
            raise too_large(about.st_size, limits)
        return raw(file.read(limits.max_picture_bytes + 1), limits)


def _opened(path: Path) -> int:
    """Opens a path of which no step is a link, or has become one since. A pipe does not hang the server."""
    flags = os.O_NOFOLLOW | os.O_CLOEXEC
    through = flags | os.O_DIRECTORY | getattr(os, "O_PATH", os.O_RDONLY)  # a folder on the way need not be readable
    place = os.open(path.root, through)
    try:
        for folder in path.parts[1:-1]:
            inner = os.open(folder, through, dir_fd=place)
            os.close(place)
            place = inner
        return os.open(path.name or path.root, flags | os.O_RDONLY | os.O_NONBLOCK, dir_fd=place)
    finally:
        os.close(place)


def _path_of(uri: str) -> str:
    if "\0" in uri:
        raise _not_allowed(uri, "holds a zero byte")
    if is_fetched(uri):
        why = "lies on the network, from which this server fetches nothing (pictures.fetching.hosts)"
        raise _not_allowed(uri, f"{why}; upload the bytes instead")
    if uri.startswith("/"):
        return uri
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise _not_allowed(uri, f"is not a URI: {error}") from error
    if parts.scheme != "file" or parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise _not_allowed(uri, "is neither a file:// URI nor an absolute path of the server; upload the bytes instead")
    path = unquote(parts.path)
    if "\0" in path:
        raise _not_allowed(uri, "holds a zero byte")
    return path


def _not_allowed(uri: str, why: str) -> ServiceError:
    return ServiceError("PICTURE_URI_NOT_ALLOWED", f"{shown(uri)!r} {why}", uri=shown(uri))


@dataclass
class IncomingPicture:
    """A picture of which chunks are still coming. Never holds more than the limit."""

    catalog: str
    sha256: str
    limits: LimitsConfig
    problem: ServiceError | None = None
    _received: int = 0
    _chunks: list[bytes] = field(default_factory=list)

    def add(self, data: bytes) -> None:
        """Takes the next chunk; lets go of everything once the picture is over the limit."""
        if self.problem is not None:
            return
        self._received += len(data)
        if self._received > self.limits.max_picture_bytes:
            self._chunks.clear()
            self.problem = too_large(self._received, self.limits, at_least=True)
        else:
            self._chunks.append(data)

    @property
    def size(self) -> int:
        """Bytes that it holds now."""
        return 0 if self.problem is not None else self._received

    def finish(self) -> RawPicture:
        """The whole picture.

        Raises:
            ServiceError: Why it cannot be taken.
        """
        if self.problem is not None:
            raise self.problem
        validation.sha256("sha256", self.sha256)
        return raw(b"".join(self._chunks), self.limits, sha256=self.sha256)
