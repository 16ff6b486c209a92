"""Datasets: what they hold in items, and who interacted with what, when."""

from __future__ import annotations

from pathlib import Path

from dmesr_trainer.datasets.base import Dataset, DatasetError, Interactions
from dmesr_trainer.datasets.movielens import MovieLensDataset
from dmesr_trainer.datasets.sample import SampleDataset

__all__ = ["Dataset", "DatasetError", "Interactions", "load"]


def load(
    name: str, *, data: Path | None = None, posters: Path | None = None, attributes: Path | None = None
) -> Dataset:
    """Opens a dataset.

    Args:
        name: "sample" or "movielens".
        data: The folder of its files; the sample needs none.
        posters: A folder of pictures (MovieLens).
        attributes: Further attributes as JSON lines (MovieLens).

    Raises:
        DatasetError: The name is unknown, or files are missing.
    """
    match name:
        case "sample":
            return SampleDataset()
        case "movielens":
            if data is None:
                raise DatasetError("movielens needs --data: the folder that holds ml-latest-small")
            return MovieLensDataset(data, posters=posters, attributes=attributes)
        case _:
            raise DatasetError(f"unknown dataset {name!r}; known are sample, movielens")
