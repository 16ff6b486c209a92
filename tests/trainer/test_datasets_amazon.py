"""Amazon's three releases, in their official layouts, written by the tests."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from dmesr import Item, RejectedRow
from dmesr_trainer.datasets import Dataset, DatasetError, load
from dmesr_trainer.datasets.base import HasPictureUrls
from dmesr_trainer.datasets.statistics import statistics

ANY = {"min_user_events": 1, "min_item_events": 1}


def write(path: Path, rows: list[dict[str, Any]], *, python: bool = False) -> None:
    body = "".join((repr(row) if python else json.dumps(row)) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(body) if path.suffix == ".gz" else body)


def review(user: str, asin: str, time: int) -> dict[str, Any]:
    """As 2014 and 2018 write it."""
    return {
        "reviewerID": user,
        "asin": asin,
        "reviewerName": "J. Doe",
        "helpful": [0, 0],
        "reviewText": "Fun.",
        "overall": 5.0,
        "summary": "Fun",
        "unixReviewTime": time,
        "reviewTime": "07 9, 2012",
    }


def items(dataset: Dataset) -> list[Item]:
    found = list(dataset.items())
    assert not any(isinstance(one, RejectedRow) for one in found)
    return [one for one in found if isinstance(one, Item)]


def urls(dataset: Dataset) -> dict[str, str]:
    assert isinstance(dataset, HasPictureUrls)
    return {one.item_id: one.url for one in dataset.picture_urls()}


@pytest.fixture
def release_2014(tmp_path: Path) -> Path:
    write(tmp_path / "reviews_Video_Games.json.gz", [review("A1", "0700099867", 1341792000), review("A2", "B1", 7)])
    write(
        tmp_path / "meta_Video_Games.json.gz",
        [
            {
                "asin": "0700099867",
                "description": 'Rally &amp; <b>race</b>.\nCars\' "best"',
                "title": "Dirt 3",
                "price": 12.5,
                "imUrl": "http://ecx.images-amazon.com/images/I/51.jpg",
                "related": {"also_bought": ["B1"], "also_viewed": ["B1"]},
                "salesRank": {"Video Games": 4},
                "brand": "Codemasters",
                "categories": [["Video Games", "PC", "Games"], ["Video Games", "Racing"]],
            },
            {"asin": "B1", "imUrl": ""},
            {"asin": "B1", "title": "the second line of one product"},
            {"asin": "NOBODY", "title": "Unsold"},
        ],
        python=True,
    )
    return tmp_path


def test_2014(release_2014: Path):
    dataset = load("amazon-games", data=release_2014, **ANY)
    assert (dataset.name, dataset.domain) == ("amazon-games", "video game")
    dirt, bare = items(dataset)
    assert dirt.item_id == "0700099867"
    assert dirt.attributes == {
        "title": "Dirt 3",
        "brand": "Codemasters",
        "categories": ["Video Games", "PC", "Games", "Racing"],
        "description": 'Rally & race . Cars\' "best"',
        "price": "$12.50",
    }
    assert dirt.picture is None
    assert (bare.item_id, dict(bare.attributes)) == ("B1", {})
    events = dataset.interactions()
    assert events.user_ids.tolist() == ["A1", "A2"]
    assert events.item_ids.tolist() == ["0700099867", "B1"]
    assert events.timestamps.tolist() == [1341792000_000, 7_000]
    assert urls(dataset) == {"0700099867": "http://ecx.images-amazon.com/images/I/51.jpg"}


def test_nothing_tells_popularity_or_what_else_was_bought(release_2014: Path):
    told = json.dumps([dict(item.attributes) for item in items(load("amazon-games", data=release_2014, **ANY))])
    assert "B1" not in told
    assert "4" not in told
    assert "images-amazon" not in told


def test_products_that_nobody_bought_only_when_asked(release_2014: Path):
    assert len(items(load("amazon", data=release_2014, all_items=True, **ANY))) == 3


def test_2018(tmp_path: Path):
    write(
        tmp_path / "Office_Products.json.gz", [review("A1", "B1", 10), review("A1", "B2", 20), review("A1", "B2", 20)]
    )
    write(
        tmp_path / "meta_Office_Products.json.gz",
        [
            {
                "category": ["Office Products", "Pens"],
                "tech1": "<table>...</table>",
                "description": ["Writes well.", "", "<p>Blue &amp; black.</p>"],
                "title": "Pen",
                "also_buy": ["B2"],
                "image": [],
                "feature": ["Smooth", "Smooth", "Refillable"],
                "rank": "12 in Office Products (",
                "also_view": ["B2"],
                "main_cat": "Office Products",
                "similar_item": "",
                "date": "5 June 2012",
                "price": ".a-box-inner{background-color:#fff}",
                "asin": "B1",
                "brand": "by Bic",
                "imageURL": ["https://images-na.ssl-images-amazon.com/images/I/1._US40_.jpg"],
                "imageURLHighRes": ["https://images-na.ssl-images-amazon.com/images/I/1.jpg"],
                "details": {"ASIN: ": "B1", "Shipping Weight:": "1 pounds", "Ink Color:": "Blue"},
            },
            {
                "asin": "B2",
                "title": "var aPageStart = (new Date()).getTime();",
                "brand": "",
                "description": [],
                "imageURL": [],
            },
        ],
    )
    dataset = load("amazon", data=tmp_path, **ANY)
    assert dataset.domain == "office products product"
    pen, other = items(dataset)
    assert pen.attributes == {
        "title": "Pen",
        "brand": "Bic",
        "categories": ["Office Products", "Pens"],
        "features": ["Smooth", "Refillable"],
        "description": "Writes well. Blue & black.",
        "ink color": "Blue",
    }
    assert dict(other.attributes) == {}
    assert urls(dataset) == {"B1": "https://images-na.ssl-images-amazon.com/images/I/1.jpg"}
    assert len(dataset.interactions()) == 2


def review_2023(user: str, parent: str, time: int) -> dict[str, Any]:
    return {
        "rating": 4.0,
        "title": "Good",
        "text": "It is.",
        "images": [],
        "asin": parent + "-RED",
        "parent_asin": parent,
        "user_id": user,
        "timestamp": time,
        "helpful_vote": 0,
        "verified_purchase": True,
    }


def test_2023(tmp_path: Path):
    write(tmp_path / "Video_Games.jsonl", [review_2023("AG", "B1", 1588615855070), review_2023("AH", "B2", 5)])
    write(
        tmp_path / "meta_Video_Games.jsonl",
        [
            {
                "main_category": "Video Games",
                "title": "Phantasmagoria \ud83d",
                "average_rating": 4.1,
                "rating_number": 18,
                "features": ["Windows", "Horror"],
                "description": [],
                "price": 49.99,
                "images": [
                    {"thumb": "https://m/t2.jpg", "large": "https://m/l2.jpg", "variant": "PT01", "hi_res": None},
                    {"thumb": "https://m/t.jpg", "large": "https://m/l.jpg", "variant": "MAIN", "hi_res": None},
                ],
                "videos": [],
                "store": "Sierra",
                "categories": ["Video Games", "PC"],
                "details": {
                    "Best Sellers Rank": {"Video Games": 137612},
                    "Rated": "Mature",
                    "Item model number": "7",
                    "Customer Reviews": "4.1 out of 5 stars",
                },
                "parent_asin": "B1",
                "bought_together": None,
            },
            {"parent_asin": "B2", "title": "Cable", "images": {"hi_res": [None], "large": ["https://m/c.jpg"]}},
        ],
    )
    dataset = load("amazon-games", data=tmp_path, **ANY)
    first, _ = items(dataset)
    assert first.attributes == {
        "title": "Phantasmagoria ?",
        "brand": "Sierra",
        "categories": ["Video Games", "PC"],
        "features": ["Windows", "Horror"],
        "price": "$49.99",
        "rated": "Mature",
    }
    assert dataset.interactions().timestamps.tolist() == [1588615855070, 5]
    assert dataset.interactions().item_ids.tolist() == ["B1", "B2"]
    assert urls(dataset) == {"B1": "https://m/l.jpg", "B2": "https://m/c.jpg"}


def test_a_folder_of_downloaded_pictures(release_2014: Path, tmp_path: Path):
    (release_2014 / "pictures").mkdir()
    (release_2014 / "pictures/B1.jpg").write_bytes(b"jpeg")
    by_itself = items(load("amazon-games", data=release_2014, **ANY))
    assert [item.picture for item in by_itself] == [None, release_2014 / "pictures/B1.jpg"]
    with pytest.raises(DatasetError, match="--posters names the folder"):
        load("amazon-games", data=release_2014, posters=tmp_path / "nowhere")


def test_the_papers_filter_is_the_default(tmp_path: Path):
    """Five users with five of five items each; one with four, and an item with two events."""
    rows = [review(f"u{user}", f"i{item}", user * 9 + item) for user in range(5) for item in range(5)]
    rows += [review("short", f"i{item}", 90) for item in range(4)]
    rows += [review(f"u{user}", "rare", 99) for user in range(2)]
    write(tmp_path / "Video_Games.json", rows)
    write(tmp_path / "meta_Video_Games.json", [{"asin": f"i{item}", "title": f"Game {item}"} for item in range(4)])
    counted = statistics(load("amazon-games", data=tmp_path))
    assert (counted.users, counted.items, counted.interactions) == (5, 5, 25)
    assert (counted.catalogue, counted.without_item) == (4, 1)
    assert counted.filtered
    assert counted.filtered.before == (6, 6, 31)
    assert counted.filtered.rounds == 2
    once = statistics(load("amazon-games", data=tmp_path, min_user_events=1, min_item_events=3, filter_once=True))
    assert once.interactions == 29


def test_bad_lines(release_2014: Path):
    reviews = release_2014 / "reviews_Video_Games.json.gz"
    lines = gzip.decompress(reviews.read_bytes()) + b'{"reviewerID": "A3", "asin": "B1"}\n{"reviewerID": ""}\n{"x\n'
    reviews.write_bytes(gzip.compress(lines + b'{"user_id": "A", "asin": "B1", "timestamp": 1.5}\n'))
    meta = release_2014 / "meta_Video_Games.json.gz"
    meta.write_bytes(gzip.compress(gzip.decompress(meta.read_bytes()) + b"{'title': 'no id'}\n"))
    dataset = load("amazon-games", data=release_2014, **ANY)
    counted = statistics(dataset)
    assert (counted.interactions, counted.rejected_interactions, counted.rejected) == (2, 4, 1)
    told = [problem.message for problem in dataset.problems]  # type: ignore[attr-defined]
    assert told[0] == "line 3 of reviews_Video_Games.json.gz: unixReviewTime is None; expected whole numbers since 1970"
    assert "line 4 of reviews_Video_Games.json.gz: reviewerID is ''" in told[1]
    assert "timestamp is 1.5" in told[3]
    rejected = [one for one in dataset.items() if isinstance(one, RejectedRow)]
    assert [one.message for one in rejected] == [
        "line 5 of meta_Video_Games.json.gz: it has neither asin nor parent_asin"
    ]


def test_whole_reviews_go_before_the_five_core(release_2014: Path):
    five = release_2014 / "reviews_Video_Games_5.json.gz"
    write(five, [review("A9", "B1", 1)])
    assert len(load("amazon", data=release_2014, **ANY).interactions()) == 2
    (release_2014 / "reviews_Video_Games.json.gz").unlink()
    assert load("amazon", data=release_2014, **ANY).interactions().user_ids.tolist() == ["A9"]


@pytest.mark.parametrize(
    ("names", "category", "complaint"),
    [
        ([], None, r"has no Amazon files \(CATEGORY\.json\.gz and meta_CATEGORY\.json\.gz"),
        (["photos.json", "reviews.csv"], None, "has no Amazon files"),
        (["meta_Books.json.gz"], None, r"has meta_Books\.json\.gz but not the reviews"),
        (["reviews_Books.json.gz"], None, r"has reviews_Books\.json\.gz but not the metadata"),
        (["Books.jsonl"], "books", r"has Books\.jsonl but not the metadata"),
        (["Books.json", "meta_Books.json", "Baby.json", "meta_Baby.json"], None, "holds Baby, Books; say which"),
        (["Books.json", "meta_Books.json"], "Baby", "holds Books and no Baby"),
        (["Books.json", "reviews_Books.json", "meta_Books.json"], None, "holds more than one release of Books"),
        (["Books.json", "meta_Books.json", "meta_Books.jsonl"], None, "holds more than one release of Books"),
    ],
)
def test_the_wrong_folder(names: list[str], category: str | None, complaint: str, tmp_path: Path):
    for name in names:
        (tmp_path / name).write_text("{}\n")
    with pytest.raises(DatasetError, match=complaint):
        load("amazon", data=tmp_path, category=category)


def test_no_folder(tmp_path: Path):
    with pytest.raises(DatasetError, match="is no folder; download"):
        load("amazon-games", data=tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="needs --data"):
        load("amazon-games")


def test_a_file_of_another_kind(release_2014: Path):
    meta = gzip.decompress((release_2014 / "meta_Video_Games.json.gz").read_bytes())
    (release_2014 / "reviews_Video_Games.json.gz").write_bytes(meta * 9)
    with pytest.raises(
        DatasetError, match=r"does not look like Amazon reviews: 11 of its first 11 lines.*user_id is None"
    ):
        load("amazon-games", data=release_2014).interactions()
