"""The items that are described: films of a data folder, or the novels of the sample."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dmesr_server.enrichment.rendering import original_text
from dmesr_server.store import CatalogStore, ItemWrite, Picture
from PIL import Image

_ROWS_PER_WRITE = 1_000
_FILM_ATTRIBUTES = ("director", "actors", "plot", "country", "language", "runtime", "rated")


@dataclass(frozen=True)
class Listing:
    """One item as a catalogue has it."""

    item_id: str
    attributes: tuple[tuple[str, tuple[str, ...]], ...]
    picture: bytes | None

    @property
    def text(self) -> str:
        """What is encoded of it."""
        return original_text(self.attributes)


def load(data: Path | None) -> tuple[str, list[Listing]]:
    """The items, those with both text and picture first, and what one is called in prompts.

    Args:
        data: A folder with film-attributes.jsonl, ml-latest-small/ and movie-posters/; None takes the sample, which
            needs the environment of the trainer.
    """
    domain, listings = ("novel", _sample()) if data is None else ("film", _films(data))
    return domain, sorted(listings, key=lambda listing: listing.picture is None)


def write(listings: Iterable[Listing], file: Path) -> None:
    """Writes items for the other environment."""
    with file.open("w") as stream:
        for listing in listings:
            picture = None if listing.picture is None else base64.b64encode(listing.picture).decode()
            stream.write(json.dumps([listing.item_id, listing.attributes, picture]) + "\n")


def read(file: Path) -> list[Listing]:
    """Reads what `write` wrote."""
    listings = []
    with file.open() as stream:
        for line in stream:
            item_id, attributes, picture = json.loads(line)
            pairs = tuple((name, tuple(values)) for name, values in attributes)
            listings.append(Listing(item_id, pairs, None if picture is None else base64.b64decode(picture)))
    return listings


def store(listings: Iterable[Listing], catalog: CatalogStore) -> None:
    """Puts items and pictures into a store, a thousand at a time."""
    batch: list[Listing] = []
    for listing in listings:
        batch.append(listing)
        if len(batch) == _ROWS_PER_WRITE:
            _store(batch, catalog)
            batch = []
    if batch:
        _store(batch, catalog)


def enlarged(listing: Listing, *, pixels: int) -> Listing:
    """The item with its picture scaled up to about so many pixels, as JPEG."""
    assert listing.picture is not None
    with Image.open(io.BytesIO(listing.picture)) as picture:
        scale = (pixels / (picture.width * picture.height)) ** 0.5
        size = (round(picture.width * scale), round(picture.height * scale))
        large = picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    large.save(buffer, "JPEG", quality=90)
    return Listing(listing.item_id, listing.attributes, buffer.getvalue())


def _store(batch: list[Listing], catalog: CatalogStore) -> None:
    pictures: dict[str, Picture] = {}
    writes = []
    for listing in batch:
        sha256 = None
        if listing.picture is not None:
            sha256 = hashlib.sha256(listing.picture).hexdigest()
            if sha256 not in pictures:
                with Image.open(io.BytesIO(listing.picture)) as opened:
                    kind, width_px, height_px = Image.MIME[opened.format or "JPEG"], opened.width, opened.height
                pictures[sha256] = Picture(sha256, listing.picture, kind, width_px, height_px)
        writes.append(ItemWrite(listing.item_id, listing.attributes, sha256))
    if pictures:
        catalog.pictures.put_many(list(pictures.values()))
    catalog.items.upsert(writes)


def _sample() -> Iterator[Listing]:
    from dmesr.item import attribute_texts
    from dmesr_trainer.datasets.sample import SampleDataset

    for item in SampleDataset().items():
        attributes = tuple((name, tuple(attribute_texts(value))) for name, value in item.attributes.items())
        assert item.picture is None or isinstance(item.picture, bytes)
        yield Listing(item.item_id, attributes, item.picture)


def _films(data: Path) -> Iterator[Listing]:
    with (data / "ml-latest-small" / "movies.csv").open(newline="") as stream:
        known = {row["movieId"]: row for row in csv.DictReader(stream)}
    with (data / "film-attributes.jsonl").open() as stream:
        for line in stream:
            film = json.loads(line)
            row = known.get(film["movieId"])
            if row is None:
                continue
            told = [("title", (row["title"],)), ("genres", tuple(row["genres"].split("|")))]
            told += [(name, (film[name],)) for name in _FILM_ATTRIBUTES if film.get(name)]
            poster = data / "movie-posters" / f"{film['imdbId']}.jpg"
            yield Listing(film["movieId"], tuple(told), poster.read_bytes() if poster.exists() else None)
