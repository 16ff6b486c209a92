"""Which of a folder's files are the reviews and the metadata of which category, and of which release."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dmesr_trainer.datasets.base import DatasetError

Release = Literal["2014", "2018", "2023"]

_NAME = re.compile(r"(?P<kind>meta_|reviews_)?(?P<category>[A-Za-z0-9_&-]+?)(?P<five>_5)?\.(?P<ending>jsonl?)(\.gz)?\Z")
_REMEDY = (
    "download the reviews and the metadata of one category from https://amazon-reviews-2023.github.io (2023) or "
    "https://cseweb.ucsd.edu/~jmcauley/datasets.html (2018, 2014) into one folder and name it with --data"
)


@dataclass(frozen=True)
class AmazonFiles:
    """The two files of one category.

    Attributes:
        category: As the file names say it, "Video_Games".
        release: The year, as the file names tell it.
        reviews: `reviews_C.json.gz` (2014), `C.json.gz` (2018) or `C.jsonl.gz` (2023); also plain.
        meta: `meta_C.json.gz` or `meta_C.jsonl.gz`; also plain.
        five_core: The reviews are the publisher's `_5` file: users and items with fewer than 5 are gone already.
    """

    category: str
    release: Release
    reviews: Path
    meta: Path
    five_core: bool


@dataclass(frozen=True)
class _File:
    path: Path
    category: str
    is_meta: bool
    five_core: bool
    release: Release

    @classmethod
    def named(cls, path: Path) -> _File | None:
        name = _NAME.match(path.name)
        if name is None:
            return None
        release: Release = "2018"
        if name["ending"] == "jsonl":
            release = "2023"
        elif name["kind"] == "reviews_":
            release = "2014"
        return cls(path, name["category"], name["kind"] == "meta_", name["five"] is not None, release)


def find_files(data: Path, *, category: str | None) -> AmazonFiles:
    """Finds a category's files in a folder. The whole reviews go before the publisher's 5-core.

    Args:
        data: The folder.
        category: Which; may be left out where the folder holds one.

    Raises:
        DatasetError: There are none, or more than one fits.
    """
    if not data.is_dir():
        raise DatasetError(f"{data} is no folder; {_REMEDY}")
    files = [file for path in sorted(data.iterdir()) if path.is_file() and (file := _File.named(path))]
    metas = {file.category.lower(): file.category for file in files if file.is_meta}
    complete = {name for file in files if not file.is_meta and (name := file.category.lower()) in metas}
    wanted = complete if category is None else complete & {category.lower()}
    if len(wanted) != 1:
        raise DatasetError(_not_one(data, category=category, files=files, complete=[metas[one] for one in complete]))
    (chosen,) = wanted
    reviews = [file for file in files if file.category.lower() == chosen and not file.is_meta]
    reviews = [file for file in reviews if not file.five_core] or reviews
    meta = [file for file in files if file.category.lower() == chosen and file.is_meta]
    # 2014 and 2018 call their metadata the same.
    if len({file.release for file in reviews}) > 1 or len({file.release for file in meta}) > 1:
        names = ", ".join(file.path.name for file in (*reviews, *meta))
        raise DatasetError(f"{data} holds more than one release of {metas[chosen]}: {names}; keep one in a folder")
    return AmazonFiles(
        category=metas[chosen],
        release=reviews[0].release,
        reviews=reviews[0].path,
        meta=meta[0].path,
        five_core=reviews[0].five_core,
    )


def _not_one(data: Path, *, category: str | None, files: list[_File], complete: list[str]) -> str:
    if category is None and complete:
        return f"{data} holds {', '.join(sorted(complete))}; say which with --category"
    asked = [file for file in files if category is None or file.category.lower() == category.lower()]
    # Any JSON file looks like 2018's reviews, so it tells nothing about what was meant.
    telling = asked if category else [file for file in asked if file.is_meta or file.release == "2014"]
    if telling:
        lacking = "reviews" if telling[0].is_meta else "metadata"
        return f"{data} has {telling[0].path.name} but not the {lacking} of that category; {_REMEDY}"
    if complete:
        return f"{data} holds {', '.join(sorted(complete))} and no {category}; name another --category, or {_REMEDY}"
    named = category or "CATEGORY"
    return f"{data} has no Amazon files ({named}.json.gz and meta_{named}.json.gz or the like); {_REMEDY}"
