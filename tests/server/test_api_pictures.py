"""Pictures over a real socket: chunks, hashes, limits, URIs, and items whose picture cannot be taken."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from dmesr.v1 import items_pb2 as pb
from PIL import Image
from wire import Stubs, failure_of, reason

INSERTED, UNCHANGED, REJECTED = pb.ROW_OUTCOME_INSERTED, pb.ROW_OUTCOME_UNCHANGED, pb.ROW_OUTCOME_REJECTED


def png(colour: tuple[int, int, int] = (200, 30, 30), size: tuple[int, int] = (8, 6)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def noise(pixels: int) -> bytes:
    """A sound BMP of about 3 bytes a pixel: nothing compresses it."""
    buffer = io.BytesIO()
    side = int(pixels**0.5)
    values = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(values).save(buffer, "BMP")
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG of a few bytes whose header announces 50,000 × 50,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def chunks(
    catalog: str, data: bytes, *, sha256: str | None = None, size: int = 1 << 20, last: bool = True
) -> Iterator[pb.UploadPicturesRequest]:
    starts = range(0, max(len(data), 1), size)
    for start in starts:
        yield pb.UploadPicturesRequest(
            catalog=catalog,
            sha256=sha256 if sha256 is not None else sha(data),
            data=data[start : start + size],
            last=last and start == starts[-1],
        )


def upload(stubs: Stubs, requests: Iterable[pb.UploadPicturesRequest]) -> list[pb.UploadPicturesResponse]:
    return list(stubs.items.UploadPictures(iter(list(requests))))


def download(stubs: Stubs, catalog: str, sha256: str) -> tuple[bytes, str]:
    pieces = list(stubs.items.GetPicture(pb.GetPictureRequest(catalog=catalog, sha256=sha256)))
    data = b"".join(piece.data for piece in pieces)
    assert pieces[0].size_bytes == len(data)
    return data, pieces[0].media_type


def upsert(stubs: Stubs, catalog: str, **pictures: pb.PictureRef | None) -> list[pb.RowResult]:
    items = [pb.Item(item_id=item_id, picture=picture) for item_id, picture in pictures.items()]
    (answer,) = stubs.items.UpsertItems(iter([pb.UpsertItemsRequest(catalog=catalog, items=items)]))
    return list(answer.results)


def picture_of(stubs: Stubs, catalog: str, item_id: str) -> str | None:
    (found,) = stubs.items.GetItems(pb.GetItemsRequest(catalog=catalog, item_ids=[item_id])).items
    return found.picture.sha256 if found.HasField("picture") else None


def test_up_and_down_in_chunks_beyond_a_message(stubs: Stubs, catalog: str):
    large = noise(1_800_000)  # about 5.4 MB: more than the 4 MiB of a message
    assert len(large) > 5_000_000
    small = png()
    request = pb.FindMissingPicturesRequest(catalog=catalog, sha256s=[sha(large), sha(small), sha(large)])
    assert list(stubs.items.FindMissingPictures(request).missing_sha256s) == [sha(large), sha(small)]
    # Its pixels are over the module's limit; the bytes are not.
    answers = upload(stubs, [*chunks(catalog, large), *chunks(catalog, small)])
    assert [(answer.sha256, answer.outcome) for answer in answers] == [(sha(large), REJECTED), (sha(small), INSERTED)]
    assert reason(answers[0].problem) == "PICTURE_TOO_MANY_PIXELS"

    padded = small + b"\0" * 4_500_000  # decoders stop at the end of the picture
    answers = upload(stubs, [*chunks(catalog, padded, size=700_000), *chunks(catalog, small)])
    assert [answer.outcome for answer in answers] == [INSERTED, UNCHANGED]
    assert download(stubs, catalog, sha(padded)) == (padded, "image/png")
    assert list(stubs.items.FindMissingPictures(request).missing_sha256s) == [sha(large)]


def test_each_bad_picture_is_refused_alone_and_in_order(stubs: Stubs, catalog: str):
    first, last = png((1, 2, 3)), png((3, 2, 1))
    too_large = first + b"\0" * (7 * 1024 * 1024)
    requests = [
        *chunks(catalog, first),
        *chunks(catalog, b"this is no picture"),
        *chunks(catalog, bomb()),
        *chunks(catalog, too_large),
        *chunks(catalog, png((9, 9, 9)), sha256=sha(b"something else")),
        *chunks(catalog, png((8, 8, 8)), sha256="ABC"),
        *chunks(catalog, b""),
        *chunks(catalog, png((7, 7, 7))[:40], sha256=sha(png((7, 7, 7))), last=False),  # cut short by the next one
        *chunks(catalog, last, last=False),  # whole, but nobody said so
    ]
    answers = upload(stubs, requests)
    said = [reason(a.problem) if a.outcome == REJECTED else a.outcome for a in answers]
    assert said == [
        INSERTED,
        "PICTURE_UNREADABLE",
        "PICTURE_TOO_MANY_PIXELS",
        "PICTURE_TOO_LARGE",
        "PICTURE_HASH_MISMATCH",
        "INVALID_FIELD",
        "PICTURE_UNREADABLE",
        "PICTURE_HASH_MISMATCH",
        INSERTED,
    ]
    assert answers[4].problem.metadata["expected"] == sha(b"something else")
    assert download(stubs, catalog, sha(last))[0] == last


def test_many_small_pictures_are_written_together(stubs: Stubs, catalog: str):
    pictures = [png((n, 0, 0)) for n in range(120)]
    answers = upload(stubs, [request for data in pictures for request in chunks(catalog, data)])
    assert [answer.sha256 for answer in answers] == [sha(data) for data in pictures]
    assert {answer.outcome for answer in answers} == {INSERTED}


def test_an_unknown_picture_cannot_be_downloaded(stubs: Stubs, catalog: str):
    request = pb.GetPictureRequest(catalog=catalog, sha256="0" * 64)
    failure = failure_of(lambda: list(stubs.items.GetPicture(request)))
    assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "PICTURE_NOT_FOUND")
    request = pb.GetPictureRequest(catalog=catalog, sha256="../../etc/passwd")
    assert failure_of(lambda: list(stubs.items.GetPicture(request))).fields == ["sha256"]


def test_items_keep_change_and_lose_their_picture(stubs: Stubs, catalog: str):
    one, two = png((1, 1, 1)), png((2, 2, 2))
    upload(stubs, [*chunks(catalog, one), *chunks(catalog, two)])
    upsert(stubs, catalog, a=pb.PictureRef(sha256=sha(one)), b=None)
    assert picture_of(stubs, catalog, "a") == sha(one)
    (kept, none) = upsert(stubs, catalog, a=pb.PictureRef(keep=True), b=pb.PictureRef(keep=True))
    assert (kept.outcome, none.outcome) == (UNCHANGED, UNCHANGED)
    assert upsert(stubs, catalog, a=pb.PictureRef(sha256=sha(two)))[0].outcome == pb.ROW_OUTCOME_UPDATED
    assert picture_of(stubs, catalog, "a") == sha(two)
    upsert(stubs, catalog, a=None)
    assert picture_of(stubs, catalog, "a") is None


def test_an_item_whose_picture_is_missing_stands_without_it(stubs: Stubs, catalog: str):
    unknown, malformed = upsert(stubs, catalog, a=pb.PictureRef(sha256="0" * 64), b=pb.PictureRef(sha256="nonsense"))
    assert (unknown.outcome, reason(unknown.picture_problem)) == (INSERTED, "PICTURE_NOT_FOUND")
    assert (malformed.outcome, reason(malformed.picture_problem)) == (INSERTED, "INVALID_FIELD")
    assert not unknown.HasField("problem")
    assert picture_of(stubs, catalog, "a") is None


def test_uris_are_read_from_the_allowed_folder_only(stubs: Stubs, catalog: str, picture_root: Path, tmp_path: Path):
    inside, outside = picture_root / "ein bild.png", tmp_path / "secret.png"
    inside.write_bytes(png((5, 5, 5)))
    outside.write_bytes(png((6, 6, 6)))
    (picture_root / "link.png").symlink_to(outside)
    (picture_root / "inner-link.png").symlink_to(inside)
    (picture_root / "folder").mkdir()
    (picture_root / "text.png").write_text("no picture")
    (picture_root / "big.png").write_bytes(b"\0" * (6 * 1024 * 1024 + 1))
    os.mkfifo(picture_root / "pipe.png")
    taken = {
        "path": str(inside),
        "uri": inside.as_uri(),
        "localhost": f"file://localhost{inside.as_uri().removeprefix('file://')}",
        "inner": str(picture_root / "inner-link.png"),
        "dots": str(picture_root / "folder" / ".." / "ein bild.png"),
    }
    refused = {
        "outside": (str(outside), "PICTURE_URI_NOT_ALLOWED"),
        "nothing_outside": ("/etc/no-such-file", "PICTURE_URI_NOT_ALLOWED"),
        "link": (str(picture_root / "link.png"), "PICTURE_URI_NOT_ALLOWED"),
        "climb": (f"{picture_root}/../{tmp_path.name}/secret.png", "PICTURE_URI_NOT_ALLOWED"),
        "escaped": (f"file://{picture_root}/%2e%2e/%2e%2e/etc/hostname", "PICTURE_URI_NOT_ALLOWED"),
        "neighbour": (f"{picture_root}-other/x.png", "PICTURE_URI_NOT_ALLOWED"),
        "http": ("http://127.0.0.1/x.png", "PICTURE_URI_NOT_ALLOWED"),
        "host": ("file://example.com/x.png", "PICTURE_URI_NOT_ALLOWED"),
        "relative": ("x.png", "PICTURE_URI_NOT_ALLOWED"),
        "zero": (f"file://{picture_root}/a%00b", "PICTURE_URI_NOT_ALLOWED"),
        "missing": (str(picture_root / "missing.png"), "PICTURE_FILE_NOT_FOUND"),
        "directory": (str(picture_root / "folder"), "PICTURE_FILE_NOT_FOUND"),
        "pipe": (str(picture_root / "pipe.png"), "PICTURE_FILE_NOT_FOUND"),
        "text": (str(picture_root / "text.png"), "PICTURE_UNREADABLE"),
        "big": (str(picture_root / "big.png"), "PICTURE_TOO_LARGE"),
    }
    wanted = taken | {name: uri for name, (uri, _) in refused.items()}
    results = upsert(stubs, catalog, **{name: pb.PictureRef(uri=uri) for name, uri in wanted.items()})
    assert {result.outcome for result in results} == {INSERTED}
    problems = {
        result.item_id: reason(result.picture_problem) for result in results if result.HasField("picture_problem")
    }
    assert problems == {name: said for name, (_, said) in refused.items()}
    for name in taken:
        assert picture_of(stubs, catalog, name) == sha(inside.read_bytes()), name
    for name in refused:
        assert picture_of(stubs, catalog, name) is None


@pytest.mark.parametrize("mode", ["CMYK", "I;16", "animated"])
def test_unusual_pictures_are_taken(stubs: Stubs, catalog: str, mode: str):
    buffer = io.BytesIO()
    if mode == "animated":
        frames = [Image.new("RGB", (9, 9), (n, 0, 0)) for n in (0, 100, 200)]
        frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    else:
        Image.new(mode, (9, 9)).save(buffer, "TIFF" if mode == "CMYK" else "PNG")
    (answer,) = upload(stubs, chunks(catalog, buffer.getvalue()))
    assert answer.outcome == INSERTED
