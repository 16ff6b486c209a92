"""Takes in one batch of items: each row is judged alone, its picture apart from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dmesr.v1 import items_pb2 as pb

from dmesr_server.api import translation, validation
from dmesr_server.api.pictures import NewPicture, RawPicture, inspected, read_uri
from dmesr_server.config import LimitsConfig
from dmesr_server.errors import ServiceError
from dmesr_server.pictures.decoders import Decoders
from dmesr_server.store import CatalogStore, ItemWrite, Picture

_GROUP_BYTES = 16 * 1024 * 1024  # of pictures read from the server's disk, held before they are written


def upsert(
    catalog: CatalogStore,
    items: Sequence[pb.Item],
    *,
    limits: LimitsConfig,
    picture_roots: Sequence[Path],
    decoders: Decoders,
    fetched: Mapping[str, str | ServiceError],
) -> list[pb.RowResult]:
    """Stores what is sound of a batch.

    Args:
        catalog: Where to.
        items: The rows.
        limits: What a row may bring.
        picture_roots: Folders from which pictures may be read.
        decoders: Look at pictures.
        fetched: The hashes of pictures that were fetched and stored, by their URI, or why there is none.

    Returns:
        One result for each row, in order; all that they call taken is durable.

    Raises:
        ServiceError: The store's own; nothing of the batch's items was written then.
    """
    problems: dict[int, ServiceError] = {}
    first: dict[str, int] = {}  # item id → place of the row that is taken
    repeats: dict[int, int] = {}  # place of a repetition → place of what it repeats
    for place, item in enumerate(items):
        problem = row_problem(item, limits)
        earlier = first.get(item.item_id)
        if problem is None and earlier is not None:
            if _same(items[earlier], item):
                repeats[place] = earlier
                continue
            problem = ServiceError(
                "DUPLICATE_ITEM_ID",
                f"item_id {item.item_id!r} stands in row {earlier} of the batch with other content, which is kept; "
                "send an item once in a batch",
                item_id=item.item_id,
                first_row=earlier,
                row=place,
            )
        if problem is not None:
            problems[place] = problem
        else:
            first[item.item_id] = place

    places = list(first.values())
    pictures = _Pictures(catalog, limits, picture_roots, decoders, fetched)
    pictures.resolve([items[place] for place in places])
    outcomes = catalog.items.upsert(
        [
            ItemWrite(
                item_id=items[place].item_id,
                attributes=tuple((entry.name, tuple(entry.values)) for entry in items[place].attributes),
                picture_sha256=pictures.found.get(items[place].item_id),
            )
            for place in places
        ]
    )
    outcome_at = dict(zip(places, outcomes, strict=True))

    results = []
    for place, item in enumerate(items):
        if place in problems:
            results.append(translation.rejected(item.item_id, problems[place]))
        else:
            outcome = "unchanged" if place in repeats else outcome_at[place]
            results.append(translation.taken(item.item_id, outcome, pictures.problems.get(item.item_id)))
    return results


def row_problem(item: pb.Item, limits: LimitsConfig) -> ServiceError | None:
    """Why a row cannot be taken by itself; None where it can."""
    problem = validation.item_id_problem(item.item_id, limits)
    if problem is not None:
        return problem
    size = sum(
        len(entry.name.encode()) + sum(len(value.encode()) for value in entry.values) for entry in item.attributes
    )
    if size > limits.max_attribute_bytes:
        return ServiceError(
            "ATTRIBUTES_TOO_LARGE",
            f"the attributes of item {item.item_id!r} have {size} bytes, at most {limits.max_attribute_bytes} "
            "(max_attribute_bytes) are allowed; shorten them",
            item_id=item.item_id,
            expected=limits.max_attribute_bytes,
            actual=size,
        )
    names: set[str] = set()
    for place, entry in enumerate(item.attributes):
        if not entry.name.strip():
            return ServiceError(
                "INVALID_ATTRIBUTE",
                f"attribute {place} of item {item.item_id!r} has no name; name it",
                item_id=item.item_id,
                attribute=place,
            )
        if entry.name in names:
            return ServiceError(
                "INVALID_ATTRIBUTE",
                f"item {item.item_id!r} has the attribute {entry.name!r} twice; give one attribute several values",
                item_id=item.item_id,
                attribute=entry.name,
            )
        names.add(entry.name)
    return None


def _same(one: pb.Item, other: pb.Item) -> bool:
    return (
        list(one.attributes) == list(other.attributes)
        and one.HasField("picture") == other.HasField("picture")
        and one.picture == other.picture
    )


@dataclass
class _Pictures:
    """The pictures of a batch: which hash each item gets, and why some get none."""

    catalog: CatalogStore
    limits: LimitsConfig
    roots: Sequence[Path]
    decoders: Decoders
    fetched: Mapping[str, str | ServiceError]
    found: dict[str, str] = field(default_factory=dict)  # item id → sha256
    problems: dict[str, ServiceError] = field(default_factory=dict)  # item id → why it has no picture

    def resolve(self, items: Sequence[pb.Item]) -> None:
        """Settles every item's picture."""
        kinds: dict[str, list[pb.Item]] = {"sha256": [], "uri": [], "keep": []}
        for item in items:
            kind = item.picture.WhichOneof("source") if item.HasField("picture") else None
            if kind is not None:
                kinds[kind].append(item)
        self._by_hash(kinds["sha256"])
        self._by_uri(kinds["uri"])
        kept = [item.item_id for item in kinds["keep"] if item.picture.keep]
        # A host that is away for an hour must not take the pictures, and what was made of them, from a whole catalogue.
        kept += [item_id for item_id, error in self.problems.items() if error.reason == "PICTURE_FETCH_FAILED"]
        for item_id, stored in (self.catalog.items.get(kept) if kept else {}).items():
            if stored.picture_sha256 is not None:
                self.found[item_id] = stored.picture_sha256

    def _by_hash(self, items: Sequence[pb.Item]) -> None:
        asked: dict[str, str] = {}
        for item in items:
            try:
                asked[item.item_id] = validation.sha256("picture.sha256", item.picture.sha256)
            except ServiceError as error:
                self.problems[item.item_id] = error
        missing = set(self.catalog.pictures.missing(validation.distinct(asked.values()))) if asked else set()
        for item_id, sha256 in asked.items():
            if sha256 in missing:
                self.problems[item_id] = ServiceError(
                    "PICTURE_NOT_FOUND",
                    f"the picture {sha256} of item {item_id!r} is not on the server; upload it and send the item again",
                    item_id=item_id,
                    sha256=sha256,
                )
            else:
                self.found[item_id] = sha256

    def _by_uri(self, items: Sequence[pb.Item]) -> None:
        waiting: list[tuple[str, RawPicture]] = []
        size = 0
        for item in items:
            known = self.fetched.get(item.picture.uri)
            if isinstance(known, ServiceError):
                self.problems[item.item_id] = known
                continue
            if known is not None:
                self.found[item.item_id] = known
                continue
            try:
                picture = read_uri(item.picture.uri, roots=self.roots, limits=self.limits)
            except ServiceError as error:
                self.problems[item.item_id] = error
                continue
            waiting.append((item.item_id, picture))
            size += len(picture.data)
            if size > _GROUP_BYTES:
                self._take(waiting)
                waiting, size = [], 0
        self._take(waiting)

    def _take(self, read: Sequence[tuple[str, RawPicture]]) -> None:
        pictures = inspected([picture for _, picture in read], self.limits, decoders=self.decoders)
        for (item_id, _), picture in zip(read, pictures, strict=True):
            if isinstance(picture, ServiceError):
                self.problems[item_id] = picture
            else:
                self.found[item_id] = picture.sha256
        put(self.catalog, list({one.sha256: one for one in pictures if isinstance(one, NewPicture)}.values()))


def put(catalog: CatalogStore, pictures: Sequence[NewPicture]) -> list[bool]:
    """Stores pictures in one commit; False for each that was there."""
    return catalog.pictures.put_many(
        [
            Picture(
                sha256=picture.sha256,
                data=picture.data,
                media_type=picture.media_type,
                width_px=picture.width_px,
                height_px=picture.height_px,
            )
            for picture in pictures
        ]
    )
