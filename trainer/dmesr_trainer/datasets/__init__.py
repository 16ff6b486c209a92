"""Datasets: what they hold in items, and who interacted with what, when."""

from __future__ import annotations

import signal
from datetime import date
from pathlib import Path

from dmesr.readers import ColumnMapping

from dmesr_trainer.datasets import amazon, yelp
from dmesr_trainer.datasets.base import Dataset, DatasetError, Interactions
from dmesr_trainer.datasets.events import CoreFilter, Period
from dmesr_trainer.datasets.files import FilesDataset, InteractionColumns
from dmesr_trainer.datasets.movielens import MovieLensDataset
from dmesr_trainer.datasets.paper import PaperSettings, paper_settings
from dmesr_trainer.datasets.sample import SampleDataset

__all__ = [
    "DATASETS",
    "Dataset",
    "DatasetError",
    "InteractionColumns",
    "Interactions",
    "PaperSettings",
    "load",
    "paper_settings",
]

# Polars has put a handler of its own over Python's, by which a wait for a lock goes on after Ctrl-C as if nothing had
# been pressed. It stays, but waits end.
if hasattr(signal, "siginterrupt"):
    signal.siginterrupt(signal.SIGINT, True)

#: What can be loaded, in a line each.
DATASETS = {
    "sample": "a bookshop of invented novels with drawn covers and planted tastes; made on the spot",
    "movielens": "MovieLens ml-latest-small, with posters and further attributes where they are at hand",
    "yelp": "the restaurants of the Yelp Open Dataset, with photos where they are at hand",
    "amazon-games": "Amazon reviews of video games (2014, 2018 or 2023), with the paper's filter",
    "amazon": "Amazon reviews of any category (2014, 2018 or 2023)",
    "files": "your own: a folder with items.* and interactions.* (CSV, TSV, Parquet, JSONL)",
}
_FILTERED = ("yelp", "amazon-games", "amazon")


def load(
    name: str,
    *,
    data: Path | None = None,
    posters: Path | None = None,
    attributes: Path | None = None,
    items: ColumnMapping | None = None,
    interactions: InteractionColumns | None = None,
    domain: str = "item",
    category: str | None = None,
    min_user_events: int | None = None,
    min_item_events: int | None = None,
    filter_once: bool = False,
    since: date | None = None,
    until: date | None = None,
    all_items: bool = False,
) -> Dataset:
    """Opens a dataset.

    Args:
        name: A key of `DATASETS`.
        data: The folder of its files; the sample needs none.
        posters: A folder of pictures (movielens: by IMDb id; yelp: by photo id; amazon: by product id).
        attributes: Further attributes as JSON lines (movielens).
        items: Which column of the items is what (files).
        interactions: Which column of the interactions is what (files).
        domain: What an item is, in the words that prompts use (files).
        category: As the file names say it, for instance "Books" (amazon).
        min_user_events: Users with fewer are left out (yelp, amazon); the paper's figure when None.
        min_item_events: Items with fewer are left out (yelp, amazon); the paper's figure when None.
        filter_once: Leave out once, instead of until nothing changes (yelp, amazon).
        since: The first day, in UTC (yelp, amazon).
        until: The last day (yelp, amazon).
        all_items: Items without events too (yelp, amazon).

    Raises:
        DatasetError: The name is unknown, files are missing, or an argument is none of this dataset.
    """
    if name not in DATASETS:
        raise DatasetError(f"unknown dataset {name!r}; known are {', '.join(DATASETS)}")
    filters = (min_user_events, min_item_events, since, until, filter_once or None, all_items or None)
    if name not in _FILTERED and any(one is not None for one in filters):
        raise DatasetError(
            f"the dataset {name} is taken whole: filters, periods and all items are for {', '.join(_FILTERED)}"
        )
    if category is not None and name != "amazon":
        raise DatasetError(f"the dataset {name} has no categories; --category is for amazon")
    if name == "sample":
        return SampleDataset()
    if data is None:
        raise DatasetError(f"the dataset {name} needs --data: the folder of its files")
    if name == "movielens":
        return MovieLensDataset(data, posters=posters, attributes=attributes)
    if name == "files":
        return FilesDataset(data, items=items, interactions=interactions, domain=domain)
    papers = yelp.PAPER_CORE if name == "yelp" else amazon.PAPER_CORE
    core = CoreFilter(
        min_user_events=papers.min_user_events if min_user_events is None else min_user_events,
        min_item_events=papers.min_item_events if min_item_events is None else min_item_events,
        until_stable=not filter_once,
    )
    period = Period(since=since, until=until)
    if name == "yelp":
        return yelp.YelpDataset(data, core=core, period=period, photos=posters, all_items=all_items)
    return amazon.AmazonDataset(
        data,
        name=name,
        category=amazon.GAMES if name == "amazon-games" else category,
        core=core,
        period=period,
        pictures=posters,
        all_items=all_items,
    )
