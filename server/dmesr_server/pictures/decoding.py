"""Reads pictures of unknown origin: what they are, and their pixels as plain RGB. Runs in `decoder_process` alone.

Nothing but Pillow and numpy is imported here: the process that runs this should be small and soon there.

Pillow's own limit on pixels is switched off: it warns at one size and raises at another, both global. Every picture is
held against the caller's limit instead, right after the header was read and before any pixel is.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator

import numpy as np
from PIL import AvifImagePlugin, ExifTags, Image, ImageCms, UnidentifiedImageError

from dmesr_server.pictures.info import PictureInfo

#: Formats that are read. Those that run programs (EPS, WMF) or hold no picture of their own are left out.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "TIFF", "BMP", "JPEG2000", "PPM")

Image.MAX_IMAGE_PIXELS = None
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # this process may not start any

# Modes that Pillow resizes with proper filters; others are converted first.
_RESIZABLE = frozenset({"L", "RGB", "RGBA", "CMYK", "YCbCr"})
_TURNS = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT,),
    3: (Image.Transpose.ROTATE_180,),
    4: (Image.Transpose.FLIP_TOP_BOTTOM,),
    5: (Image.Transpose.TRANSPOSE,),
    6: (Image.Transpose.ROTATE_270,),
    7: (Image.Transpose.TRANSVERSE,),
    8: (Image.Transpose.ROTATE_90,),
}  # EXIF orientation → what undoes it


class UnusablePicture(Exception):  # noqa: N818 - reads as what it is
    """A picture that cannot be taken.

    Attributes:
        reason: Of `proto/dmesr/v1/errors.proto`, for instance "PICTURE_UNREADABLE".
        message: One sentence.
        metadata: Every variable of the message.
    """

    def __init__(self, reason: str, message: str, **metadata: object):
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata = {key: str(value) for key, value in metadata.items()}


def inspect(data: bytes, max_pixels: int) -> PictureInfo:
    """Reads a picture's header; touches no pixel.

    Args:
        data: The picture's bytes.
        max_pixels: A picture with more is refused.

    Raises:
        UnusablePicture: PICTURE_UNREADABLE or PICTURE_TOO_MANY_PIXELS.
        MemoryError: The process may not take as much as it needs.
    """
    with _opened(data, max_pixels=max_pixels) as picture:
        return PictureInfo(
            media_type=Image.MIME.get(picture.format or "", "application/octet-stream"),
            width_px=picture.width,
            height_px=picture.height,
        )


def decode(data: bytes, max_pixels: int, *, shrink_to_pixels: int | None = None) -> Image.Image:
    """Reads a picture's pixels: the first frame, upright, as RGB, transparency on white.

    Args:
        data: The picture's bytes.
        max_pixels: A picture with more is refused.
        shrink_to_pixels: Scale down to about this many pixels, keeping the aspect; never up. None keeps the size.

    Returns:
        A picture of mode "RGB" that owns its pixels.

    Raises:
        UnusablePicture: PICTURE_UNREADABLE (cut short, broken, an unknown format) or PICTURE_TOO_MANY_PIXELS.
        MemoryError: The process may not take as much as it needs.
    """
    with _opened(data, max_pixels=max_pixels) as picture:
        try:
            turn = picture.getexif().get(ExifTags.Base.Orientation)
        except Exception:  # broken EXIF says nothing about the pixels
            turn = None
        size = _size(picture, shrink_to_pixels)
        if size != picture.size:
            # JPEG decodes at 1/2, 1/4 or 1/8 for free; twice the wanted size leaves the filter something to do.
            picture.draft(None, (2 * size[0], 2 * size[1]))
        picture.load()
        shrunk = _resized(picture, size) if picture.mode in _RESIZABLE else picture
        rgb = _resized(_rgb(shrunk), size)
        for step in _TURNS.get(turn or 1, ()):
            rgb = rgb.transpose(step)
        return rgb.copy() if rgb is picture else rgb


@contextlib.contextmanager
def _opened(data: bytes, *, max_pixels: int) -> Iterator[Image.Image]:
    """The opened picture. Whatever goes wrong inside becomes a reason: decoders raise anything on hostile bytes."""
    try:
        # libwebp takes memory for all pixels when the header is read; of it alone Pillow asks for the size first.
        Image.MAX_IMAGE_PIXELS = max_pixels if data[8:12] == b"WEBP" else None
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            pixels = picture.width * picture.height
            if pixels > max_pixels:
                raise UnusablePicture(
                    "PICTURE_TOO_MANY_PIXELS",
                    f"the picture is {picture.width}×{picture.height}, {pixels} pixels; at most {max_pixels} "
                    "(max_picture_pixels) are allowed; send a smaller one",
                    width_px=picture.width,
                    height_px=picture.height,
                    expected=max_pixels,
                    actual=pixels,
                )
            if pixels == 0:
                raise UnusablePicture("PICTURE_UNREADABLE", "the picture has no pixels; send another", bytes=len(data))
            yield picture
    except (UnusablePicture, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise UnusablePicture(
            "PICTURE_TOO_MANY_PIXELS",
            f"{error}; at most {max_pixels} (max_picture_pixels) are allowed; send a smaller one",
            expected=max_pixels,
        ) from error
    except Exception as error:
        what = "in a format that is read" if isinstance(error, UnidentifiedImageError) else "whole"
        why = "" if isinstance(error, UnidentifiedImageError) else f" ({type(error).__name__}: {error})"
        raise UnusablePicture(
            "PICTURE_UNREADABLE",
            f"the {len(data)} bytes are no picture {what}{why:.300}; "
            f"send one of {', '.join(FORMATS)} that opens in a viewer",
            bytes=len(data),
        ) from error


def _size(picture: Image.Image, pixels: int | None) -> tuple[int, int]:
    if pixels is None or picture.width * picture.height <= pixels:
        return picture.size
    scale = math.sqrt(pixels / (picture.width * picture.height))
    return max(1, round(picture.width * scale)), max(1, round(picture.height * scale))


def _resized(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    if picture.width <= size[0] and picture.height <= size[1]:
        return picture
    return picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        return Image.fromarray(_eight_bits(picture), "L").convert("RGB")
    if picture.mode == "LAB":
        lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(picture, lab, rgb, outputMode="RGB")
        assert converted is not None
        return converted
    if picture.has_transparency_data:
        seen = picture.convert("RGBA")
        white = Image.new("RGBA", seen.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, seen).convert("RGB")
    return picture.convert("RGB")


def _eight_bits(picture: Image.Image) -> np.ndarray:
    """Grey levels of more than eight bits, by the range of their format, or by their own where it has none."""
    levels_HW = np.nan_to_num(np.asarray(picture).astype(np.float64))
    low, high = float(levels_HW.min()), float(levels_HW.max())
    if picture.mode.startswith("I;16") or (picture.mode == "I" and low >= 0 and 255 < high <= 65535):
        low, high = 0.0, 65535.0
    elif picture.mode == "I" and low >= 0 and high <= 255:
        low, high = 0.0, 255.0
    span = high - low if high > low else 1.0
    return np.clip((levels_HW - low) / span * 255.0, 0, 255).round().astype(np.uint8)
