"""Datasets: what they hold in items, and who interacted with what, when."""

from __future__ import annotations

from pathlib import Path

from dmesr.readers import ColumnMapping

from dmesr_trainer.datasets.base import Dataset, DatasetError, Interactions
from dmesr_trainer.datasets.files import FilesDataset, InteractionColumns
from dmesr_trainer.datasets.movielens import MovieLensDataset
from dmesr_trainer.datasets.sample import SampleDataset

__all__ = ["DATASETS", "Dataset", "DatasetError", "InteractionColumns", "Interactions", "load"]

#: What can be loaded, in a line each.
DATASETS = {
    "sample": "a bookshop of invented novels with drawn covers and planted tastes; made on the spot",
    "movielens": "MovieLens ml-latest-small, with posters and further attributes where they are at hand",
    "files": "your own: a folder with items.* and interactions.* (CSV, TSV, Parquet, JSONL)",
}


def load(
    name: str,
    *,
    data: Path | None = None,
    posters: Path | None = None,
    attributes: Path | None = None,
    items: ColumnMapping | None = None,
    interactions: InteractionColumns | None = None,
    domain: str = "item",
) -> Dataset:
    """Opens a dataset.

    Args:
        name: A key of `DATASETS`.
        data: The folder of its files; the sample needs none.
        posters: A folder of pictures (movielens).
        attributes: Further attributes as JSON lines (movielens).
        items: Which column of the items is what (files).
        interactions: Which column of the interactions is what (files).
        domain: What an item is, in the words that prompts use (files).

    Raises:
        DatasetError: The name is unknown, or files are missing.
    """
    if name == "sample":
        return SampleDataset()
    if name not in DATASETS:
        raise DatasetError(f"unknown dataset {name!r}; known are {', '.join(DATASETS)}")
    if data is None:
        raise DatasetError(f"the dataset {name} needs --data: the folder of its files")
    if name == "movielens":
        return MovieLensDataset(data, posters=posters, attributes=attributes)
    return FilesDataset(data, items=items, interactions=interactions, domain=domain)
