"""How many tokens a picture has in models of the Qwen2-VL kind, from its size alone.

Their vision tower cuts a picture into patches and merges squares of them; one token stands for a merged square.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_MAX_ASPECT = 200  # sides that are more unlike are refused by these models
# Model types (config.json) whose pictures are cut this way, with patch, merged squares a side, and the least pixels.
_KINDS = {
    "qwen2_vl": (14, 2, 56 * 56),
    "qwen2_5_vl": (14, 2, 56 * 56),
    "qwen3_vl": (16, 2, 256 * 256),
    "qwen3_vl_moe": (16, 2, 256 * 256),
}


@dataclass(frozen=True)
class Patches:
    """How a model cuts pictures.

    Attributes:
        side_px: Of the square that one token stands for.
        min_pixels: Smaller pictures are enlarged.
        max_pixels: Larger ones are shrunk.
    """

    side_px: int
    min_pixels: int
    max_pixels: int

    def tokens(self, width_px: int, height_px: int) -> int | None:
        """Tokens of a picture; None where the model refuses it because its sides are too unlike."""
        if max(width_px, height_px) > _MAX_ASPECT * min(width_px, height_px):
            return None
        side = self.side_px
        rows, columns = round(height_px / side), round(width_px / side)
        if rows * columns * side * side > self.max_pixels:
            scale = math.sqrt(width_px * height_px / self.max_pixels)
            rows, columns = (max(1, math.floor(length / scale / side)) for length in (height_px, width_px))
        elif rows * columns * side * side < self.min_pixels:
            scale = math.sqrt(self.min_pixels / (width_px * height_px))
            rows, columns = (math.ceil(length * scale / side) for length in (height_px, width_px))
        return rows * columns


def patches(config: Mapping[str, Any], processor: Mapping[str, Any], *, max_pixels: int) -> Patches | None:
    """How a model cuts pictures.

    Args:
        config: Its config.json.
        processor: Its preprocessor_config.json, or the image_processor of its processor_config.json; may be empty.
        max_pixels: The most that is sent to it.

    Returns:
        None for a model of another kind.
    """
    kind = _KINDS.get(str(config.get("model_type")))
    if kind is None:
        return None
    patch, merge, least = kind
    size = processor.get("size") or {}
    side = int(processor.get("patch_size") or patch) * int(processor.get("merge_size") or merge)
    least = int(size.get("shortest_edge") or processor.get("min_pixels") or least)
    most = size.get("longest_edge") or processor.get("max_pixels")
    return Patches(side_px=side, min_pixels=least, max_pixels=min(max_pixels, int(most)) if most else max_pixels)
