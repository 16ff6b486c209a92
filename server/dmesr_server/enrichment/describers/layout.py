"""What a picture's pixels say without any model: tone, texture, symmetry and where things stand.

Shapes: H, W the picture's height and width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import colours as naming
from .colours import Array, ColourShare

_ROWS = ("top", "middle", "bottom")
_COLUMNS = ("left", "centre", "right")
_STRONG_EDGE = 12.0  # lightness steps per pixel that the eye takes for a line


@dataclass(frozen=True)
class Measures:
    """Measures of one picture. Lightness and chroma are CIELAB's, 0 to about 100; shares are 0 to 1.

    Attributes:
        colours: Named colours by share, greatest first.
        thirds: The most frequent named colour of each third from top to bottom.
        background: The most frequent named colour along the border, and its share of the border.
        lightness: Mean lightness.
        contrast: Standard deviation of lightness.
        dark_share: Part that is darker than lightness 22.
        light_share: Part that is lighter than lightness 80.
        chroma: Mean chroma: how colourful.
        vivid_share: Part with chroma above 45.
        warmth: From -1 (all blue) to 1 (all yellow and red), weighted by chroma.
        edges: Part of the pixels that lie on a strong edge.
        verticality: Strong edges' lean to vertical lines: from -1 (all horizontal) to 1 (all vertical).
        diagonals: Part of the strong edges that run obliquely: within 22.5° of a diagonal; half where all directions
            are equal.
        roundness: How evenly strong edges run in all directions: 1 for circles and foliage, near 0 for a grid.
        symmetry: Correlation of lightness with its mirror image, left to right: -1 to 1.
        top_symmetry: The same, top to bottom.
        frame: Mean lightness of the inner part minus that of the border.
        mass: Where most of what stands out lies, as (row, column) names of a 3×3 grid.
        mass_share: The part of all that stands out that lies in that cell; 1/9 where it is spread evenly.
        halves: Lightness of the upper half minus that of the lower.
        aspect: Width by height.
        hues: Colour families that cover at least 4 %.
    """

    colours: tuple[ColourShare, ...]
    thirds: tuple[str, str, str]
    background: ColourShare
    lightness: float
    contrast: float
    dark_share: float
    light_share: float
    chroma: float
    vivid_share: float
    warmth: float
    edges: float
    verticality: float
    diagonals: float
    roundness: float
    symmetry: float
    top_symmetry: float
    frame: float
    mass: tuple[str, str]
    mass_share: float
    halves: float
    aspect: float
    hues: int


def measure(picture: Image.Image) -> Measures:
    """Measures a small RGB picture; cost grows with its pixels, so shrink it first.

    Args:
        picture: Mode "RGB", any size from 1×1.
    """
    aspect = picture.width / picture.height
    rgb_HW3 = np.asarray(picture)
    # Every measure works on at least 3×3; a thinner picture is repeated, which changes none of them.
    repeats = [-(-3 // side) for side in rgb_HW3.shape[:2]]
    rgb_HW3 = rgb_HW3.repeat(repeats[0], 0).repeat(repeats[1], 1)
    lab_HW3 = naming.lab(rgb_HW3)
    names_HW = naming.name_indices(rgb_HW3)
    light_HW = lab_HW3[..., 0]
    chroma_HW = np.hypot(lab_HW3[..., 1], lab_HW3[..., 2])
    shares = naming.shares(names_HW)
    inner = _inner(light_HW.shape)
    down_HW, across_HW = _steps(light_HW)
    strong_HW = np.hypot(down_HW, across_HW) > _STRONG_EDGE
    vertical = float(np.abs(across_HW[strong_HW]).sum())
    horizontal = float(np.abs(down_HW[strong_HW]).sum())
    diagonals, roundness = _directions(light_HW)
    # Hue angles near 60° (orange) count as warm, the opposite ones as cool.
    warm_HW = lab_HW3[..., 1] * np.cos(np.pi / 3) + lab_HW3[..., 2] * np.sin(np.pi / 3)
    mass, mass_share = _mass(lab_HW3, np.hypot(down_HW, across_HW))
    families: dict[str, float] = {}
    for colour in shares:
        family = naming.FAMILY_OF[colour.name]
        families[family] = families.get(family, 0.0) + colour.share
    half = light_HW.shape[0] // 2
    return Measures(
        colours=tuple(shares),
        thirds=_thirds(names_HW),
        background=naming.shares(names_HW[~inner])[0],
        lightness=float(light_HW.mean()),
        contrast=float(light_HW.std()),
        dark_share=float((light_HW < 22).mean()),
        light_share=float((light_HW > 80).mean()),
        chroma=float(chroma_HW.mean()),
        vivid_share=float((chroma_HW > 45).mean()),
        warmth=float(warm_HW.sum() / max(float(chroma_HW.sum()), 1e-6)),
        edges=float(strong_HW.mean()),
        verticality=(vertical - horizontal) / (vertical + horizontal) if vertical + horizontal else 0.0,
        diagonals=diagonals,
        roundness=roundness,
        symmetry=_correlation(light_HW, light_HW[:, ::-1]),
        top_symmetry=_correlation(light_HW, light_HW[::-1]),
        frame=float(light_HW[inner].mean() - light_HW[~inner].mean()),
        mass=mass,
        mass_share=mass_share,
        halves=float(light_HW[:half].mean() - light_HW[-half:].mean()),
        aspect=aspect,
        hues=sum(share >= 0.04 for share in families.values()),
    )


def _inner(shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """True but for a border of an eighth on each side (at least one pixel)."""
    inner = np.zeros(shape, bool)
    rows, columns = (max(1, side // 8) for side in shape)
    inner[rows:-rows, columns:-columns] = True
    return inner


def _steps(light_HW: Array) -> tuple[Array, Array]:
    """Differences of lightness to the next pixel below and to the right, zero at the far sides."""
    down_HW, across_HW = np.zeros_like(light_HW), np.zeros_like(light_HW)
    down_HW[:-1] = np.diff(light_HW, axis=0)
    across_HW[:, :-1] = np.diff(light_HW, axis=1)
    return down_HW, across_HW


def _directions(light_HW: Array) -> tuple[float, float]:
    """Part of the strong edges that run obliquely, and how even all directions are, by eight bins of 22.5°."""
    # Sobel's wider window: on neighbouring pixels alone a slanted line is a stair of upright and level steps.
    down = light_HW[2:] - light_HW[:-2]
    down_HW = down[:, :-2] + 2 * down[:, 1:-1] + down[:, 2:]
    across = light_HW[:, 2:] - light_HW[:, :-2]
    across_HW = across[:-2] + 2 * across[1:-1] + across[2:]
    strength_HW = np.hypot(down_HW, across_HW)
    strong_HW = strength_HW > 4 * _STRONG_EDGE
    if not strong_HW.any():
        return 0.5, 0.0
    turn = np.arctan2(down_HW[strong_HW], across_HW[strong_HW]) / np.pi * 8 + 0.5
    bins = np.bincount(np.floor(turn).astype(int) % 8, weights=strength_HW[strong_HW], minlength=8)
    parts = bins / bins.sum()
    oblique = float(parts[[2, 6]].sum() + parts[[1, 3, 5, 7]].sum() / 2)
    known = parts[parts > 0]
    return oblique, float(-(known * np.log(known)).sum() / np.log(8))


def _thirds(names_HW: NDArray[np.uint8]) -> tuple[str, str, str]:
    top, middle, bottom = (naming.shares(part)[0].name for part in np.array_split(names_HW, 3, axis=0))
    return top, middle, bottom


def _mass(lab_HW3: Array, edge_HW: Array) -> tuple[tuple[str, str], float]:
    """The cell of a 3×3 grid that holds most of what stands out: by colour from the mean, and by edges."""
    away_HW = np.sqrt(((lab_HW3 - lab_HW3.mean((0, 1))) ** 2).sum(-1)) + edge_HW
    total = float(away_HW.sum())
    cells = [
        (float(cell.mean()), float(cell.sum()), row, column)
        for row, band in zip(_ROWS, np.array_split(away_HW, 3, axis=0), strict=True)
        for column, cell in zip(_COLUMNS, np.array_split(band, 3, axis=1), strict=True)
    ]
    _, weight, row, column = max(cells, key=lambda cell: cell[0])
    return (row, column), weight / total if total else 1 / 9


def _correlation(a_HW: Array, b_HW: Array) -> float:
    a, b = a_HW - a_HW.mean(), b_HW - b_HW.mean()
    norm = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum() / norm) if norm > 1e-3 else 1.0
