"""What becomes of pictures of every kind, read by the processes that read them."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from dmesr_server.errors import ServiceError
from dmesr_server.pictures.info import PictureInfo
from enriching import decoders
from PIL import Image

RED = (220, 30, 20)


def inspect(data: bytes, max_pixels: int) -> PictureInfo:
    (seen,) = decoders().inspect_all([data], max_pixels=max_pixels)
    if isinstance(seen, ServiceError):
        raise seen
    return seen


def decode(data: bytes, max_pixels: int, *, shrink_to_pixels: int | None = None) -> Image.Image:
    return decoders().decode(data, max_pixels=max_pixels, shrink_to_pixels=shrink_to_pixels)


def encoded(picture: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nothing: a decompression bomb costs its maker as little."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
    )


def near(pixel: tuple[int, ...], expected: tuple[int, int, int], tolerance: int = 8) -> bool:
    return all(abs(one - other) <= tolerance for one, other in zip(pixel, expected, strict=True))


@pytest.mark.parametrize(
    ("form", "media_type"),
    [("JPEG", "image/jpeg"), ("PNG", "image/png"), ("GIF", "image/gif"), ("WEBP", "image/webp"), ("BMP", "image/bmp")],
)
def test_header_tells_type_and_size(form: str, media_type: str):
    info = inspect(encoded(Image.new("RGB", (30, 20), RED), form), 10**6)
    assert (info.media_type, info.width_px, info.height_px) == (media_type, 30, 20)


@pytest.mark.parametrize("data", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"GIF89a"])
def test_what_is_no_picture_is_refused(data: bytes):
    for read in (lambda: inspect(data, 10**6), lambda: decode(data, 10**6)):
        with pytest.raises(ServiceError) as caught:
            read()
        assert caught.value.reason == "PICTURE_UNREADABLE"
        assert caught.value.metadata["bytes"] == str(len(data))


def test_bomb_is_refused_from_its_header_alone():
    bomb = png_header(60_000, 60_000)
    for read in (lambda: inspect(bomb, 10**6), lambda: decode(bomb, 1_000_000)):
        with pytest.raises(ServiceError) as caught:
            read()
        assert caught.value.reason == "PICTURE_TOO_MANY_PIXELS"
        assert caught.value.metadata == {
            "width_px": "60000",
            "height_px": "60000",
            "expected": "1000000",
            "actual": "3600000000",
        }


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "TIFF"])
def test_truncated_picture_is_unreadable(form: str):
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    data = encoded(Image.fromarray(noise), form)
    with pytest.raises(ServiceError) as caught:
        decode(data[: len(data) // 2], 10**6)
    assert caught.value.reason == "PICTURE_UNREADABLE"


def test_modes_become_rgb():
    flat = Image.new("RGB", (8, 8), RED)
    for mode, form in (("CMYK", "JPEG"), ("CMYK", "TIFF"), ("P", "PNG"), ("RGBA", "PNG"), ("YCbCr", "JPEG")):
        converted = flat.quantize(4) if mode == "P" else flat.convert(mode)
        decoded = decode(encoded(converted, form), 10**6)
        assert decoded.mode == "RGB"
        assert near(decoded.getpixel((4, 4)), RED), (mode, form)
    lab = decode(encoded(Image.new("LAB", (8, 8), (255, 128, 128)), "TIFF"), 10**6)
    assert near(lab.getpixel((4, 4)), (255, 255, 255))
    for mode in ("1", "L", "LA"):
        assert decode(encoded(flat.convert(mode), "PNG"), 10**6).mode == "RGB"


def test_sixteen_bits_keep_their_range():
    levels = np.array([[0, 32768, 65535]], np.uint16)
    for form in ("PNG", "TIFF"):
        decoded = decode(encoded(Image.fromarray(levels), form), 10**6)
        assert [decoded.getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]
    floats = decode(encoded(Image.fromarray(np.array([[-1.0, 0.0, 1.0]], np.float32)), "TIFF"), 10**6)
    assert [floats.getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]


def test_transparency_stands_on_white():
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert decode(encoded(clear, "PNG"), 10**6).getpixel((0, 0)) == (255, 255, 255)
    indexed = Image.new("P", (4, 4), 0)
    indexed.putpalette([0, 0, 0, 255, 0, 0])
    for transparency in (0, b"\x00\xff"):  # one index, and an alpha for each: the latter makes Pillow warn
        data = encoded(indexed, "PNG", transparency=transparency)
        assert decode(data, 10**6).getpixel((0, 0)) == (255, 255, 255)


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (6, 6), colour) for colour in (RED, (0, 0, 255))]
    for form in ("GIF", "WEBP"):
        data = encoded(frames[0], form, save_all=True, append_images=frames[1:], duration=40)
        assert near(decode(data, 10**6).getpixel((3, 3)), RED)


def test_exif_orientation_is_undone():
    left_red = Image.new("RGB", (40, 20), (255, 255, 255))
    left_red.paste(RED, (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise to see it upright: left becomes top
    decoded = decode(encoded(left_red, "JPEG", exif=exif, quality=95), 10**6)
    assert decoded.size == (20, 40)
    assert near(decoded.getpixel((10, 5)), RED, 20)
    assert near(decoded.getpixel((10, 35)), (255, 255, 255), 20)


def test_shrinking_keeps_the_aspect_and_never_enlarges():
    large = encoded(Image.new("RGB", (1200, 600), RED), "JPEG")
    shrunk = decode(large, 10**6, shrink_to_pixels=5_000)
    assert shrunk.size == (100, 50)
    assert near(shrunk.getpixel((50, 25)), RED)
    small = encoded(Image.new("RGBA", (10, 5), (*RED, 255)), "PNG")
    assert decode(small, 10**6, shrink_to_pixels=5_000).size == (10, 5)
    line = encoded(Image.new("L", (1, 5_000)), "PNG")
    assert decode(line, 10**6, shrink_to_pixels=100).width == 1
