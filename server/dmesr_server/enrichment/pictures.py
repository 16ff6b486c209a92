"""Reads pictures of unknown origin: what they are, and their pixels as plain RGB.

Pillow's own limit on pixels is switched off: it warns at one size and raises at another, both global. Every picture is
held against the caller's limit instead, right after the header was read and before any pixel is.
"""

from __future__ import annotations

import contextlib
import io
import math
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from dmesr_server.config import LimitsConfig
from dmesr_server.errors import ServiceError

#: Formats that are read. Those that run programs (EPS, WMF) or hold no picture of their own are left out.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "TIFF", "BMP", "JPEG2000", "PPM")

Image.MAX_IMAGE_PIXELS = None

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


@dataclass(frozen=True)
class PictureInfo:
    """What a picture's header says."""

    media_type: str  # for instance "image/jpeg"
    width_px: int
    height_px: int


def inspect(data: bytes, limits: LimitsConfig) -> PictureInfo:
    """Reads a picture's header; touches no pixel.

    Args:
        data: The picture's bytes.
        limits: The most pixels that a picture may have.

    Raises:
        ServiceError: PICTURE_UNREADABLE or PICTURE_TOO_MANY_PIXELS.
    """
    with _opened(data, max_pixels=limits.max_picture_pixels) as picture:
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
        ServiceError: PICTURE_UNREADABLE (cut short, broken, an unknown format) or PICTURE_TOO_MANY_PIXELS.
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
        with _Quiet(), Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            pixels = picture.width * picture.height
            if pixels > max_pixels:
                raise ServiceError(
                    "PICTURE_TOO_MANY_PIXELS",
                    f"the picture is {picture.width}×{picture.height}, {pixels} pixels; at most {max_pixels} "
                    "(max_picture_pixels) are allowed; send a smaller one",
                    width_px=picture.width,
                    height_px=picture.height,
                    expected=max_pixels,
                    actual=pixels,
                )
            if pixels == 0:
                raise ServiceError("PICTURE_UNREADABLE", "the picture has no pixels; send another", bytes=len(data))
            yield picture
    except ServiceError:
        raise
    except Exception as error:
        what = "in a format that is read" if isinstance(error, UnidentifiedImageError) else "whole"
        why = "" if isinstance(error, UnidentifiedImageError) else f" ({type(error).__name__}: {error})"
        raise ServiceError(
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


class _Quiet:
    """Keeps Pillow's warnings from callers, also where several threads decode at once.

    `warnings.catch_warnings` restores what it found on entry: two threads that overlap would leave the filter behind.
    The first one in sets it, the last one out restores.
    """

    _lock: ClassVar[threading.Lock] = threading.Lock()
    _inside: ClassVar[int] = 0
    _saved: ClassVar[warnings.catch_warnings | None] = None

    def __enter__(self) -> None:
        with _Quiet._lock:
            if _Quiet._inside == 0:
                _Quiet._saved = warnings.catch_warnings()
                _Quiet._saved.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
            _Quiet._inside += 1

    def __exit__(self, *_: object) -> None:
        with _Quiet._lock:
            _Quiet._inside -= 1
            if _Quiet._inside == 0 and _Quiet._saved is not None:
                _Quiet._saved.__exit__(None, None, None)
                _Quiet._saved = None
