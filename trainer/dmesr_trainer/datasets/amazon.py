"""Amazon reviews of one category in the official files of 2014, 2018 or 2023, gzipped or plain.

Every review is an interaction, whatever its stars. Pictures are not part of the releases, only their addresses: these
are told by `picture_urls` and never fetched here; a folder of downloaded ones can be given.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dmesr import Item, RejectedRow

from dmesr_trainer.datasets import amazon_rows
from dmesr_trainer.datasets.amazon_files import find_files
from dmesr_trainer.datasets.base import Interactions, PictureUrl
from dmesr_trainer.datasets.events import CoreFilter, FilteredEvents, Period
from dmesr_trainer.datasets.lines import Lines
from dmesr_trainer.datasets.pictures import named_pictures

GAMES = "Video_Games"
#: §4.1.1: "users with fewer than 5 interactions and items with fewer than 3 interaction records are removed".
PAPER_CORE = CoreFilter(min_user_events=5, min_item_events=3)

# What an item of a category is, in the words that prompts use; others are called after their category.
_DOMAINS = {GAMES: "video game", "Books": "book", "Movies_and_TV": "film or series"}


class AmazonDataset:
    """The reviews and products of one category.

    Args:
        data: The folder of the official files.
        category: Which; may be left out where the folder holds one.
        name: The dataset's name.
        core: Who is left out; the paper's filter by default.
        period: Which days count.
        pictures: A folder of downloaded pictures named by product id; `pictures` in the data's folder when not given.
        all_items: Give the products without events too, not only those that are left after the filter.

    Attributes:
        files: What was found.

    Raises:
        DatasetError: Files or folders are not there.
    """

    planted = False

    def __init__(
        self,
        data: Path,
        *,
        category: str | None = None,
        name: str = "amazon",
        core: CoreFilter = PAPER_CORE,
        period: Period | None = None,
        pictures: Path | None = None,
        all_items: bool = False,
    ) -> None:
        self.name = name
        self.files = find_files(data, category=category)
        self.domain = _DOMAINS.get(self.files.category, self.files.category.replace("_", " ").lower() + " product")
        self._review_lines = Lines(self.files.reviews, what="Amazon reviews", read=amazon_rows.event)
        self._meta_lines = Lines(self.files.meta, what="Amazon metadata", read=amazon_rows.product)
        self.events = FilteredEvents(
            self._review_lines.usable,
            core=core,
            period=period or Period(),
            ticks_per_second=amazon_rows.MILLISECONDS,
            name=f"{name} ({self.files.reviews.name})",
        )
        self._pictures = named_pictures(pictures, default=data / "pictures")
        self._all_items = all_items

    @property
    def rejected(self) -> int:
        """How many reviews could not be used."""
        return self._review_lines.rejected

    @property
    def problems(self) -> tuple[RejectedRow, ...]:
        """The first of these reviews."""
        return tuple(self._review_lines.problems)

    def items(self) -> Iterator[Item | RejectedRow]:
        """The products, in the order of the metadata. Of one that stands there twice the first line counts."""
        for product in self._products():
            if isinstance(product, RejectedRow):
                yield product
            else:
                picture = self._pictures.get(product.item_id)
                yield Item(product.item_id, attributes=amazon_rows.attributes(product.row), picture=picture)

    def picture_urls(self) -> Iterator[PictureUrl]:
        """Where the products' pictures are, of those that have one."""
        for product in self._products():
            if not isinstance(product, RejectedRow) and (url := amazon_rows.picture_url(product.row)):
                yield PictureUrl(item_id=product.item_id, url=url)

    def interactions(self) -> Interactions:
        """The reviews that are left, in the file's order."""
        return self.events.interactions

    def _products(self) -> Iterator[amazon_rows.Product | RejectedRow]:
        wanted = None if self._all_items else self.events.item_ids
        seen: set[str] = set()
        for product in self._meta_lines:
            if isinstance(product, RejectedRow):
                yield product
            elif product.item_id not in seen and (wanted is None or product.item_id in wanted):
                seen.add(product.item_id)
                yield product
