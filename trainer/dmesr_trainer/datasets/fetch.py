"""Downloads official archives: resumable, checked against the publisher's checksum, unpacked without surprises."""

from __future__ import annotations

import hashlib
import http.client
import re
import shutil
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dmesr_trainer.datasets.base import DatasetError

_CHUNK_BYTES = 256 * 1024
_TIMEOUT_SECONDS = 30.0  # without a byte
_MAX_UNPACKED_BYTES = 4 * 1024**3


@dataclass(frozen=True)
class Archive:
    """A dataset as its publisher gives it away.

    Attributes:
        url: The zip file. The same with ".md5" after it is the publisher's checksum.
        folder: What the archive unpacks to.
        files: What must be in that folder.
        licence: One line for the person who downloads.
    """

    url: str
    folder: str
    files: tuple[str, ...]
    licence: str


ARCHIVES = {
    "movielens": Archive(
        url="https://files.grouplens.org/datasets/movielens/ml-latest-small.zip",
        folder="ml-latest-small",
        files=("movies.csv", "ratings.csv", "links.csv"),
        licence="GroupLens, for research; cite Harper and Konstan 2015 (see its README.txt)",
    )
}

#: What to do about the datasets that nobody may or should download for you.
BY_HAND = {
    "sample": "it is made on the spot: there is nothing to fetch",
    "yelp": (
        "Yelp wants its licence accepted in a form first: download JSON (about 4 GB packed) and photos (about 7 GB) at "
        "https://business.yelp.com/data/resources/open-dataset, unpack both into one folder (tar -xf) and name it with "
        "--data"
    ),
    "amazon-games": (
        "the files are large, and three releases differ: download reviews_Video_Games.json.gz and "
        "meta_Video_Games.json.gz (2014, nearest to the paper's figures) or Video_Games.json.gz with its metadata "
        "(2018) from https://cseweb.ucsd.edu/~jmcauley/datasets.html, or Video_Games.jsonl.gz and its metadata "
        "(2023) from https://amazon-reviews-2023.github.io, into one folder for each release, and name it with --data"
    ),
    "amazon": (
        "the files are large, and three releases differ: download the reviews and the metadata of one category from "
        "https://cseweb.ucsd.edu/~jmcauley/datasets.html (2014, 2018) or https://amazon-reviews-2023.github.io (2023) "
        "into one folder for each release, and name it with --data"
    ),
    "files": "it is your own: put items.* and interactions.* into a folder and name it with --data",
}


def fetch(
    name: str,
    *,
    into: Path,
    url: str | None = None,
    on_bytes: Callable[[int, int | None], object] | None = None,
) -> Path:
    """Downloads and unpacks a dataset; what is there already is left as it is.

    Args:
        name: "movielens".
        into: The folder to unpack in.
        url: A mirror of the archive.
        on_bytes: Called with the bytes so far and the bytes in all (None where the server does not say).

    Returns:
        The dataset's folder.

    Raises:
        DatasetError: The name has no archive, the server cannot be reached, or what came is not what was promised.
    """
    archive = ARCHIVES.get(name)
    if archive is None:
        how = BY_HAND.get(name, f"what can is {', '.join(ARCHIVES)}")
        raise DatasetError(f"{name!r} cannot be fetched: {how}")
    folder = into / archive.folder
    if all((folder / file).is_file() for file in archive.files):
        return folder
    source = url or archive.url
    try:
        return _fetch(archive, source=source, into=into, on_bytes=on_bytes)
    except OSError as error:
        raise DatasetError(f"cannot write to {into}: {error.strerror or error}; name another folder") from error


def _fetch(archive: Archive, *, source: str, into: Path, on_bytes: Callable[[int, int | None], object] | None) -> Path:
    into.mkdir(parents=True, exist_ok=True)
    partial = into / f"{archive.folder}.zip.part"
    expected = _checksum(source)
    _download(source, partial, on_bytes=on_bytes)
    actual = _md5(partial)
    if actual != expected:
        partial.unlink()
        raise DatasetError(
            f"{source} has the checksum {actual}, but its publisher says {expected}; the download was thrown away: "
            "try again"
        )
    _unpack(partial, into=into, archive=archive)
    partial.unlink()
    return into / archive.folder


def _open(url: str, *, first_byte: int = 0) -> http.client.HTTPResponse:
    headers = {"Range": f"bytes={first_byte}-"} if first_byte else {}
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_SECONDS)  # type: ignore[no-any-return]
    except urllib.error.HTTPError as error:
        with error:
            raise DatasetError(f"{url} answered {error.code} {error.reason}; is the address right?") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise DatasetError(
            f"cannot reach {url}: {reason}; without the internet, put the official files in a folder and name it "
            "with --data"
        ) from error


def _checksum(url: str) -> str:
    try:
        with _open(f"{url}.md5") as answer:
            found = re.search(rb"\b[0-9a-f]{32}\b", answer.read(4096).lower())
    except (OSError, http.client.HTTPException) as error:
        raise DatasetError(f"{url}.md5 broke off ({error}); try again") from error
    if found is None:
        raise DatasetError(f"{url}.md5 holds no MD5 checksum, so the archive could not be checked")
    return found[0].decode()


def _download(url: str, partial: Path, *, on_bytes: Callable[[int, int | None], object] | None) -> None:
    have = partial.stat().st_size if partial.exists() else 0
    try:
        answer = _open(url, first_byte=have)
    except DatasetError as error:
        # All of it is there already: the server has nothing after the last byte.
        if have and isinstance(error.__cause__, urllib.error.HTTPError) and error.__cause__.code == 416:
            return
        raise
    with answer, partial.open("ab" if answer.status == 206 else "wb") as file:
        done = have if answer.status == 206 else 0
        length = answer.headers.get("Content-Length")
        total = done + int(length) if length else None
        try:
            while chunk := answer.read(_CHUNK_BYTES):
                file.write(chunk)
                done += len(chunk)
                if on_bytes:
                    on_bytes(done, total)
        except (OSError, http.client.HTTPException) as error:
            raise DatasetError(f"{url} broke off after {done:,} bytes ({error}); the same command resumes") from error
    if total is not None and done < total:
        raise DatasetError(f"{url} broke off after {done:,} of {total:,} bytes; the same command resumes")


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _unpack(path: Path, *, into: Path, archive: Archive) -> None:
    try:
        with zipfile.ZipFile(path) as packed:
            members = [member for member in packed.infolist() if not member.is_dir()]
            names = [PurePosixPath(member.filename) for member in members]
            if any(name.is_absolute() or ".." in name.parts or name.parts[:1] != (archive.folder,) for name in names):
                raise DatasetError(f"{path} has files outside {archive.folder}/; it is not the official archive")
            missing = {f"{archive.folder}/{file}" for file in archive.files} - {str(name) for name in names}
            if missing:
                raise DatasetError(f"{path} lacks {', '.join(sorted(missing))}; it is not the official archive")
            if sum(member.file_size for member in members) > _MAX_UNPACKED_BYTES:
                raise DatasetError(f"{path} would unpack to more than {_MAX_UNPACKED_BYTES:,} bytes")
            unpacking = into / f"{archive.folder}.unpacking"
            shutil.rmtree(unpacking, ignore_errors=True)
            packed.extractall(unpacking, members)
    except zipfile.BadZipFile as error:
        raise DatasetError(f"{path} is not a zip file; delete it and try again") from error
    # In one step, so that a kill never leaves half a dataset that looks whole.
    shutil.rmtree(into / archive.folder, ignore_errors=True)
    (unpacking / archive.folder).rename(into / archive.folder)
    shutil.rmtree(unpacking)
