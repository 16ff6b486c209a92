"""MovieLens ml-latest-small in GroupLens' official layout, with posters and further attributes where they are at hand.

Tags are left out: many were given at or after the event that is held out, so they would leak. So are ratings: every
rating is an interaction, as in the paper (§4.1.1).
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
from dmesr import Item

from dmesr_trainer.datasets.base import DatasetError, Interactions

FOLDER = "ml-latest-small"
_REMEDY = "fetch it with `dmesr-cli datasets fetch movielens`, or name its folder with --data"
_YEAR = re.compile(r"\s*\((\d{4})(?:[-–]\d{0,4})?\)\s*$")
_NO_GENRES = "(no genres listed)"
# What film-attributes.jsonl calls it, what prompts call it, and whether it is a list.
_FURTHER = (
    ("director", "director", True),
    ("actors", "actors", True),
    ("plot", "plot", False),
    ("country", "country", True),
    ("language", "language", True),
    ("runtime", "runtime", False),
    ("rated", "certificate", False),
)


class MovieLensDataset:
    """9,742 films and 610 users' 100,836 ratings.

    Args:
        data: The folder that holds movies.csv, or its parent.
        posters: A folder of posters named ttNNNNNNN.jpg by IMDb id; `movie-posters` beside the data when not given.
        attributes: JSON lines with director, actors, plot and more by movieId; `film-attributes.jsonl` beside the data
            when not given.

    Raises:
        DatasetError: A folder or file is not there.
    """

    name = "movielens"
    domain = "film"
    planted = False

    def __init__(self, data: Path, *, posters: Path | None = None, attributes: Path | None = None) -> None:
        self._folder = data if (data / "movies.csv").is_file() else data / FOLDER
        for file in ("movies.csv", "ratings.csv", "links.csv"):
            if not (self._folder / file).is_file():
                raise DatasetError(f"no MovieLens under {data}: {self._folder / file} is missing; {_REMEDY}")
        self._posters = _beside(data, "movie-posters", posters)
        self._attributes = _beside(data, "film-attributes.jsonl", attributes)

    def items(self) -> Iterator[Item]:
        """The films, in the order of movies.csv."""
        posters = self._poster_paths()
        further = self._further()
        with (self._folder / "movies.csv").open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                try:
                    film, title, genres = row["movieId"], row["title"], row["genres"].split("|")
                except (KeyError, AttributeError):
                    raise DatasetError(
                        f"{self._folder / 'movies.csv'}: expected the columns movieId, title, genres; got {row}; "
                        f"{_REMEDY}"
                    ) from None
                attributes: dict[str, str | list[str]] = {"title": _YEAR.sub("", title)}
                if genres != [_NO_GENRES]:
                    attributes["genres"] = genres
                if year := _YEAR.search(title):
                    attributes["year"] = year[1]
                attributes |= further.get(film, {})
                yield Item(item_id=film, attributes=attributes, picture=posters.get(film))

    def interactions(self) -> Interactions:
        """Every rating, in the order of ratings.csv."""
        path = self._folder / "ratings.csv"
        types = {"userId": pl.String, "movieId": pl.String, "timestamp": pl.Int64}
        try:
            events = pl.read_csv(path, columns=list(types), schema_overrides=types)
        except (pl.exceptions.PolarsError, OSError) as error:
            first = str(error).splitlines()[0]
            raise DatasetError(f"{path} cannot be read as MovieLens ratings: {first}; {_REMEDY}") from error
        return Interactions(
            user_ids=events["userId"].to_numpy().astype(np.str_),
            item_ids=events["movieId"].to_numpy().astype(np.str_),
            timestamps=events["timestamp"].to_numpy(),
        )

    def _poster_paths(self) -> dict[str, Path]:
        if self._posters is None:
            return {}
        there = {
            path.stem: path for path in self._posters.iterdir() if path.suffix.lower() in (".jpg", ".png", ".webp")
        }
        with (self._folder / "links.csv").open(newline="", encoding="utf-8") as file:
            named = ((row["movieId"], f"tt{row['imdbId']}") for row in csv.DictReader(file))
            return {film: there[imdb] for film, imdb in named if imdb in there}

    def _further(self) -> dict[str, dict[str, str | list[str]]]:
        if self._attributes is None:
            return {}
        found: dict[str, dict[str, str | list[str]]] = {}
        with self._attributes.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                    film = str(row["movieId"])
                except (json.JSONDecodeError, KeyError, TypeError) as error:
                    raise DatasetError(
                        f"{self._attributes}, line {number}: expected a JSON object with movieId ({error!r})"
                    ) from error
                found[film] = {
                    name: [part.strip() for part in value.split(",")] if is_list else value
                    for key, name, is_list in _FURTHER
                    if isinstance(value := row.get(key), str) and value and value != "N/A"
                }
        return found


def _beside(data: Path, name: str, given: Path | None) -> Path | None:
    if given is not None:
        if not given.exists():
            raise DatasetError(f"{given} does not exist")
        return given
    for folder in (data, data.parent):
        if (folder / name).exists():
            return folder / name
    return None
