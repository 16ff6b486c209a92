"""What a picture's header says."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PictureInfo:
    """What a picture's header says."""

    media_type: str  # for instance "image/jpeg"
    width_px: int
    height_px: int
