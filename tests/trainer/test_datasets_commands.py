"""`dmesr-cli datasets` through the command line's own door."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from dmesr_trainer.cli.datasets import app
from typer.testing import CliRunner, Result


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_list():
    told = json.loads(_run("list", "--json").stdout)
    assert [row["name"] for row in told] == ["sample", "movielens", "yelp", "amazon-games", "amazon", "files"]
    assert "invented novels" in _run("list").stdout


def test_statistics_of_the_sample_say_that_it_is_planted():
    shown = _run("stats", "sample").stdout
    assert "282 (90.4%)" in shown
    assert "no evidence" in shown


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "items.csv").write_text("sku,name,photo\na,Desk,desk.png\nb,Lamp,\n,Nothing,\n")
    (tmp_path / "interactions.csv").write_text("who,what,bought_at\nu,a,2024-01-02\nu,b,2024-01-03\nv,a,never\n")
    return tmp_path


def test_statistics_of_own_files(shop: Path):
    columns = ("--id-column", "sku", "--picture-column", "photo", "--user-column", "who", "--item-column", "what")
    told = json.loads(_run("stats", "files", "--data", shop, *columns, "--time-column", "bought_at", "--json").stdout)
    assert told["statistics"] == {
        "users": 1,
        "items": 2,
        "interactions": 2,
        "mean_length": 2.0,
        "sparsity": 0.0,
        "repeats": 0,
        "catalogue": 2,
        "without_item": 0,
        "with_picture": 1,
        "rejected": 1,
        "rejected_interactions": 1,
        "filtered": None,
    }
    shown = _run("stats", "files", "--data", shop, *columns, "--time-column", "bought_at").stdout
    assert "1 rows of the items, 1 of the interactions" in shown
    assert "row 3 of interactions.csv" in shown


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("stats", "movielens"), "needs --data"),
        (("stats", "netflix"), "unknown dataset 'netflix'"),
        (("fetch", "sample"), "'sample' cannot be fetched: it is made on the spot"),
        (("fetch", "yelp"), "Yelp wants its licence accepted"),
        (("fetch", "amazon-games"), "reviews_Video_Games.json.gz"),
        (("fetch", "amazon"), "one folder for each release"),
        (("fetch", "netflix"), "what can is movielens"),
        (("stats",), "name one dataset"),
        (("stats", "movielens", "--dataset", "yelp"), "name one dataset"),
        (("stats", "sample", "--min-user-events", "3"), "the dataset sample is taken whole"),
        (("stats", "yelp", "--category", "Books"), "has no categories"),
        (("stats", "yelp", "--data", "nowhere"), "no yelp_academic_dataset_business.json under nowhere"),
        (("stats", "amazon", "--data", "nowhere"), "nowhere is no folder"),
        (("fetch", "movielens", "--url", "http://127.0.0.1:9/ml.zip"), "cannot reach http://127.0.0.1:9/ml.zip"),
    ],
)
def test_what_is_wrong_is_one_line(
    arguments: tuple[str, ...], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    failed = _run(*arguments)
    assert failed.exit_code in (1, 2)
    assert complaint in failed.stderr
    assert len(failed.stderr.splitlines()) == 1


def test_a_filtered_dataset_is_shown_beside_the_paper(tmp_path: Path):
    reviews = [
        {"reviewerID": f"u{user}", "asin": f"i{item}", "unixReviewTime": 86_400 * item}
        for user in range(4)
        for item in range(4 + user)
    ]
    (tmp_path / "Video_Games.json").write_text("".join(json.dumps(row) + "\n" for row in reviews))
    (tmp_path / "meta_Video_Games.json").write_text('{"asin": "i0", "title": "Pong"}\n')
    shown = _run("stats", "amazon-games", "--data", tmp_path).stdout
    assert [line.split() for line in shown.splitlines()[:4]] == [
        ["unfiltered", "here", "paper's", "Table", "1"],
        ["users", "4", "3", "26,574"],
        ["items", "with", "interactions", "7", "5", "11,752"],
        ["interactions", "22", "15", "227,774"],
    ]
    assert "Filter: users with ≥ 5 events, items with ≥ 3, repeated until nothing changes (2 rounds)" in shown
    assert "231,780 reviews (2014)" in shown
    assert "4 items with interactions are not in the catalogue" in shown
    period = ("--since", "1970-01-02", "--until", "1970-01-03", "--min-user-events", "1", "--filter-once")
    told = json.loads(_run("stats", "--dataset", "amazon-games", "--data", tmp_path, *period, "--json").stdout)
    assert (told["statistics"]["items"], told["statistics"]["interactions"]) == (2, 8)
    assert told["statistics"]["filtered"]["period"] == "1970-01-02 to 1970-01-03"
    assert told["paper"]["interactions"] == 227_774


def test_help_of_every_command_tells_of_the_files():
    for command in ("stats", "fetch", "list"):
        assert _run(command, "--help").exit_code == 0
    shown = _run("stats", "--help").stdout
    assert all(option in shown for option in ("--category", "--since", "--user-column", "--min-item-events"))
