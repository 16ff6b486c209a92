"""Downloads the pictures of which a dataset knows the addresses alone, when asked to: a few at a time, resumable."""

from __future__ import annotations

import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from dmesr_trainer.datasets.base import DatasetError, PictureUrl
from dmesr_trainer.datasets.pictures import named_pictures

_TIMEOUT_SECONDS = 30.0  # without a byte
_TRIES = 2
_MAX_BYTES = 20 * 1024**2  # of one picture
_FILE_NAME = re.compile(r"\w[\w.-]*\Z")
# What a file starts with, which says more than its address.
_KINDS = ((b"\xff\xd8\xff", ".jpg"), (b"\x89PNG", ".png"), (b"RIFF", ".webp"))


@dataclass(frozen=True)
class NotFetched:
    """A picture that did not come."""

    item_id: str
    url: str
    why: str


@dataclass(frozen=True)
class FetchedPictures:
    """What a download came to."""

    fetched: int
    there: int  # before
    failed: tuple[NotFetched, ...]


class _NotAPictureError(Exception):
    """What came is none. The message says why."""


def fetch_pictures(
    urls: Iterable[PictureUrl], *, into: Path, parallel: int = 8, on_done: Callable[[int], object] | None = None
) -> FetchedPictures:
    """Downloads pictures to `into`, named by item id; what is there is not fetched again.

    Args:
        urls: Which, streaming.
        into: The folder; it is made where it is missing.
        parallel: Downloads at a time.
        on_done: Called with the number of pictures that have been dealt with.

    Raises:
        DatasetError: The folder cannot be written.
    """
    try:
        into.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatasetError(f"cannot write to {into}: {error.strerror or error}; name another folder") from error
    have = named_pictures(into, default=into)
    there = fetched = 0
    failed: list[NotFetched] = []

    def wanted() -> Iterator[PictureUrl]:
        nonlocal there
        for one in urls:
            if one.item_id in have:
                there += 1
            else:
                yield one

    for one, why in _outcomes(wanted(), into=into, parallel=parallel):
        if why is None:
            fetched += 1
        else:
            failed.append(NotFetched(one.item_id, one.url, why))
        if on_done:
            on_done(there + fetched + len(failed))
    return FetchedPictures(fetched=fetched, there=there, failed=tuple(failed))


def _outcomes(urls: Iterator[PictureUrl], *, into: Path, parallel: int) -> Iterator[tuple[PictureUrl, str | None]]:
    """Each picture with why it did not come, in the order in which they are done."""
    under_way: dict[Future[str | None], PictureUrl] = {}
    with ThreadPoolExecutor(parallel) as pool:
        try:
            for one in urls:
                under_way[pool.submit(_fetch_one, one, into)] = one
                if len(under_way) >= 2 * parallel:
                    yield from _done(under_way)
            while under_way:
                yield from _done(under_way)
        finally:
            for future in under_way:
                future.cancel()


def _done(under_way: dict[Future[str | None], PictureUrl]) -> Iterator[tuple[PictureUrl, str | None]]:
    for future in wait(under_way, return_when=FIRST_COMPLETED).done:
        yield under_way.pop(future), future.result()


def _fetch_one(one: PictureUrl, into: Path) -> str | None:
    if not _FILE_NAME.match(one.item_id):
        return "its item id cannot be the name of a file"
    why = ""
    for _ in range(_TRIES):
        try:
            data = _read(one.url)
        except urllib.error.HTTPError as error:
            error.close()
            why = f"the server answered {error.code} {error.reason}"
            if error.code < 500:
                return why
        except (OSError, ValueError, http.client.HTTPException) as error:
            why = str(getattr(error, "reason", error)) or type(error).__name__
        except _NotAPictureError as error:
            return str(error)
        else:
            partial = into / f"{one.item_id}.part"
            try:
                partial.write_bytes(data)
                partial.replace(into / f"{one.item_id}{_ending(data)}")
            except OSError as error:
                return f"it cannot be written: {error.strerror or error}"
            return None
    return why


def _read(url: str) -> bytes:
    if not url.startswith(("http://", "https://")):
        raise _NotAPictureError("its address is neither http nor https")
    with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as answer:
        data = bytes(answer.read(_MAX_BYTES + 1))
        length = answer.headers.get("Content-Length")
    if len(data) > _MAX_BYTES:
        raise _NotAPictureError(f"it is larger than {_MAX_BYTES:,} bytes")
    if length is not None and len(data) < int(length):
        raise OSError(f"it broke off after {len(data):,} of {int(length):,} bytes")
    if not _ending(data):
        raise _NotAPictureError("what came is no JPEG, PNG or WebP")
    return data


def _ending(data: bytes) -> str:
    return next((ending for start, ending in _KINDS if data.startswith(start)), "")
