"""Pictures that a dataset knows by their addresses, from a real HTTP server on this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from dmesr_trainer.cli.datasets import app
from dmesr_trainer.datasets import DatasetError
from dmesr_trainer.datasets.base import PictureUrl
from dmesr_trainer.datasets.fetch_pictures import fetch_pictures
from typer.testing import CliRunner

JPEG, PNG = b"\xff\xd8\xff\xe0 rest", b"\x89PNG\r\n rest"


class Shop:
    """Serves two pictures, a page, a failing address and one that breaks off; remembers what was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        shop = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                shop.asked.append(self.path)
                bodies = {"/a.jpg": JPEG, "/b.jpg": PNG, "/page.jpg": b"<html>", "/cut.jpg": JPEG}
                body = bodies.get(self.path, b"")
                self.send_response(200 if body else 503 if self.path == "/busy.jpg" else 404)
                self.send_header("Content-Length", str(len(body) + (5 if self.path == "/cut.jpg" else 0)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def shop() -> Iterator[Shop]:
    made = Shop()
    yield made
    made.close()


def test_pictures_are_named_by_item_and_by_what_they_are(shop: Shop, tmp_path: Path):
    urls = [PictureUrl("A", f"{shop.address}/a.jpg"), PictureUrl("B", f"{shop.address}/b.jpg")]
    told: list[int] = []
    first = fetch_pictures(urls, into=tmp_path / "new", on_done=told.append)
    assert (first.fetched, first.there, first.failed) == (2, 0, ())
    assert told == [1, 2]
    assert (tmp_path / "new/A.jpg").read_bytes() == JPEG
    assert (tmp_path / "new/B.png").read_bytes() == PNG
    again = fetch_pictures(urls, into=tmp_path / "new")
    assert (again.fetched, again.there) == (0, 2)
    assert len(shop.asked) == 2


def test_what_fails_is_told_and_leaves_nothing(shop: Shop, tmp_path: Path):
    names = {"page": "page.jpg", "gone": "gone.jpg", "busy": "busy.jpg", "cut": "cut.jpg", "../up": "a.jpg"}
    urls = [PictureUrl(item, f"{shop.address}/{name}") for item, name in names.items()]
    urls += [PictureUrl("file", "file:///etc/hostname"), PictureUrl("nobody", "http://127.0.0.1:1/a.jpg")]
    done = fetch_pictures(urls, into=tmp_path)
    why = {one.item_id: one.why for one in done.failed}
    assert done.fetched == 0
    assert why.keys() == {*names, "file", "nobody"}
    assert why["page"] == "what came is no JPEG, PNG or WebP"
    assert "404" in why["gone"]
    assert "503" in why["busy"]
    assert "cannot be the name of a file" in why["../up"]
    assert why["file"] == "its address is neither http nor https"
    assert "refused" in why["nobody"]
    assert (shop.asked.count("/busy.jpg"), shop.asked.count("/gone.jpg")) == (2, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match="cannot write to"):
        fetch_pictures([], into=tmp_path / "file/folder")


def test_the_command_lists_addresses_and_fetches_when_asked(shop: Shop, tmp_path: Path):
    (tmp_path / "Video_Games.json").write_text('{"reviewerID": "u", "asin": "A", "unixReviewTime": 1}\n')
    meta = [{"asin": "A", "imUrl": f"{shop.address}/a.jpg"}, {"asin": "UNSOLD", "imUrl": f"{shop.address}/b.jpg"}]
    (tmp_path / "meta_Video_Games.json").write_text("".join(json.dumps(row) + "\n" for row in meta))
    command = ["pictures", "amazon-games", "--data", str(tmp_path), "--min-user-events", "1", "--min-item-events", "1"]
    assert CliRunner().invoke(app, command).stdout == f"A\t{shop.address}/a.jpg\n"
    listed = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert listed == [{"item_id": "A", "url": f"{shop.address}/a.jpg"}]
    assert shop.asked == []
    fetched = CliRunner().invoke(app, [*command, "--into", str(tmp_path / "pictures")])
    assert "1 pictures fetched" in fetched.stdout
    counted = json.loads(CliRunner().invoke(app, ["stats", *command[1:], "--json"]).stdout)
    assert counted["statistics"]["with_picture"] == 1


def test_a_dataset_without_addresses():
    failed = CliRunner().invoke(app, ["pictures", "sample"])
    assert failed.exit_code == 1
    assert "has no addresses of pictures" in failed.stderr
