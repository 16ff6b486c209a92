"""Fetching against a real HTTP server on this machine: whole, resumed, corrupted, absent."""

from __future__ import annotations

import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from dmesr_trainer.datasets import DatasetError
from dmesr_trainer.datasets.fetch import fetch

FILES = {"movies.csv": "movieId,title,genres\n", "ratings.csv": "userId\n", "links.csv": "movieId\n", "README.txt": "x"}


def archive(names: dict[str, str], *, folder: str = "ml-latest-small") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for name, text in names.items():
            packed.writestr(f"{folder}/{name}", text)
    return buffer.getvalue()


class Mirror:
    """Serves one archive with its checksum and answers ranges."""

    def __init__(self, body: bytes) -> None:
        self.body, self.md5, self.cut_after = body, hashlib.md5(body).hexdigest(), None
        self.first_bytes: list[int] = []
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path.endswith(".md5"):
                    self._answer(200, f"{mirror.md5}  ml-latest-small.zip\n".encode())
                    return
                if self.path != "/ml.zip":
                    self._answer(404, b"")
                    return
                first = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
                mirror.first_bytes.append(first)
                if first >= len(mirror.body):
                    self._answer(416, b"")
                else:
                    self._answer(206 if first else 200, mirror.body[first:], cut=mirror.cut_after)

            def _answer(self, status: int, body: bytes, *, cut: int | None = None) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[:cut])

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/ml.zip"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    made = Mirror(archive(FILES))
    yield made
    made.close()


def test_a_whole_download(mirror: Mirror, tmp_path: Path):
    seen: list[tuple[int, int | None]] = []
    folder = fetch("movielens", into=tmp_path, url=mirror.url, on_bytes=lambda done, total: seen.append((done, total)))
    assert folder == tmp_path / "ml-latest-small"
    assert {path.name for path in folder.iterdir()} == set(FILES)
    assert seen[-1] == (len(mirror.body), len(mirror.body))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ml-latest-small"]


def test_what_is_there_is_not_fetched_again(mirror: Mirror, tmp_path: Path):
    fetch("movielens", into=tmp_path, url=mirror.url)
    fetch("movielens", into=tmp_path, url=mirror.url)
    assert mirror.first_bytes == [0]


def test_a_cut_connection_is_resumed(mirror: Mirror, tmp_path: Path):
    mirror.cut_after = 100
    with pytest.raises(DatasetError, match="broke off after 100"):
        fetch("movielens", into=tmp_path, url=mirror.url)
    mirror.cut_after = None
    folder = fetch("movielens", into=tmp_path, url=mirror.url)
    assert mirror.first_bytes == [0, 100]
    assert (folder / "movies.csv").read_text() == FILES["movies.csv"]


def test_a_download_that_was_whole_already(mirror: Mirror, tmp_path: Path):
    (tmp_path / "ml-latest-small.zip.part").write_bytes(mirror.body)
    assert (fetch("movielens", into=tmp_path, url=mirror.url) / "ratings.csv").exists()


def test_a_wrong_checksum_throws_the_download_away(mirror: Mirror, tmp_path: Path):
    mirror.md5 = "0" * 32
    with pytest.raises(DatasetError, match=f"publisher says {'0' * 32}"):
        fetch("movielens", into=tmp_path, url=mirror.url)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (archive({"movies.csv": ""}), "lacks ml-latest-small/links.csv"),
        (archive({**FILES, "../../evil": ""}), "files outside"),
        (archive(FILES, folder="other"), "files outside"),
        (b"not a zip", "not a zip file"),
    ],
)
def test_an_archive_that_is_not_the_official_one(body: bytes, complaint: str, tmp_path: Path):
    mirror = Mirror(body)
    try:
        with pytest.raises(DatasetError, match=complaint):
            fetch("movielens", into=tmp_path, url=mirror.url)
    finally:
        mirror.close()
    assert not (tmp_path / "ml-latest-small").exists()
    assert not (tmp_path.parent / "evil").exists()


def test_nobody_there(tmp_path: Path):
    with pytest.raises(DatasetError, match=r"cannot reach http://127\.0\.0\.1:1/ml\.zip"):
        fetch("movielens", into=tmp_path, url="http://127.0.0.1:1/ml.zip")


def test_a_wrong_address(mirror: Mirror, tmp_path: Path):
    with pytest.raises(DatasetError, match=r"'yelp' cannot be fetched: .* licence"):
        fetch("yelp", into=tmp_path)
    elsewhere = mirror.url.replace("ml.zip", "nothing.zip")
    with pytest.raises(DatasetError, match="404"):
        fetch("movielens", into=tmp_path, url=elsewhere)
