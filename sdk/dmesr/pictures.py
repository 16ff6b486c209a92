"""Pictures on their way to the server: addressed by content, sent only where they are missing, in chunks."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from pathlib import Path

from dmesr.rows import Problem, to_problem
from dmesr.transport import Rpc, Transport
from dmesr.v1 import items_pb2

FIND_MISSING = Rpc(
    "ItemService/FindMissingPictures",
    items_pb2.FindMissingPicturesRequest,
    items_pb2.FindMissingPicturesResponse,
    idempotent=True,
)
UPLOAD = Rpc("ItemService/UploadPictures", items_pb2.UploadPicturesRequest, items_pb2.UploadPicturesResponse)

# The server writes together what has come together; only one chunk of one picture is held here at a time.
_WINDOW = 128

#: Where a picture's bytes come from.
PictureSource = Path | bytes


def _hash(picture: PictureSource, max_bytes: int) -> str | Problem:
    try:
        if isinstance(picture, Path):
            size = picture.stat().st_size
            # Before the file is read: a path may point at something endless.
            if not picture.is_file():
                return _missing(picture, "it is no file")
        else:
            size = len(picture)
        if size > max_bytes:
            return Problem(
                "PICTURE_TOO_LARGE",
                f"the picture has {size} bytes; the server takes at most {max_bytes}: send a smaller one",
                {"size_bytes": str(size), "max_picture_bytes": str(max_bytes)},
            )
        if isinstance(picture, bytes):
            return hashlib.sha256(picture).hexdigest()
        with picture.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        assert isinstance(picture, Path)
        return _missing(picture, error.strerror or str(error))


def _missing(path: Path, why: str) -> Problem:
    return Problem(
        "PICTURE_FILE_NOT_FOUND",
        f"cannot read the picture {path}: {why}; correct the path and upsert the item again",
        {"path": str(path), "error": why},
    )


def _read(picture: PictureSource, start: int, size: int) -> bytes:
    if isinstance(picture, bytes):
        return picture[start : start + size]
    with picture.open("rb") as file:
        file.seek(start)
        return file.read(size)


class PictureUpload:
    """Brings the pictures of one batch after another to a catalog."""

    def __init__(self, transport: Transport, catalog: str) -> None:
        self._transport = transport
        self._catalog = catalog

    async def settle(self, pictures: Mapping[int, PictureSource]) -> dict[int, str | Problem]:
        """Makes sure that the server has these pictures.

        Args:
            pictures: By position in the batch. Files are read a chunk at a time, twice: to hash and to send.

        Returns:
            For each position the sha256 to refer to, or why the server will not have the picture.
        """
        limits = await self._transport.limits()
        hashes = await asyncio.to_thread(
            lambda: {position: _hash(picture, limits.max_picture_bytes) for position, picture in pictures.items()}
        )
        by_hash = {sha256: pictures[position] for position, sha256 in hashes.items() if isinstance(sha256, str)}
        if not by_hash:
            return hashes
        missing = await self._transport.unary(
            FIND_MISSING, items_pb2.FindMissingPicturesRequest(catalog=self._catalog, sha256s=by_hash)
        )
        refused = await self._upload({sha256: by_hash[sha256] for sha256 in missing.missing_sha256s})
        return {
            position: refused.get(sha256, sha256) if isinstance(sha256, str) else sha256
            for position, sha256 in hashes.items()
        }

    async def _upload(self, pictures: Mapping[str, PictureSource]) -> dict[str, Problem]:
        refused: dict[str, Problem] = {}
        if not pictures:
            return refused
        chunks = self._chunks(pictures, refused)
        async with aclosing(self._transport.exchange(UPLOAD, chunks, window=_WINDOW)) as answers:
            async for sha256, answer in answers:
                if answer.outcome == items_pb2.ROW_OUTCOME_REJECTED:
                    refused.setdefault(sha256, to_problem(answer.problem))
        return refused

    async def _chunks(
        self, pictures: Mapping[str, PictureSource], refused: dict[str, Problem]
    ) -> AsyncGenerator[tuple[items_pb2.UploadPicturesRequest, str | None], None]:
        chunk_bytes = await self._transport.chunk_bytes()
        for sha256, picture in pictures.items():
            start, last = 0, False
            while not last:
                try:
                    data = await asyncio.to_thread(_read, picture, start, chunk_bytes)
                except OSError as error:
                    # The file has gone since it was hashed. What was sent of it then fails the server's own check.
                    assert isinstance(picture, Path)
                    refused[sha256] = _missing(picture, error.strerror or str(error))
                    data = b""
                start += len(data)
                last = len(data) < chunk_bytes
                request = items_pb2.UploadPicturesRequest(catalog=self._catalog, sha256=sha256, data=data, last=last)
                yield request, sha256 if last else None
