"""The Yelp Open Dataset in its official layout, written by the tests."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from dmesr import Item, RejectedRow
from dmesr_trainer.datasets import DatasetError, load
from dmesr_trainer.datasets.statistics import statistics

ANY = {"min_user_events": 1, "min_item_events": 1}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def business(business_id: str, categories: str | None, attributes: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "business_id": business_id,
        "name": f"Chez {business_id}",
        "address": "1 Main St",
        "city": "Tampa",
        "state": "FL",
        "postal_code": "33602",
        "latitude": 27.9,
        "longitude": -82.4,
        "stars": 4.5,
        "review_count": 871,
        "is_open": 0,
        "attributes": attributes,
        "categories": categories,
        "hours": None,
    }


def review(user: str, business_id: str, when: str) -> dict[str, Any]:
    return {
        "review_id": "r",
        "user_id": user,
        "business_id": business_id,
        "stars": 1.0,
        "useful": 0,
        "funny": 0,
        "cool": 0,
        "text": "Cold.",
        "date": when,
    }


def photo(photo_id: str, business_id: str, label: str, caption: str = "") -> dict[str, Any]:
    return {"photo_id": photo_id, "business_id": business_id, "caption": caption, "label": label}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write(
        tmp_path / "yelp_academic_dataset_business.json",
        [
            business(
                "pho",
                "Restaurants, Vietnamese, Soup",
                {
                    "RestaurantsPriceRange2": "2",
                    "OutdoorSeating": "True",
                    "RestaurantsGoodForGroups": "True",
                    "RestaurantsDelivery": "False",
                    "Alcohol": "u'full_bar'",
                    "WiFi": "'no'",
                    "NoiseLevel": "None",
                    "Ambience": "{'romantic': False, 'casual': True, u'classy': True}",
                    "BusinessParking": "{'garage': False}",
                    "DogsAllowed": None,
                },
            ),
            business("nails", "Beauty & Spas"),
            business("nothing", None),
            business("taco", "Food, Restaurants"),
            business("unseen", "Restaurants"),
        ],
    )
    write(
        tmp_path / "yelp_academic_dataset_review.json",
        [
            review("u", "pho", "2018-07-07 22:09:11"),
            review("u", "nails", "2018-07-08 00:00:00"),
            review("v", "taco", "2019-01-01 00:00:00"),
            review("v", "pho", "2017-01-01 00:00:00"),
        ],
    )
    return tmp_path


def test_restaurants_and_their_reviews(data: Path):
    dataset = load("yelp", data=data, **ANY)
    assert (dataset.name, dataset.domain, dataset.planted) == ("yelp", "restaurant", False)
    events = dataset.interactions()
    assert events.user_ids.tolist() == ["u", "v", "v"]
    assert events.item_ids.tolist() == ["pho", "taco", "pho"]
    assert events.timestamps[0] == 1531001351  # 2018-07-07 22:09:11 UTC
    pho, taco = dataset.items()
    assert isinstance(pho, Item)
    assert pho.attributes == {
        "name": "Chez pho",
        "categories": ["Vietnamese", "Soup"],
        "city": "Tampa",
        "state": "FL",
        "price range": "moderate",
        "alcohol": "full bar",
        "ambience": ["casual", "classy"],
        "offers": ["outdoor seating", "good for groups"],
    }
    assert isinstance(taco, Item)
    assert taco.title == "Chez taco"
    assert taco.picture is None


def test_nothing_tells_popularity(data: Path):
    told = json.dumps([dict(item.attributes) for item in load("yelp", data=data, **ANY).items()])
    assert "871" not in told
    assert "4.5" not in told
    assert "open" not in told


def test_restaurants_that_nobody_reviewed_only_when_asked(data: Path):
    found = list(load("yelp", data=data, all_items=True, **ANY).items())
    assert [item.item_id for item in found] == ["pho", "taco", "unseen"]


def test_a_period(data: Path):
    events = load("yelp", data=data, since=date(2018, 1, 1), until=date(2018, 12, 31), **ANY).interactions()
    assert events.item_ids.tolist() == ["pho"]


@pytest.mark.parametrize("folder", ["", "yelp_photos"])
def test_the_best_photo_that_is_there(folder: str, data: Path):
    place = data / folder
    write(
        place / "photos.json",
        [
            photo("menu-1", "pho", "menu", "the menu"),
            photo("in-1", "pho", "inside", "our tables"),
            photo("food-1", "pho", "food"),
            photo("food-0", "pho", "food", "lost"),
            photo("food-3", "pho", "food", "soup"),
            photo("food-2", "pho", "food", "rolls"),
            photo("food-9", "pho", "food", "empty"),
            photo("out-1", "taco", "outside"),
            photo("in-2", "taco", "inside"),
            photo("nails-1", "nails", "food"),
        ],
    )
    (place / "photos").mkdir()
    for name in ("menu-1", "in-1", "food-1", "food-3", "food-2", "out-1", "nails-1"):
        (place / f"photos/{name}.jpg").write_bytes(b"jpeg")
    (place / "photos/food-9.jpg").touch()
    pictures = {item.item_id: item.picture for item in load("yelp", data=data, **ANY).items()}
    # Food before anything else, a caption before none, then by id; food-0 and in-2 are not there.
    assert pictures == {"pho": place / "photos/food-2.jpg", "taco": place / "photos/out-1.jpg"}


def test_photos_elsewhere(data: Path, tmp_path: Path):
    photos = tmp_path / "elsewhere/photos"
    photos.mkdir(parents=True)
    (photos / "a.jpg").write_bytes(b"jpeg")
    with pytest.raises(DatasetError, match=r"no photos\.json beside"):
        load("yelp", data=data, posters=photos)
    write(photos.parent / "photos.json", [photo("a", "taco", "drink"), photo("../a", "pho", "food")])
    dataset = load("yelp", data=data, posters=photos, **ANY)
    assert [item.picture for item in dataset.items()] == [None, photos / "a.jpg"]
    with pytest.raises(DatasetError, match="--posters names the folder of Yelp's photos"):
        load("yelp", data=data, posters=tmp_path / "nowhere")


def test_photos_that_are_not_unpacked(data: Path):
    write(data / "photos.json", [photo("a", "taco", "drink")])
    with pytest.raises(DatasetError, match="unpack the photos there"):
        load("yelp", data=data)


def test_the_papers_filter_is_the_default(data: Path):
    """Three users with four of four restaurants each; one with three, and a restaurant with two reviews."""
    write(
        data / "yelp_academic_dataset_business.json",
        [business(f"b{n}", "Restaurants") for n in range(4)] + [business("rare", "Restaurants")],
    )
    rows = [review(f"u{user}", f"b{n}", f"2019-01-0{n + 1} 10:00:0{user}") for user in range(3) for n in range(4)]
    rows += [review("short", f"b{n}", "2019-02-02 10:00:00") for n in range(3)]
    rows += [review(f"u{user}", "rare", "2019-02-03 10:00:00") for user in range(2)]
    write(data / "yelp_academic_dataset_review.json", rows)
    counted = statistics(load("yelp", data=data))
    assert (counted.users, counted.items, counted.interactions, counted.mean_length) == (3, 4, 12, 4.0)
    assert counted.filtered
    assert counted.filtered.before == (4, 5, 17)


def test_bad_lines(data: Path):
    reviews = data / "yelp_academic_dataset_review.json"
    with reviews.open("a") as file:
        file.write('{"user_id": "u", "business_id": "pho", "date": "yesterday"}\n{"user_id": 4}\n{"user_id": "u"}\n{')
    with (data / "yelp_academic_dataset_business.json").open("a") as file:
        file.write('{"name": "nameless"}\n')
    dataset = load("yelp", data=data, **ANY)
    counted = statistics(dataset)
    assert (counted.interactions, counted.rejected_interactions, counted.rejected) == (3, 4, 1)
    told = [problem.message for problem in dataset.problems]  # type: ignore[attr-defined]
    assert told[0].startswith("line 5 of yelp_academic_dataset_review.json: date is 'yesterday'")
    assert "user_id is 4" in told[1]
    assert "business_id is None" in told[2]
    rejected = [one for one in dataset.items() if isinstance(one, RejectedRow)]
    assert "line 6 of yelp_academic_dataset_business.json" in rejected[0].message


def test_the_folder_above_and_old_names(data: Path):
    inner = data / "yelp_dataset"
    inner.mkdir()
    for name in ("business", "review"):
        (data / f"yelp_academic_dataset_{name}.json").rename(inner / f"{name}.json")
    assert len(load("yelp", data=data, **ANY).interactions()) == 3


def test_the_wrong_folder(tmp_path: Path):
    with pytest.raises(DatasetError, match=r"no yelp_academic_dataset_business\.json under .*accept Yelp's licence"):
        load("yelp", data=tmp_path)
    (tmp_path / "yelp_dataset.tar").touch()
    with pytest.raises(DatasetError, match=r"but yelp_dataset\.tar: unpack it there first"):
        load("yelp", data=tmp_path)


def test_no_restaurants(data: Path):
    write(data / "yelp_academic_dataset_business.json", [business("nails", "Beauty & Spas")])
    with pytest.raises(DatasetError, match="no business in the category Restaurants"):
        load("yelp", data=data).interactions()
