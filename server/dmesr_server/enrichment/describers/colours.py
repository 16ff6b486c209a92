"""Names for colours: CIELAB, a palette of names that people use, and the shares of a picture's colours.

Shapes: H, W the picture's height and width; K the named colours; C levels of a colour cube's axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

# Part of the description recipe (`palette.PROMPT_REVISION`): a change here changes texts, so raise the revision.
_PALETTE = {
    "black": "#0b0b0d",
    "charcoal": "#333538",
    "slate grey": "#5d6875",
    "grey": "#878787",
    "silver": "#bcbfc2",
    "white": "#f8f8f6",
    "ivory": "#f1e9d2",
    "cream": "#fbf0b9",
    "beige": "#d6c4a1",
    "tan": "#c19a6b",
    "taupe": "#7d6e61",
    "sepia": "#6b4a2c",
    "chocolate brown": "#402418",
    "chestnut": "#8b4426",
    "rust": "#b4481c",
    "maroon": "#5c0f18",
    "burgundy": "#861f37",
    "crimson": "#b8122e",
    "scarlet": "#e52b1d",
    "coral": "#f4785c",
    "salmon": "#efa58e",
    "peach": "#f8cfa9",
    "pale pink": "#f4d3d6",
    "rose pink": "#e892ac",
    "hot pink": "#e93c93",
    "magenta": "#b5178f",
    "orange": "#f07d12",
    "amber": "#f5a81c",
    "gold": "#c9982b",
    "mustard": "#99791f",
    "bronze": "#77551f",
    "lemon yellow": "#f6e13c",
    "lime green": "#9ccf2f",
    "olive green": "#6b7129",
    "moss green": "#3f4a24",
    "forest green": "#1d5230",
    "emerald green": "#159957",
    "sage green": "#9cad8c",
    "mint green": "#a8dfc1",
    "dark teal": "#0f3f45",
    "teal": "#19808a",
    "turquoise": "#3bc4c4",
    "pale blue": "#c3dcea",
    "sky blue": "#78b4e0",
    "steel blue": "#4a76a0",
    "bright blue": "#1c6fe0",
    "cobalt blue": "#1b3fa5",
    "navy blue": "#101c44",
    "midnight blue": "#161f2c",
    "indigo": "#3a2687",
    "violet": "#7140b8",
    "lavender": "#bfaee3",
    "plum": "#57264f",
    "mauve": "#9b7389",
}

NAMES = tuple(_PALETTE)
_LEVELS = 32  # of each channel in the table from colour to name: 5 bits

# Names of one hue share a family: five greens are one impression.
_FAMILIES = {
    "dark": ("black", "charcoal", "midnight blue"),
    "grey": ("slate grey", "grey", "silver"),
    "white": ("white", "ivory"),
    "cream": ("cream", "beige"),
    "brown": ("tan", "taupe", "sepia", "chocolate brown", "chestnut", "bronze", "rust"),
    "red": ("maroon", "burgundy", "crimson", "scarlet"),
    "pink": ("coral", "salmon", "pale pink", "rose pink", "hot pink", "magenta", "peach"),
    "orange": ("orange", "amber"),
    "yellow": ("gold", "mustard", "lemon yellow"),
    "green": (
        "lime green",
        "olive green",
        "moss green",
        "forest green",
        "emerald green",
        "sage green",
        "mint green",
    ),
    "teal": ("dark teal", "teal", "turquoise"),
    "blue": ("pale blue", "sky blue", "steel blue", "bright blue", "cobalt blue", "navy blue"),
    "purple": ("indigo", "violet", "lavender", "plum", "mauve"),
}
FAMILY_OF = {name: family for family, names in _FAMILIES.items() for name in names}
assert set(FAMILY_OF) == set(NAMES)


@dataclass(frozen=True)
class ColourShare:
    """A named colour and the part of the picture that it covers, 0 to 1."""

    name: str
    share: float


def lab(rgb_HW3: NDArray[np.uint8]) -> Array:
    """CIELAB (D65) of sRGB pixels: L from 0 to 100, a (green to red), b (blue to yellow). Same leading shape."""
    linear = _linear()[rgb_HW3]
    xyz = linear @ _XYZ_OVER_WHITE.T
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    lightness = 116 * f[..., 1] - 16
    return np.stack([lightness, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1).astype(np.float32)


def name_indices(rgb_HW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The index in `NAMES` of the colour nearest to each pixel."""
    level = rgb_HW3 >> 3
    names_HW: NDArray[np.uint8] = _nearest_names()[level[..., 0], level[..., 1], level[..., 2]]
    return names_HW


def shares(names_HW: NDArray[np.uint8]) -> list[ColourShare]:
    """Named colours by the part that they cover, greatest first; those that do not occur are left out."""
    counts_K = np.bincount(names_HW.ravel(), minlength=len(NAMES))
    order = np.argsort(-counts_K, kind="stable")
    return [ColourShare(NAMES[index], counts_K[index] / names_HW.size) for index in order if counts_K[index]]


@lru_cache(maxsize=1)
def _linear() -> Array:
    srgb = np.arange(256) / 255
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4).astype(np.float32)


_XYZ_OVER_WHITE = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]],
    np.float32,
) / np.array([[0.95047], [1.0], [1.08883]], np.float32)


@lru_cache(maxsize=1)
def _nearest_names() -> NDArray[np.uint8]:
    """[C, C, C] → index of the nearest name by HyAB, which unlike ΔE76 holds for colours far apart.

    HyAB = |ΔL| + √(Δa² + Δb²) (Abasi, Amani Tehran and Fairchild 2020).
    """
    axis_C = (np.arange(_LEVELS) * (256 // _LEVELS) + 128 // _LEVELS).astype(np.uint8)
    cube_CCC3 = np.stack(np.meshgrid(axis_C, axis_C, axis_C, indexing="ij"), -1)
    cells_N3 = lab(cube_CCC3).reshape(-1, 3)
    named_K3 = lab(np.array([[int(code[i : i + 2], 16) for i in (1, 3, 5)] for code in _PALETTE.values()], np.uint8))
    lightness_NK = np.abs(cells_N3[:, None, 0] - named_K3[None, :, 0])
    chroma_NK = np.hypot(cells_N3[:, None, 1] - named_K3[None, :, 1], cells_N3[:, None, 2] - named_K3[None, :, 2])
    nearest_N: NDArray[np.uint8] = (lightness_NK + chroma_NK).argmin(1).astype(np.uint8)
    return nearest_N.reshape(_LEVELS, _LEVELS, _LEVELS)
