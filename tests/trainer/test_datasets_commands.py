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
    assert [row["name"] for row in told] == ["sample", "movielens", "files"]
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
        "catalogue": 2,
        "with_picture": 1,
        "rejected": 1,
        "rejected_interactions": 1,
    }
    shown = _run("stats", "files", "--data", shop, *columns, "--time-column", "bought_at").stdout
    assert "1 rows of the items, 1 of the interactions" in shown
    assert "row 3 of interactions.csv" in shown


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("stats", "movielens"), "needs --data"),
        (("stats", "netflix"), "unknown dataset 'netflix'"),
        (("fetch", "sample"), "'sample' cannot be fetched"),
        (("fetch", "movielens", "--url", "http://127.0.0.1:9/ml.zip"), "cannot reach http://127.0.0.1:9/ml.zip"),
    ],
)
def test_what_is_wrong_is_one_line(
    arguments: tuple[str, ...], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    failed = _run(*arguments)
    assert failed.exit_code == 1
    assert complaint in failed.stderr
    assert len(failed.stderr.splitlines()) == 1
