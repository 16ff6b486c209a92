"""An item that is no item: drawn here, to try a model before work starts and to show what it does."""

from __future__ import annotations

import math

from PIL import Image, ImageDraw

from dmesr_server.enrichment.routes import needs_picture, needs_text

from .base import DescribeRequest

DOMAIN = "film"
LANGUAGE = "en"
ATTRIBUTES = (
    ("title", ("The Lighthouse Keeper's Kite",)),
    ("year", ("1987",)),
    ("genres", ("adventure", "family")),
    ("director", ("A. Example",)),
    ("plot", ("A girl and a retired lighthouse keeper build a red kite that carries a message across a stormy bay.",)),
)


def request(route: str, *, pixels: int) -> DescribeRequest:
    """A request to describe the specimen.

    Args:
        route: One of the routes.
        pixels: Size of the picture, about.
    """
    return DescribeRequest(
        item_id="specimen",
        route=route,
        attributes=ATTRIBUTES if needs_text(route) else (),
        picture=picture(pixels=pixels) if needs_picture(route) else None,
        domain=DOMAIN,
        language=LANGUAGE,
    )


def picture(*, pixels: int) -> Image.Image:
    """A poster, two by three: evening sky, sea, a lighthouse with its beam, a red kite. RGB."""
    width = max(56, round(math.sqrt(pixels * 2 / 3)))
    height = max(56, round(pixels / width))
    poster = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(poster)
    horizon = int(height * 0.68)
    for y in range(horizon):
        share = y / horizon
        draw.line([(0, y), (width, y)], fill=(int(30 + 210 * share), int(40 + 100 * share), int(90 + 20 * share)))
    draw.rectangle([0, horizon, width, height], fill=(18, 52, 86))
    for wave in range(6):
        y = horizon + (wave + 1) * (height - horizon) // 7
        draw.line([(0, y), (width, y)], fill=(60, 110, 150), width=max(1, height // 200))
    left, right, top = int(width * 0.68), int(width * 0.80), int(height * 0.30)
    draw.polygon([(left, top), (0, int(height * 0.12)), (0, int(height * 0.26))], fill=(250, 225, 150))
    tower = [(left, top), (right, top), (int(width * 0.84), horizon), (int(width * 0.64), horizon)]
    draw.polygon(tower, fill=(240, 240, 235))
    for band in range(1, 4, 2):
        y0, y1 = (top + (horizon - top) * part // 4 for part in (band, band + 1))
        draw.rectangle([left, y0, right, y1], fill=(190, 40, 40))
    draw.rectangle([left, top - height // 20, right, top], fill=(255, 240, 170))
    x, y, half = int(width * 0.28), int(height * 0.45), max(6, width // 9)
    draw.polygon([(x, y - half), (x + half // 2, y), (x, y + half), (x - half // 2, y)], fill=(220, 20, 30))
    draw.line([(x, y + half), (x + half, height - height // 12)], fill=(250, 250, 250), width=max(1, width // 200))
    return poster
