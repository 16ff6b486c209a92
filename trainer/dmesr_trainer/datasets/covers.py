"""Draws the book covers of the sample: a palette and a composition make a style, a seed makes each cover its own.

The title and the author stand in a block below the art; nothing in them tells the style, and nothing in the art
tells the text.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WIDTH_PX = 240
HEIGHT_PX = 360
TITLE_BLOCK_PX = 84
_SCALE = 2  # drawn larger, then reduced: Pillow's shapes have no anti-aliasing of their own

Point = tuple[float, float]


@dataclass(frozen=True)
class CoverStyle:
    """What a reader recognises from across the shop."""

    palette: str
    composition: str


@dataclass(frozen=True)
class _Palette:
    """Hex colours: the ground, the shapes from the most to the least used, and the lettering."""

    ground: str
    shapes: tuple[str, ...]
    ink: str


_PALETTES: dict[str, tuple[_Palette, ...]] = {
    "ember": (  # dark and warm
        _Palette("#2b0f0a", ("#c1272d", "#e8590c", "#f59f00", "#7a1f12"), "#ffd8a8"),
        _Palette("#3a0d12", ("#e03131", "#b5340d", "#ff922b", "#6b0f1a"), "#ffe3c2"),
        _Palette("#26100c", ("#a61e1e", "#d9480f", "#fab005", "#59200f"), "#ffc078"),
    ),
    "blossom": (  # bright, warm and soft
        _Palette("#fff1ec", ("#f7a8a0", "#fbc4ab", "#f4d3a1", "#e78fa0"), "#8c4a55"),
        _Palette("#fff4e6", ("#f6b0b8", "#ffd6c9", "#f2c6d0", "#eaa98c"), "#8a4b3c"),
        _Palette("#fdeef2", ("#f3a6bd", "#f9d0c4", "#fbe3b5", "#d98ba3"), "#7d4058"),
    ),
    "tide": (  # cool blues
        _Palette("#0b3c6f", ("#1c7ed6", "#4dabf7", "#a5d8ff", "#0c8599"), "#e7f5ff"),
        _Palette("#134074", ("#3bc9db", "#228be6", "#8da9c4", "#0b7285"), "#e3fafc"),
        _Palette("#1864ab", ("#74c0fc", "#15aabf", "#d0ebff", "#0b4f8a"), "#f1f9ff"),
    ),
    "moss": (  # greens and earth
        _Palette("#2f3e1f", ("#5c7c2e", "#8a9a3b", "#b08d3c", "#44602a"), "#eef2cf"),
        _Palette("#27401f", ("#4f8a3a", "#a3a847", "#7a5c2e", "#36692b"), "#f0f4d8"),
        _Palette("#3b4a22", ("#7d8f3a", "#4a6b28", "#c2a24c", "#5f4a26"), "#f4f2d4"),
    ),
    "noir": (  # black, white and the greys between
        _Palette("#0c0c0d", ("#f8f9fa", "#adb5bd", "#495057", "#e9ecef"), "#ffffff"),
        _Palette("#f8f9fa", ("#111214", "#343a40", "#868e96", "#000000"), "#0c0c0d"),
        _Palette("#1a1b1e", ("#ffffff", "#ced4da", "#5c5f66", "#909296"), "#f8f9fa"),
    ),
    "carnival": (  # bright and loud, many hues
        _Palette("#ffe600", ("#ff0a78", "#00b3ff", "#12d63b", "#ff6a00"), "#3d0066"),
        _Palette("#ff2e93", ("#ffea00", "#00e0d1", "#6a00ff", "#ff7b00"), "#fffbe6"),
        _Palette("#7a00ff", ("#ffdd00", "#ff1f8f", "#00f0a8", "#ff6b00"), "#fff6d6"),
    ),
}
PALETTES = tuple(_PALETTES)


class _Canvas:
    """Draws in units of the finished cover: x to the right, y down, both in pixels."""

    def __init__(self, *, ground: str) -> None:
        self.image = Image.new("RGB", (WIDTH_PX * _SCALE, HEIGHT_PX * _SCALE), ground)
        self._draw = ImageDraw.Draw(self.image)

    def polygon(self, points: list[Point], fill: str) -> None:
        self._draw.polygon([(x * _SCALE, y * _SCALE) for x, y in points], fill=fill)

    def disc(self, x: float, y: float, radius: float, fill: str) -> None:
        box = [(x - radius) * _SCALE, (y - radius) * _SCALE, (x + radius) * _SCALE, (y + radius) * _SCALE]
        self._draw.ellipse(box, fill=fill)

    def rectangle(self, left: float, top: float, right: float, bottom: float, fill: str) -> None:
        self._draw.rectangle([left * _SCALE, top * _SCALE, right * _SCALE, bottom * _SCALE], fill=fill)

    def lines(self, lines: list[str], *, top: float, size_px: float, leading_px: float, fill: str) -> None:
        font = ImageFont.load_default(size=size_px * _SCALE)
        for row, line in enumerate(lines):
            place = (WIDTH_PX * _SCALE / 2, (top + row * leading_px) * _SCALE)
            self._draw.text(place, line, font=font, fill=fill, anchor="ma")

    def width_of(self, line: str, *, size_px: float) -> float:
        return self._draw.textlength(line, font=ImageFont.load_default(size=size_px * _SCALE)) / _SCALE


_ART_PX = HEIGHT_PX - TITLE_BLOCK_PX
_CENTRE = (WIDTH_PX / 2, _ART_PX / 2)


def _around(centre: Point, radius: float, angle: float) -> Point:
    return centre[0] + radius * math.cos(angle), centre[1] + radius * math.sin(angle)


def _petal(centre: Point, angle: float, near: float, far: float, width: float) -> list[Point]:
    """A leaf that points from the centre outwards, from the radius `near` to `far`."""
    along, steps = (far - near), 14
    sides = [(near + along * i / steps, width * math.sin(math.pi * i / steps)) for i in range(steps + 1)]
    outline = sides + [(r, -w) for r, w in reversed(sides)]
    cos, sin = math.cos(angle), math.sin(angle)
    return [(centre[0] + r * cos - w * sin, centre[1] + r * sin + w * cos) for r, w in outline]


def _sunburst(canvas: _Canvas, colours: _Palette, rng: np.random.Generator) -> None:
    rays = 2 * int(rng.integers(6, 12))
    for ray in range(rays):
        middle = math.pi / 2 + 2 * math.pi * ray / rays
        half = math.pi / rays * 0.55
        edges = [
            (_CENTRE[0] + 230 * math.cos(a), _CENTRE[1] + 230 * math.sin(a)) for a in (middle - half, middle + half)
        ]
        canvas.polygon([_CENTRE, *edges], colours.shapes[3] if ray % 2 else colours.shapes[0])
    for ring, radius in enumerate(np.linspace(rng.uniform(66, 92), 16, 5)):
        canvas.disc(*_CENTRE, float(radius), (colours.ground, *colours.shapes[:3], colours.ground)[ring])


def _mandala(canvas: _Canvas, colours: _Palette, rng: np.random.Generator) -> None:
    petals = 2 * int(rng.integers(4, 8))
    rings = [(60, 128, 22), (34, 92, 17), (14, 58, 12)]
    canvas.disc(*_CENTRE, 112, colours.shapes[3])
    for ring, (near, far, width) in enumerate(rings):
        turn = math.pi / 2 + (math.pi / petals if ring % 2 else 0)
        for petal in range(petals):
            angle = turn + 2 * math.pi * petal / petals
            canvas.polygon(_petal(_CENTRE, angle, near, far, width * 8 / petals), colours.shapes[ring])
    canvas.disc(*_CENTRE, 14, colours.ground)
    canvas.disc(*_CENTRE, 7, colours.shapes[2])


def _arches(canvas: _Canvas, colours: _Palette, rng: np.random.Generator) -> None:
    count = int(rng.integers(5, 8))
    for arch, half in enumerate(np.linspace(108, 14, count)):
        half = float(half)
        top = 26 + (108 - half) * 1.25
        fill = colours.ground if arch % 2 else colours.shapes[(arch // 2) % 4]
        canvas.disc(_CENTRE[0], top + half, half, fill)
        canvas.rectangle(_CENTRE[0] - half, top + half, _CENTRE[0] + half, _ART_PX, fill)


def _diamonds(canvas: _Canvas, colours: _Palette, rng: np.random.Generator) -> None:
    tall = rng.uniform(1.0, 1.25)
    for ring, half in enumerate(np.linspace(118, 14, int(rng.integers(5, 8)))):
        half = float(half)
        x, y = _CENTRE
        points = [(x, y - half * tall), (x + half, y), (x, y + half * tall), (x - half, y)]
        canvas.polygon(points, colours.ground if ring % 2 else colours.shapes[(ring // 2) % 4])
    for x in (26, WIDTH_PX - 26):
        for y in (26, _ART_PX - 26):
            canvas.disc(x, y, 13, colours.shapes[1])
            canvas.disc(x, y, 6, colours.ground)


def _layers(canvas: _Canvas, colours: _Palette, rng: np.random.Generator, *, wave_px: float, waves: float) -> None:
    """A disc low in the sky behind layers of land or water, one below the other."""
    canvas.disc(rng.uniform(60, WIDTH_PX - 60), rng.uniform(58, 92), rng.uniform(26, 40), colours.shapes[2])
    tops = np.linspace(rng.uniform(104, 128), 236, int(rng.integers(5, 7)))
    for layer, top in enumerate(tops):
        phase, stretch = rng.uniform(0, 2 * math.pi), rng.uniform(0.8, 1.2)
        ridge = [
            (x, float(top) + wave_px * math.sin(phase + 2 * math.pi * waves * stretch * x / WIDTH_PX))
            for x in np.linspace(0, WIDTH_PX, 61)
        ]
        canvas.polygon([*ridge, (WIDTH_PX, _ART_PX), (0, _ART_PX)], colours.shapes[(0, 1, 3, 2)[layer % 4]])


def _waves(canvas: _Canvas, colours: _Palette, rng: np.random.Generator) -> None:
    _layers(canvas, colours, rng, wave_px=7, waves=3.2)


def _hills(canvas: _Canvas, colours: _Palette, rng: np.random.Generator) -> None:
    _layers(canvas, colours, rng, wave_px=17, waves=0.9)


def _stripes(canvas: _Canvas, colours: _Palette, rng: np.random.Generator) -> None:
    cuts = np.sort(rng.uniform(20, _ART_PX - 10, 8))
    for band, (top, bottom) in enumerate(itertools.pairwise(cuts)):
        canvas.rectangle(0, float(top), WIDTH_PX, max(float(bottom) - 3, float(top) + 3), colours.shapes[band % 4])


def _scattered(rng: np.random.Generator, count: int) -> list[tuple[float, float, float]]:
    """Places (x, y, size in px) that gather in one corner, largest first, so that small ones stay visible."""
    heavy_x, heavy_y = rng.choice([0.24, 0.76], 2)
    x = np.clip(rng.normal(heavy_x, 0.27, count), 0.02, 0.98) * WIDTH_PX
    y = np.clip(rng.normal(heavy_y, 0.27, count), 0.02, 0.98) * _ART_PX
    size = np.sort(rng.gamma(2.2, 6.0, count) + 4)[::-1]
    return [(float(a), float(b), float(c)) for a, b, c in zip(x, y, size, strict=True)]


def _dots(canvas: _Canvas, colours: _Palette, rng: np.random.Generator) -> None:
    for place, (x, y, size) in enumerate(_scattered(rng, int(rng.integers(34, 52)))):
        canvas.disc(x, y, size, colours.shapes[place % 4])
        if place % 3 == 0:
            canvas.disc(x, y, size * 0.5, colours.ground)


def _leaves(canvas: _Canvas, colours: _Palette, rng: np.random.Generator) -> None:
    for place, (x, y, size) in enumerate(_scattered(rng, int(rng.integers(38, 58)))):
        leaf = _petal((x, y), rng.uniform(0, 2 * math.pi), -1.7 * size, 1.7 * size, 0.55 * size)
        canvas.polygon(leaf, colours.shapes[place % 4])


def _shards(canvas: _Canvas, colours: _Palette, rng: np.random.Generator) -> None:
    for place, (x, y, size) in enumerate(_scattered(rng, int(rng.integers(36, 54)))):
        turns = np.sort(rng.uniform(0, 2 * math.pi, 3))
        reach = 1.6 * size
        canvas.polygon([_around((x, y), reach, float(turn)) for turn in turns], colours.shapes[place % 4])


def _strips(canvas: _Canvas, colours: _Palette, rng: np.random.Generator) -> None:
    lean = rng.choice([-1, 1]) * rng.uniform(0.7, 1.1)
    left = -320.0
    strip = int(rng.integers(4))
    while left < WIDTH_PX + 320:
        wide = rng.uniform(14, 46)
        points: list[Point] = [
            (left, 0),
            (left + wide, 0),
            (left + wide + lean * _ART_PX, _ART_PX),
            (left + lean * _ART_PX, _ART_PX),
        ]
        canvas.polygon(points, (*colours.shapes, colours.ground)[strip % 5])
        left, strip = left + wide, strip + 1


def _wedges(canvas: _Canvas, colours: _Palette, rng: np.random.Generator) -> None:
    right = bool(rng.integers(2))
    corner = (WIDTH_PX if right else 0.0, float(_ART_PX))
    angles = np.sort(rng.uniform(0, math.pi / 2, 6))
    if right:
        angles = math.pi - angles
    for wedge, (low, high) in enumerate(itertools.pairwise(angles)):
        far = [_around(corner, 420, -float(angle)) for angle in (low, high)]
        canvas.polygon([corner, *far], colours.shapes[wedge % 4])
    canvas.disc(50 if right else WIDTH_PX - 50, 52, rng.uniform(18, 30), colours.shapes[1])


def _stairs(canvas: _Canvas, colours: _Palette, rng: np.random.Generator) -> None:
    right = bool(rng.integers(2))
    steps = int(rng.integers(5, 8))
    wide, tall = WIDTH_PX / steps, _ART_PX / (steps + 1)
    for step in range(steps):
        left = step * wide if right else WIDTH_PX - (step + 1) * wide
        for row in range(step + 1):
            top = _ART_PX - (row + 1) * tall
            canvas.rectangle(left, top, left + wide, top + tall, colours.shapes[(row + step) % 4])


_COMPOSITIONS: dict[str, tuple[Callable[[_Canvas, _Palette, np.random.Generator], None], ...]] = {
    "radial": (_sunburst, _mandala, _arches, _diamonds),  # mirror-symmetric
    "layered": (_waves, _hills, _stripes),  # horizontal bands
    "scattered": (_dots, _leaves, _shards),  # many small shapes, off balance
    "diagonal": (_strips, _wedges, _stairs),  # slanted, heavy on one side
}
COMPOSITIONS = tuple(_COMPOSITIONS)


def _wrapped(canvas: _Canvas, title: str, *, size_px: float, most_px: float) -> list[str]:
    lines = [""]
    for word in title.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and canvas.width_of(longer, size_px=size_px) > most_px:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def draw_cover(*, style: CoverStyle, title: str, author: str, seed: int) -> bytes:
    """Draws one cover; the same arguments give the same pixels.

    Args:
        style: A palette of `PALETTES` and a composition of `COMPOSITIONS`.
        title: Lettered below the art.
        author: Lettered below the title.
        seed: What tells this cover from others of its style.

    Returns:
        A PNG, 240 × 360 pixels, RGB.
    """
    rng = np.random.default_rng(seed)
    variants = _PALETTES[style.palette]
    colours = variants[int(rng.integers(len(variants)))]
    motifs = _COMPOSITIONS[style.composition]
    canvas = _Canvas(ground=colours.ground)
    motifs[int(rng.integers(len(motifs)))](canvas, colours, rng)

    canvas.rectangle(0, _ART_PX, WIDTH_PX, HEIGHT_PX, colours.ground)
    canvas.rectangle(WIDTH_PX / 2 - 22, _ART_PX + 11, WIDTH_PX / 2 + 22, _ART_PX + 12.5, colours.ink)
    lines = _wrapped(canvas, title, size_px=17, most_px=WIDTH_PX - 36)
    top = _ART_PX + (21 if len(lines) > 1 else 28)
    canvas.lines(lines, top=top, size_px=17, leading_px=20, fill=colours.ink)
    canvas.lines([author], top=top + 20 * len(lines) + 3, size_px=10.5, leading_px=12, fill=colours.ink)

    small = canvas.image.resize((WIDTH_PX, HEIGHT_PX), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, format="PNG")
    return file.getvalue()
