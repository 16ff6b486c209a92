"""MovieLens ml-latest-small in GroupLens' official layout, with posters and further attributes where they are at hand.

Tags are left out: many were given at or after the event that is held out, so they would leak. So are ratings: every
rating is an interaction, as in the paper (§4.1.1).
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from dmesr import Item

from dmesr_trainer.datasets.base import DatasetError, Interactions
from dmesr_trainer.datasets.pictures import PICTURE_ENDINGS

FOLDER = "ml-latest-small"
_COLUMNS = {
    "movies.csv": ("movieId", "title", "genres"),
    "ratings.csv": ("userId", "movieId", "timestamp"),
    "links.csv": ("movieId", "imdbId"),
}
_REMEDY = "fetch it with `dmesr-cli datasets fetch movielens`, or name its folder with --data"
_YEAR = re.compile(r"\s*\((\d{4})(?:[-–]\d{0,4})?\)\s*$")
# "Postino, Il" and "City of Lost Children, The": the article stands behind, before the end or a bracket.
_ARTICLE_BEHIND = re.compile(
    r"(^|\((?:a\.k\.a\. )?)([^()]+?), (The|An?|L[aeo]s?|L'|El|Il|I|Der|Die|Das|Une?|Una|Det|De|Da|En)(?=\s*[()]|\s*$)"
)
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
        for file in _COLUMNS:
            if not (self._folder / file).is_file():
                raise DatasetError(f"no MovieLens under {data}: {self._folder / file} is missing; {_REMEDY}")
        self._posters = _beside(data, "movie-posters", posters)
        if self._posters is not None and not self._posters.is_dir():
            raise DatasetError(f"{self._posters} is no folder; --posters names the folder of ttNNNNNNN.jpg files")
        self._attributes = _beside(data, "film-attributes.jsonl", attributes)
        if self._attributes is not None and not self._attributes.is_file():
            raise DatasetError(f"{self._attributes} is no file; --attributes names a file of JSON lines")

    def items(self) -> Iterator[Item]:
        """The films, in the order of movies.csv."""
        posters = self._poster_paths()
        further = self._further()
        for film, title, genres in self._rows("movies.csv"):
            name, year = readable_title(title)
            attributes: dict[str, str | list[str]] = {"title": name}
            if genres != _NO_GENRES:
                attributes["genres"] = genres.split("|")
            if year is not None:
                attributes["year"] = year
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
        for column in types:
            if missing := events[column].null_count():
                raise DatasetError(f"{path} has {missing} rows without {column}; it is damaged: {_REMEDY}")
        return Interactions(
            user_ids=events["userId"].to_numpy().astype(np.str_),
            item_ids=events["movieId"].to_numpy().astype(np.str_),
            timestamps=events["timestamp"].to_numpy(),
        )

    def _rows(self, name: str) -> Iterator[Sequence[str]]:
        """The wanted columns of a file, row by row."""
        path, columns = self._folder / name, _COLUMNS[name]
        try:
            with path.open(newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                if missing := [column for column in columns if column not in (reader.fieldnames or ())]:
                    raise DatasetError(
                        f"{path} lacks the column {missing[0]}; it has {', '.join(reader.fieldnames or ['nothing'])}; "
                        f"{_REMEDY}"
                    )
                for row in reader:
                    values = [row[column] for column in columns]
                    if not all(isinstance(value, str) for value in values):
                        raise DatasetError(f"{path}, line {reader.line_num}: a column is missing; {_REMEDY}")
                    yield values
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DatasetError(f"{path} cannot be read: {error}; {_REMEDY}") from error

    def _poster_paths(self) -> dict[str, Path]:
        if self._posters is None:
            return {}
        there = {path.stem: path for path in self._posters.iterdir() if path.suffix.lower() in PICTURE_ENDINGS}
        return {film: there[name] for film, imdb in self._rows("links.csv") if (name := f"tt{imdb:0>7}") in there}

    def _further(self) -> dict[str, dict[str, str | list[str]]]:
        found: dict[str, dict[str, str | list[str]]] = {}
        if self._attributes is None:
            return found
        try:
            with self._attributes.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        film, attributes = self._further_of(line, number)
                        found[film] = attributes
        except OSError as error:
            raise DatasetError(f"{self._attributes} cannot be read: {error}") from error
        return found

    def _further_of(self, line: bytes, number: int) -> tuple[str, dict[str, str | list[str]]]:
        try:
            row = json.loads(line)
            return str(row["movieId"]), _attributes_of(row)
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(
                f"{self._attributes}, line {number}: expected a JSON object with movieId ({error})"
            ) from error


def readable_title(title: str) -> tuple[str, str | None]:
    """Takes the year off a MovieLens title and puts articles back in front.

    "City of Lost Children, The (Cité des enfants perdus, La) (1995)" gives
    ("The City of Lost Children (La Cité des enfants perdus)", "1995").
    """
    year = _YEAR.search(title)
    name = _YEAR.sub("", title).strip()
    return _ARTICLE_BEHIND.sub(_article_in_front, name), year[1] if year else None


def _article_in_front(found: re.Match[str]) -> str:
    before, name, article = found.groups()
    return f"{before}{article}{'' if article.endswith(chr(39)) else ' '}{name}"


def _attributes_of(row: dict[str, object]) -> dict[str, str | list[str]]:
    attributes: dict[str, str | list[str]] = {}
    for key, name, is_list in _FURTHER:
        value = row.get(key)
        if isinstance(value, str) and value and value != "N/A":
            # Some directors stand as "Andrew Stanton(co-director)".
            parts = [part.split("(")[0].strip() for part in value.split(",")]
            attributes[name] = [part for part in parts if part] if is_list else value
    return attributes


def _beside(data: Path, name: str, given: Path | None) -> Path | None:
    if given is not None:
        if not given.exists():
            raise DatasetError(f"{given} does not exist")
        return given
    for folder in (data, data.parent):
        if (folder / name).exists():
            return folder / name
    return None
