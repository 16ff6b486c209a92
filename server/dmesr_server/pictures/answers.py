"""What a decoder's answers may say. A picture may have taken the process over: whatever it says is checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image

from dmesr_server.errors import ServiceError
from dmesr_server.pictures.info import PictureInfo
from dmesr_server.pictures.messages import BrokenMessage

CHANNELS = 3  # bytes of a pixel
_REASONS = ("PICTURE_UNREADABLE", "PICTURE_TOO_MANY_PIXELS")  # that a process may give
_METADATA = ("bytes", "width_px", "height_px", "expected", "actual")
_MEDIA_TYPE_CHARACTERS = 100


def inspected(
    head: Mapping[str, Any], body: bytearray, *, count: int, max_pixels: int
) -> list[PictureInfo | ServiceError]:
    """What headers say, or what is wrong with them.

    Raises:
        BrokenMessage: The answer is none that a sound process gives.
    """
    said = head.get("pictures")
    if not isinstance(said, list) or len(said) != count or not all(isinstance(one, dict) for one in said):
        raise BrokenMessage(f"no answers for {count} pictures")
    return [_problem(one) if "reason" in one else _info(one, max_pixels) for one in said]


def decoded(head: Mapping[str, Any], body: bytearray, *, max_pixels: int) -> Image.Image:
    """A picture's pixels.

    Raises:
        BrokenMessage: The answer is none that a sound process gives.
        ServiceError: What is wrong with the picture.
    """
    if "reason" in head:
        raise _problem(head)
    width, height = _size(head, max_pixels)
    if len(body) != CHANNELS * width * height:
        raise BrokenMessage(f"{len(body)} bytes for {width}×{height}")
    return Image.frombuffer("RGB", (width, height), body, "raw", "RGB", 0, 1)


def _info(said: Mapping[str, Any], max_pixels: int) -> PictureInfo:
    width, height = _size(said, max_pixels)
    media_type = said.get("media_type")
    if not isinstance(media_type, str) or not media_type.startswith(("image/", "application/octet-stream")):
        raise BrokenMessage("no media type")
    return PictureInfo(media_type[:_MEDIA_TYPE_CHARACTERS], width, height)


def _size(said: Mapping[str, Any], max_pixels: int) -> tuple[int, int]:
    width, height = said.get("width_px"), said.get("height_px")
    if type(width) is not int or type(height) is not int or width < 1 or height < 1 or width * height > max_pixels:
        raise BrokenMessage(f"a picture of {width!r:.30}×{height!r:.30}")
    return width, height


def _problem(said: Mapping[str, Any]) -> ServiceError:
    reason, metadata = said["reason"], said.get("metadata")
    if reason not in _REASONS or not isinstance(metadata, dict):
        raise BrokenMessage("an unknown reason")
    known = {key: str(metadata[key])[:100] for key in _METADATA if key in metadata}
    return ServiceError(reason, str(said.get("message"))[:1000], violations=(), retry_seconds=None, **known)
