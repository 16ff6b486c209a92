"""MovieLens in the official layout, written by the test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from dmesr_trainer.datasets import DatasetError, load
from dmesr_trainer.datasets.movielens import readable_title
from dmesr_trainer.datasets.statistics import statistics


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "ml-latest-small"
    folder.mkdir()
    (folder / "movies.csv").write_text(
        "movieId,title,genres\n"
        "1,Toy Story (1995),Adventure|Animation\n"
        '2,"American President, The (1995)",Comedy\n'
        "3,La cravate (1957),(no genres listed)\n"
        "4,Untitled,Drama\n"
    )
    (folder / "links.csv").write_text("movieId,imdbId,tmdbId\n1,0114709,862\n2,0112346,\n3,0050275,\n4,0000001,\n")
    (folder / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n7,1,4.0,20\n7,2,3.5,10\n9,1,1.0,5\n9,4,1.0,5\n"
    )
    (folder / "tags.csv").write_text("userId,movieId,tag,timestamp\n7,1,pixar,30\n")
    posters = tmp_path / "movie-posters"
    posters.mkdir()
    (posters / "tt0114709.jpg").write_bytes(b"jpeg")
    (posters / "tt9999999.jpg").write_bytes(b"a film that is not in the catalogue")
    (tmp_path / "film-attributes.jsonl").write_text(
        json.dumps({"movieId": "1", "director": "John Lasseter", "actors": "Tom Hanks, Tim Allen", "plot": "N/A"})
        + "\n\n"
    )
    return tmp_path


def test_items(data: Path):
    toy_story, president, cravate, untitled = load("movielens", data=data).items()
    assert toy_story.attributes == {
        "title": "Toy Story",
        "genres": ["Adventure", "Animation"],
        "year": "1995",
        "director": ["John Lasseter"],
        "actors": ["Tom Hanks", "Tim Allen"],
    }
    assert toy_story.picture == data / "movie-posters/tt0114709.jpg"
    assert president.attributes["title"] == "The American President"
    assert president.picture is None
    assert "genres" not in cravate.attributes
    assert "year" not in untitled.attributes


def test_no_tag_and_no_rating_gets_in(data: Path):
    told = json.dumps([dict(item.attributes) for item in load("movielens", data=data).items()])
    assert "pixar" not in told
    assert "4.0" not in told


def test_interactions_keep_the_order_of_the_file(data: Path):
    events = load("movielens", data=data).interactions()
    assert events.user_ids.tolist() == ["7", "7", "9", "9"]
    assert events.item_ids.tolist() == ["1", "2", "1", "4"]
    assert events.timestamps.tolist() == [20, 10, 5, 5]


def test_the_inner_folder_is_found_too(data: Path):
    dataset = load("movielens", data=data / "ml-latest-small")
    assert next(dataset.items()).picture is not None


def test_statistics(data: Path):
    counted = statistics(load("movielens", data=data))
    assert (counted.users, counted.items, counted.interactions, counted.catalogue) == (2, 3, 4, 4)
    assert counted.with_picture == 1
    assert counted.mean_length == 2.0
    assert counted.sparsity == pytest.approx(1 - 4 / 6)


@pytest.mark.parametrize("file", ["movies.csv", "ratings.csv", "links.csv"])
def test_a_missing_file_is_named(data: Path, file: str):
    (data / "ml-latest-small" / file).unlink()
    with pytest.raises(DatasetError, match=f"{file} is missing; fetch it with"):
        load("movielens", data=data)


def test_other_columns_are_named(data: Path):
    (data / "ml-latest-small/ratings.csv").write_text("user,item\n1,2\n")
    with pytest.raises(DatasetError, match=r"ratings\.csv cannot be read as MovieLens ratings"):
        load("movielens", data=data).interactions()
    (data / "film-attributes.jsonl").write_text("{broken\n")
    with pytest.raises(DatasetError, match="line 1"):
        list(load("movielens", data=data).items())


@pytest.mark.parametrize(
    ("title", "name", "year"),
    [
        ("Toy Story (1995)", "Toy Story", "1995"),
        ("Matrix, The (1999) ", "The Matrix", "1999"),
        (
            "City of Lost Children, The (Cité des enfants perdus, La) (1995)",
            "The City of Lost Children (La Cité des enfants perdus)",
            "1995",
        ),
        ("Lover, The (Amant, L') (1992)", "The Lover (L'Amant)", "1992"),
        ("Ordet (a.k.a. Word, The) (1955)", "Ordet (a.k.a. The Word)", "1955"),
        ("Crouching Tiger, Hidden Dragon (2000)", "Crouching Tiger, Hidden Dragon", "2000"),
        ("Death Note: Desu nôto (2006–2007)", "Death Note: Desu nôto", "2006"),
        ("Black Mirror", "Black Mirror", None),
    ],
)
def test_titles_read_as_people_say_them(title: str, name: str, year: str | None):
    assert readable_title(title) == (name, year)


def test_broken_files_are_named(data: Path):
    folder = data / "ml-latest-small"
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n7,,4.0,20\n")
    with pytest.raises(DatasetError, match="1 rows without movieId"):
        load("movielens", data=data).interactions()
    (folder / "movies.csv").write_text("movieId,title,genres\n1,Toy Story\n")
    with pytest.raises(DatasetError, match=r"movies\.csv, line 2: a column is missing"):
        list(load("movielens", data=data).items())
    (folder / "movies.csv").write_bytes(b"movieId,title,genres\n1,\xff\xfe,Drama\n")
    with pytest.raises(DatasetError, match=r"movies\.csv cannot be read"):
        list(load("movielens", data=data).items())
    with pytest.raises(DatasetError, match="does not exist"):
        load("movielens", data=data, posters=data / "nowhere")
    with pytest.raises(DatasetError, match="is no folder"):
        load("movielens", data=data, posters=folder / "movies.csv")


def test_no_folder_given():
    with pytest.raises(DatasetError, match="needs --data"):
        load("movielens")
