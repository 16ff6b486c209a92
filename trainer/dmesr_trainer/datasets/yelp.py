"""The restaurants of the Yelp Open Dataset in its official files, with photos where they are at hand.

Every review of a restaurant is an interaction, whatever its stars; tips and check-ins are none.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from dmesr import Item, RejectedRow

from dmesr_trainer.datasets import yelp_rows
from dmesr_trainer.datasets.base import DatasetError, Interactions
from dmesr_trainer.datasets.events import CoreFilter, Event, FilteredEvents, Period
from dmesr_trainer.datasets.lines import Lines

#: §4.1.1: "users with fewer than 4 interactions and items with fewer than 3 interactions are filtered out".
PAPER_CORE = CoreFilter(min_user_events=4, min_item_events=3)

_PREFIX = "yelp_academic_dataset_"
_FOLDERS = (
    "",
    "yelp_dataset",
    "Yelp JSON",
    "Yelp JSON/yelp_dataset",
    "yelp_photos",
    "Yelp Photos",
    "Yelp Photos/yelp_photos",
)
_PHOTO_FILES = ("photos.json", "photo.json", f"{_PREFIX}photo.json", f"{_PREFIX}photos.json")
_PACKED = ("*.tar", "*.tgz", "*.tar.gz", "*.zip")
_REMEDY = (
    "accept Yelp's licence and download JSON and photos at https://business.yelp.com/data/resources/open-dataset, "
    "unpack both (tar -xf) and name the folder with --data"
)


class YelpDataset:
    """Restaurants and their reviews.

    The photo of a restaurant is the best one that is there: by what it shows (food, inside, outside, drink, menu), then
    with a caption before without, then by id.

    Args:
        data: The folder of `yelp_academic_dataset_business.json` and `…review.json`, or the one above it; the photos
            (`photos.json` and `photos/ID.jpg`) lie in it too, or in `yelp_photos`.
        core: Who is left out; the paper's filter by default.
        period: Which days count.
        photos: The folder of ID.jpg, where it is elsewhere.
        all_items: Give the restaurants without events too, not only those that are left after the filter.

    Raises:
        DatasetError: Files are missing.
    """

    name = "yelp"
    domain = "restaurant"
    planted = False

    def __init__(
        self,
        data: Path,
        *,
        core: CoreFilter = PAPER_CORE,
        period: Period | None = None,
        photos: Path | None = None,
        all_items: bool = False,
    ) -> None:
        self._businesses = Lines(_needed(data, "business"), what="Yelp businesses", read=yelp_rows.business)
        self._reviews = Lines(_needed(data, "review"), what="Yelp reviews", read=yelp_rows.event)
        self._photo_list, self._photo_folder = _photos(data, photos)
        self.events = FilteredEvents(self._restaurant_reviews, core=core, period=period or Period(), name=self.name)
        self._all_items = all_items

    @property
    def rejected(self) -> int:
        """How many reviews could not be used."""
        return self._reviews.rejected

    @property
    def problems(self) -> tuple[RejectedRow, ...]:
        """The first of these reviews."""
        return tuple(self._reviews.problems)

    def items(self) -> Iterator[Item | RejectedRow]:
        """The restaurants, in the file's order."""
        wanted = self._restaurants if self._all_items else self.events.item_ids
        photos = self._best_photos(wanted)
        seen: set[str] = set()
        for business in self._businesses:
            if isinstance(business, RejectedRow):
                yield business
            elif business.business_id in wanted and business.business_id not in seen:
                seen.add(business.business_id)
                picture = photos.get(business.business_id)
                yield Item(business.business_id, attributes=yelp_rows.attributes(business.row), picture=picture)

    def interactions(self) -> Interactions:
        """The reviews of restaurants that are left, in the file's order."""
        return self.events.interactions

    @cached_property
    def _restaurants(self) -> frozenset[str]:
        return frozenset(
            business.business_id
            for business in self._businesses.usable()
            if yelp_rows.RESTAURANTS in yelp_rows.categories(business.row)
        )

    def _restaurant_reviews(self) -> Iterator[Event]:
        restaurants = self._restaurants
        if not restaurants:
            raise DatasetError(f"{self._businesses.path} has no business in the category Restaurants; {_REMEDY}")
        return (review for review in self._reviews.usable() if review.item in restaurants)

    def _best_photos(self, wanted: frozenset[str]) -> dict[str, Path]:
        if self._photo_list is None or self._photo_folder is None:
            return {}
        candidates: dict[str, list[yelp_rows.Photo]] = {}
        for photo in self._photo_list.usable():
            if photo.business_id in wanted:
                candidates.setdefault(photo.business_id, []).append(photo)
        best: dict[str, Path] = {}
        for business_id, photos in candidates.items():
            paths = (self._photo_folder / f"{photo.photo_id}.jpg" for photo in sorted(photos))
            if (path := next((path for path in paths if _has_bytes(path)), None)) is not None:
                best[business_id] = path
        return best


def _has_bytes(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except OSError:
        return False


def _needed(data: Path, what: str) -> Path:
    names = [f"{stem}{what}.json{packed}" for stem in (_PREFIX, "") for packed in ("", ".gz")]
    found = _first(data, names)
    if found is not None:
        return found
    packed = sorted(path.name for pattern in _PACKED for path in data.glob(pattern))
    if packed:
        raise DatasetError(f"no {names[0]} under {data}, but {', '.join(packed)}: unpack it there first (tar -xf)")
    raise DatasetError(f"no {names[0]} under {data}; {_REMEDY}")


def _photos(data: Path, given: Path | None) -> tuple[Lines[yelp_rows.Photo] | None, Path | None]:
    """The list of photos, and their folder; neither where there are none."""
    if given is not None and not given.is_dir():
        raise DatasetError(f"{given} is no folder; --posters names the folder of Yelp's photos, ID.jpg")
    places = (data, given, given.parent) if given is not None else (data,)
    listed = next((path for place in places if (path := _first(place, _PHOTO_FILES)) is not None), None)
    if listed is None:
        if given is not None:
            raise DatasetError(f"no photos.json beside {given} or under {data}; it says which photo shows what")
        return None, None
    folder = given or listed.parent / "photos"
    if not folder.is_dir():
        raise DatasetError(f"{listed} is there, but not {folder}: unpack the photos there, or name it with --posters")
    return Lines(listed, what="Yelp photos", read=yelp_rows.photo), folder


def _first(data: Path, names: list[str] | tuple[str, ...]) -> Path | None:
    paths = (data / folder / name for folder in _FOLDERS for name in names)
    return next((path for path in paths if path.is_file()), None)
